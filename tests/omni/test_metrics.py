"""Our quality metrics against those of vLLM-Omni's own comparer."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fa_tuner.domain.measurement import IDENTICAL_DB
from fa_tuner.domain.workload import Case
from fa_tuner.evaluate.quality import RELATIVE_TO_BLACK, compare

Frames = np.ndarray[tuple[int, ...], np.dtype[np.uint8]]
Summarize = Callable[[Frames, Frames], dict[str, dict[str, float]]]
CASE = Case("a prompt", 0)
SHARED = ("cosine_similarity", "mae", "mse", "rmse", "max_abs", "l2", "relative_l2", "psnr_db")
# torch deprecates what vllm uses while it is imported
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture(scope="module")
def upstream() -> Summarize:
    from vllm_omni.quantization.tools import compare_diffusion_trajectory_similarity as comparer

    def summarize(reference: Frames, candidate: Frames) -> dict[str, dict[str, float]]:
        pictures: list[list[Any]] = [[Image.fromarray(frame) for frame in clip] for clip in (reference, candidate)]
        return comparer.summarize_output_frame_metrics(*pictures)

    return summarize


def clips(seed: int) -> tuple[Frames, Frames]:
    """A clip and a disturbed copy, from a hardly visible difference to an unrelated clip."""
    random = np.random.default_rng(seed)
    shape = (int(random.integers(1, 8)), int(random.integers(7, 40)), int(random.integers(7, 40)), 3)
    reference = random.integers(0, 256, shape, np.uint8)
    strength = (1, 3, 12, 60, 255)[seed % 5]
    noise = random.integers(-strength, strength + 1, shape) * (random.random(shape) < random.random())
    return reference, np.clip(reference.astype(int) + noise, 0, 255).astype(np.uint8)


@pytest.mark.parametrize("seed", range(40))
def test_on_all_frames_they_are_equal(upstream: Summarize, seed: int) -> None:
    reference, candidate = clips(seed)
    assert not np.array_equal(reference, candidate)
    ours, theirs = compare(CASE, reference, candidate).metrics, upstream(reference, candidate)["all_frames_metrics"]
    for name in SHARED:
        assert ours[name] == pytest.approx(theirs[name], rel=1e-9, abs=1e-9), name


@pytest.mark.parametrize("seed", range(10))
def test_on_one_frame_they_are_equal(upstream: Summarize, seed: int) -> None:
    """Upstream also compares the first and the middle frame; ours of a clip of that frame are the same."""
    reference, candidate = clips(seed)
    theirs = upstream(reference, candidate)
    for name, number in (("frame0_metrics", 0), ("mid_frame_metrics", len(reference) // 2)):
        pair = reference[number : number + 1], candidate[number : number + 1]
        if np.array_equal(*pair):
            continue  # the next test's
        ours = compare(CASE, *pair).metrics
        for metric in SHARED:
            assert ours[metric] == pytest.approx(theirs[name][metric], rel=1e-9, abs=1e-9), metric
        assert ours["worst_frame_psnr_db"] == pytest.approx(theirs[name]["psnr_db"], rel=1e-9)


@pytest.mark.parametrize("seed", range(10))
def test_the_worst_frame_is_the_least_of_upstreams_by_frame(upstream: Summarize, seed: int) -> None:
    reference, candidate = clips(seed)
    by_frame = [
        upstream(reference[i : i + 1], candidate[i : i + 1])["all_frames_metrics"]["psnr_db"]
        for i in range(len(reference))
    ]
    ours = compare(CASE, reference, candidate).metrics["worst_frame_psnr_db"]
    assert ours == pytest.approx(min(IDENTICAL_DB, *by_frame), rel=1e-9)


def test_identical_frames_differ_only_in_how_no_error_is_written(upstream: Summarize) -> None:
    reference, _ = clips(1)
    ours, theirs = compare(CASE, reference, reference.copy()).metrics, upstream(reference, reference)
    for name in SHARED[:-1]:
        assert ours[name] == pytest.approx(theirs["all_frames_metrics"][name], abs=1e-12), name
    assert (theirs["all_frames_metrics"]["psnr_db"], ours["psnr_db"]) == (math.inf, IDENTICAL_DB)


def test_black_frames_differ_only_in_how_infinity_is_written(upstream: Summarize) -> None:
    black, other = np.zeros((2, 8, 8, 3), np.uint8), clips(3)[0][:1, :8, :8].repeat(2, 0)
    other = np.resize(other, black.shape)
    for reference, candidate in ((black, other), (other, black)):
        ours, theirs = compare(CASE, reference, candidate).metrics, upstream(reference, candidate)["all_frames_metrics"]
        for name in SHARED:
            expected = RELATIVE_TO_BLACK if math.isinf(theirs[name]) else theirs[name]
            assert ours[name] == pytest.approx(expected, rel=1e-9, abs=1e-9), name
