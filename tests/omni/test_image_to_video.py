"""Other models than the demo's: image-to-video, one transformer instead of two, and no guidance."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from fa_tuner.domain.errors import DocumentError, NotFoundError, UsageError
from fa_tuner.domain.policy import SkipPolicy
from fa_tuner.domain.workload import Workload
from fa_tuner.engines.base import Generation, Prefix
from fa_tuner.engines.diffusers import DiffusersEngine
from fa_tuner.engines.pictures import picture_digest
from fa_tuner.engines.vllm_omni.engine import VllmOmniEngine
from fa_tuner.evaluate.coverage import prove
from fa_tuner.evaluate.quality import compare
from fa_tuner.search.shadows import worth_asking
from fa_tuner.search.space import Space
from tests.support.installed import Installed
from tests.support.tiny_wan import make_tiny_wan

from .conftest import OPTIONS, VLLM_WARNS, use_scheduler_of_vllm_omni

if TYPE_CHECKING:
    from fa_tuner.engines.base import Frames

pytestmark = [pytest.mark.timeout(300), *VLLM_WARNS]
STEPS, LAYERS = 4, 2
# all, each expert alone (the boundary lies behind step 1 of 4), a step, a layer, both, a single cell
POLICIES = ("/", "2,3/", "0,1/", "0/", "/1", "3/0", "0,1,3/1")


def work_on(model: Path, **changes: object) -> Workload:
    workload = Workload(
        model=str(model), prompts=("red digit moving left", "blue digit"), height=32, width=32, frames=5, steps=STEPS,
        seeds=(1,), guidance=4.0, flow_shift=3.0, boundary_ratio=0.875,
    )  # fmt: skip
    return replace(workload, **changes)  # type: ignore[arg-type]


@contextmanager
def opened(workload: Workload, **options: str) -> Iterator[VllmOmniEngine]:
    engine = VllmOmniEngine.open(workload, {**OPTIONS, **options})
    try:
        yield engine
    finally:
        engine.close()


def run(engine: VllmOmniEngine, text: str, prefix: Prefix = "none") -> Generation:
    asked = SkipPolicy.parse(text, ("fp8",), engine.describe().grid)
    generation = engine.generate(asked, engine._workload.cases[0], prefix)
    prove(engine.describe(), asked, generation)
    return generation


def assert_every_call_runs_as_the_policy_says(engine: VllmOmniEngine, calls: int) -> None:
    described = engine.describe()
    assert described.grid.steps == STEPS and described.grid.layers == tuple(range(LAYERS))
    assert described.calls_per_cell == calls and described.operator == "emulated"
    seen: list[Frames | None] = [engine.generate(SkipPolicy(), engine._workload.cases[0]).frames]
    for text in POLICIES:
        asked = SkipPolicy.parse(text, ("fp8",), described.grid)
        generation = run(engine, text)
        assert generation.calls == {
            (step, layer, "fp8" if asked.quantizes(step, layer) else "native"): calls
            for step in range(STEPS)
            for layer in range(LAYERS)
        }
        assert generation.cross_attention_quantized == 0
        assert generation.frames is not None and generation.frames.shape == (5, 32, 32, 3)
        assert not any(np.array_equal(generation.frames, other) for other in seen), text
        seen.append(generation.frames)


def assert_resumed_is_bit_equal_to_full(engine: VllmOmniEngine) -> None:
    case = engine._workload.cases[0]
    assert engine.describe().resumes
    engine.generate(SkipPolicy(), case, "keep")
    for text, shared in (("0,1/", 2), ("0-2/1", 3), ("0,1/", 3)):
        full, resumed = run(engine, text), run(engine, text, "reuse")
        assert resumed.reused_steps == shared
        assert resumed.calls + resumed.reused_calls == full.calls
        assert np.array_equal(full.frames, resumed.frames)


def assert_shadows_change_nothing(engine: VllmOmniEngine) -> None:
    case, asked = engine._workload.cases[0], worth_asking(Space(engine.describe().grid, ("fp8",)))
    for policy in (SkipPolicy(), SkipPolicy("fp8")):
        alone, beside = engine.generate(policy, case), engine.generate(policy, case, "none", asked)
        prove(engine.describe(), policy, beside)
        assert np.array_equal(alone.frames, beside.frames) and set(beside.shadows) == set(asked)
        assert all(value > 0 for shadow, value in beside.shadows.items() if policy.is_native or len(shadow.layers) == 1)


def psnr(workload: Workload, one: Frames | None, other: Frames | None) -> float:
    assert one is not None and other is not None
    return compare(workload.cases[0], one, other).metrics["psnr_db"]


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of the workload's size, so that neither engine has to scale it."""
    from PIL import Image

    path = tmp_path_factory.mktemp("picture") / "picture.png"
    rising, falling = np.linspace(0, 255, 32), np.linspace(255, 0, 32)
    red, green = np.meshgrid(rising, falling)
    Image.fromarray(np.stack([red, green, np.abs(red - green)], -1).astype(np.uint8)).save(path)
    return path


@pytest.fixture(scope="module")
def workload(tiny_wan_i2v: Path, picture: Path) -> Workload:
    return work_on(tiny_wan_i2v, task="i2v", image=picture_digest(picture))


