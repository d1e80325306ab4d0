"""The demo model is what its README says: loadable, small, trained, and worth tuning."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from fa_tuner.domain.measurement import aggregate
from fa_tuner.domain.policy import SkipPolicy
from fa_tuner.domain.selector import SkipSelector
from fa_tuner.domain.workload import Case, Workload
from fa_tuner.engines.base import Engine
from fa_tuner.engines.registry import open_engine
from fa_tuner.evaluate.quality import compare
from fa_tuner.settings import load_run_settings

if TYPE_CHECKING:
    from fa_tuner.engines.base import Frames

DEMO = Path(__file__).parents[2] / "studies" / "demo"
PROMPTS = ("digit two moving right", "red digit three moving left", "green digit zero moving up")


@pytest.fixture(scope="module")
def workload() -> Workload:
    return load_run_settings({"study_file": DEMO / "study.yaml"}).workload()


@pytest.fixture(scope="module")
def engine(workload: Workload, one_thread: None) -> Iterator[Engine]:
    opened = open_engine("diffusers", replace(workload, prompts=PROMPTS, holdout=()), {"device": "cpu"})
    yield opened
    opened.close()


def native(engine: Engine, prompt: str) -> Frames:
    frames = engine.generate(SkipPolicy(), Case(prompt, 1)).frames
    assert frames is not None
    return frames


def centre(frame: Frames) -> tuple[float, float]:
    """The brightness-weighted mean (row, column)."""
    light = frame.astype(float).sum(axis=2)
    rows, columns = np.indices(light.shape)
    return float((rows * light).sum() / light.sum()), float((columns * light).sum() / light.sum())


def test_weights_fit_in_ten_megabytes() -> None:
    assert sum(path.stat().st_size for path in DEMO.rglob("*.safetensors")) <= 10_000_000


def test_losses_are_logged_and_fell() -> None:
    with (DEMO / "train_log.csv").open() as file:
        rows = list(csv.DictReader(file))
    for stage in ("vae", "base"):
        losses = [float(row["loss"]) for row in rows if row["stage"] == stage]
        assert losses[-1] < losses[0] / 5


def test_it_has_the_shape_of_wan22(engine: Engine) -> None:
    described = engine.describe()
    assert described.pipeline == "WanPipeline"
    assert described.grid.layers == tuple(range(8))
    assert (DEMO / "model" / "transformer_2").is_dir()


def test_it_draws_what_the_prompt_says(engine: Engine) -> None:
    right, left, up = (native(engine, prompt) for prompt in PROMPTS)
    assert centre(right[-1])[1] > centre(right[1])[1] + 5
    assert centre(left[-1])[1] < centre(left[3])[1] - 5
    assert centre(up[-1])[0] < centre(up[1])[0] - 5
    red, green, _ = left[6].reshape(-1, 3).astype(float).sum(axis=0)
    assert red > 2 * green
    white = right[6].reshape(-1, 3).astype(float).sum(axis=0)
    assert white.min() > 0.8 * white.max()


@pytest.mark.slow
def test_the_landscape_is_worth_tuning(workload: Workload) -> None:
    """Everything quantized in mxfp4 is at least 10 dB worse than the gentlest single step."""
    engine = open_engine("diffusers", workload, {"device": "cpu"})
    references = {case: engine.generate(SkipPolicy(), case).frames for case in workload.cases}

    def worst(policy: SkipPolicy) -> float:
        seen = []
        for case, reference in references.items():
            frames = engine.generate(policy, case).frames
            assert reference is not None and frames is not None
            seen.append(compare(case, reference, frames))
        return aggregate(seen, "psnr_db", "worst")

    steps = range(engine.describe().grid.steps)
    single = [worst(SkipPolicy("mxfp4", SkipSelector.of(i for i in steps if i != step))) for step in steps]
    assert max(single) - worst(SkipPolicy("mxfp4")) >= 10