@pytest.fixture(scope="module")
def engine(workload: Workload, picture: Path) -> Iterator[VllmOmniEngine]:
    with opened(workload, image=str(picture)) as engine:
        yield engine


def test_coverage(engine: VllmOmniEngine) -> None:
    assert engine.describe().pipeline == "Wan22I2VPipeline"
    assert_every_call_runs_as_the_policy_says(engine, calls=2)


def test_resuming(engine: VllmOmniEngine) -> None:
    assert_resumed_is_bit_equal_to_full(engine)


def test_shadows(engine: VllmOmniEngine) -> None:
    assert_shadows_change_nothing(engine)


def test_it_starts_from_the_picture_that_was_given(
    engine: VllmOmniEngine, workload: Workload, picture: Path, tmp_path: Path
) -> None:
    """The other engine with the same steps makes the same of it, and something else of another one."""
    from PIL import Image

    Image.fromarray(np.asarray(Image.open(picture))[::-1]).save(tmp_path / "other.png")
    ours = engine.generate(SkipPolicy(), workload.cases[0]).frames
    same, other = (psnr(workload, ours, elsewhere(workload, path)) for path in (picture, tmp_path / "other.png"))
    assert same > 65 and other < 40, (same, other)


def test_refused_before_the_engine_starts(
    workload: Workload, picture: Path, tmp_path: Path, tiny_wan: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(VllmOmniEngine, "__init__", None)  # starting would be a TypeError
    (tmp_path / "cut.png").write_bytes(picture.read_bytes()[:60])
    (tmp_path / "text.png").write_text("no picture")
    for options, kind, said in (
        ({}, UsageError, "give --image PATH"),
        ({"image": str(tmp_path / "none.png")}, NotFoundError, r"picture .*none.png does not exist"),
        ({"image": str(tmp_path / "cut.png")}, DocumentError, "cannot be read"),
        ({"image": str(tmp_path / "text.png")}, DocumentError, "cannot be read"),
    ):
        with pytest.raises(kind, match=said):
            VllmOmniEngine.open(workload, {**OPTIONS, **options})
    for mixed, said in (
        (replace(workload, model=str(tiny_wan)), r"is a WanPipeline \(t2v\) and takes no --image"),
        (work_on(Path(workload.model)), r"is a WanImageToVideoPipeline \(i2v\) and needs --image"),
    ):
        with pytest.raises(UsageError, match=said):
            VllmOmniEngine.open(mixed, {**OPTIONS, "image": str(picture)})


def test_the_way_from_a_study_to_a_verified_deploy_file(
    installed: Installed, tiny_wan_i2v: Path, picture: Path, tmp_path: Path
) -> None:
    """vLLM-Omni reads a deploy file for such a model only where the file names a pipeline, as the export does."""
    asked = (
        "--model", tiny_wan_i2v, "--image", picture, "--height", "32", "--width", "32", "--frames", "5", "--steps",
        str(STEPS), "--seed", "1", "--engine-arg", "dtype=float32", "--min-psnr", "5",
    )  # fmt: skip
    study = ("--engine", "vllm-omni", "--prompt", "red digit moving left", "--trials", "3", "--study", "i2v")
    found = installed("run", *asked, *study, "--try", "0/1", "--json").succeeded().document
    assert found["environment"]["pipeline"] == "Wan22I2VPipeline" and found["workload"]["task"] == "i2v"
    file = tmp_path / "deploy.yaml"
    assert "validated by vllm-omni" in installed("export", "i2v", "--validate", "-o", file).succeeded().err
    verify = ("verify", *asked, "--prompt", "blue digit", "--deploy-config", file)
    verified = installed(*verify, "--json").succeeded().document
    assert verified["passed"] and verified["policy"] == found["recommended"]["policy"]
    bare = file.read_text().replace("pipeline: wan2_2_ti2v\n", "")
    assert bare != file.read_text()
    file.write_text(bare)
    installed(*verify).refused(7, "quantizes nothing", "that does not name pipeline: wan2_2_ti2v")


def elsewhere(workload: Workload, picture: Path) -> Frames | None:
    """What engine diffusers makes of the workload, natively, with vLLM-Omni's scheduler: random weights make much of a
    difference in the fourth digit of a noise level."""
    engine = DiffusersEngine.open(workload, {"device": "cpu", "image": str(picture)})
    try:
        use_scheduler_of_vllm_omni(engine, workload)
        return engine.generate(SkipPolicy(), workload.cases[0]).frames
    finally:
        engine.close()


def test_one_transformer(one_thread: None, tmp_path: Path) -> None:
    model = make_tiny_wan(tmp_path, two_experts=False)
    with opened(work_on(model, boundary_ratio=None)) as engine:
        assert engine._loaded is not None and engine._loaded.found["depths"] == [LAYERS]
        assert_every_call_runs_as_the_policy_says(engine, calls=2)
        assert_resumed_is_bit_equal_to_full(engine)
        assert_shadows_change_nothing(engine)


def test_no_guidance(tiny_wan: Path) -> None:
    with opened(work_on(tiny_wan, guidance=1.0)) as engine:
        assert_every_call_runs_as_the_policy_says(engine, calls=1)
        assert_resumed_is_bit_equal_to_full(engine)
        assert_shadows_change_nothing(engine)
