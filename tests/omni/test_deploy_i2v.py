"""The deploy export of an image-to-video study, served: vLLM-Omni reads the file, and runs what was recommended."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fa_tuner.domain.errors import UsageError
from fa_tuner.domain.policy import SkipPolicy
from fa_tuner.domain.study import Recommendation
from fa_tuner.domain.workload import Workload
from fa_tuner.engines.pictures import picture_digest
from fa_tuner.engines.vllm_omni.engine import VllmOmniEngine
from fa_tuner.evaluate.coverage import prove
from fa_tuner.export import Target, exporter, merge_into
from fa_tuner.export.validate import validate
from tests.export.conftest import build

from .conftest import OPTIONS, VLLM_WARNS

pytestmark = [pytest.mark.timeout(300), *VLLM_WARNS]
STEPS, LAYERS = 4, 2
POLICY = "0,3/1"


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of the workload's size."""
    from PIL import Image

    path = tmp_path_factory.mktemp("picture") / "picture.png"
    red, green = np.meshgrid(np.linspace(0, 255, 32), np.linspace(255, 0, 32))
    Image.fromarray(np.stack([red, green, np.abs(red - green)], -1).astype(np.uint8)).save(path)
    return path


@pytest.fixture(scope="module")
def workload(tiny_wan_i2v: Path, picture: Path) -> Workload:
    return Workload(
        model=str(tiny_wan_i2v), prompts=("red digit moving left",), height=32, width=32, frames=5, steps=STEPS,
        seeds=(1,), guidance=4.0, flow_shift=3.0, boundary_ratio=0.875, task="i2v", image=picture_digest(picture),
    )  # fmt: skip


@pytest.fixture(scope="module")
def switched(workload: Workload, picture: Path) -> Iterator[VllmOmniEngine]:
    """Without a deploy file, as a study runs."""
    engine = VllmOmniEngine.open(workload, {**OPTIONS, "image": str(picture)})
    try:
        yield engine
    finally:
        engine.close()


@pytest.fixture(scope="module")
def recommendation(switched: VllmOmniEngine, workload: Workload) -> Recommendation:
    described = switched.describe()
    policy = SkipPolicy.parse(POLICY, ("fp8",), described.grid)
    made = build(environment={**described.environment, "pipeline": described.pipeline})
    spec = replace(made.study.spec, workload=workload)
    return replace(
        made, study=replace(made.study, spec=spec), evaluation=replace(made.evaluation, policy=policy),
        measurement=replace(made.measurement, policy=policy),
    )  # fmt: skip


@pytest.mark.parametrize("into", [None, "stages:\n  - stage_id: 0  # mine\n"], ids=["export", "into"])
def test_the_file_is_read_and_runs_the_policy(
    switched: VllmOmniEngine, recommendation: Recommendation, workload: Workload, picture: Path, tmp_path: Path,
    into: str | None,
) -> None:  # fmt: skip
    if into is None:
        text = exporter("deploy").export(recommendation)
    else:
        text = merge_into(into, recommendation, 0, "deploy.yaml")
    file = tmp_path / "deploy.yaml"
    file.write_text(text)
    case, policy = workload.cases[0], recommendation.policy
    expected = switched.generate(policy, case)
    options = {**OPTIONS, "deploy_config": str(file), "as_deployed": True, "image": str(picture)}
    engine = VllmOmniEngine.open(workload, options)
    try:
        assert engine.deployed == policy
        assert engine.describe().pipeline == "Wan22I2VPipeline"
        assert engine.describe().grid == switched.describe().grid
        deployed = engine.generate(policy, case)
        prove(engine.describe(), policy, deployed)
        native = engine.generate(SkipPolicy(), case)
    finally:
        engine.close()
    assert deployed.calls == {
        (step, layer, "fp8" if policy.quantizes(step, layer) else "native"): 2
        for step in range(STEPS)
        for layer in range(LAYERS)
    }
    assert np.array_equal(deployed.frames, expected.frames)
    assert np.array_equal(native.frames, switched.generate(SkipPolicy(), case).frames)
    assert not np.array_equal(deployed.frames, native.frames)


def test_validated_by_the_loader(recommendation: Recommendation) -> None:
    """In the child process, as the command does it."""
    text = exporter("deploy").export(recommendation)
    found = validate(text, Target("deploy"), recommendation, 0)
    assert (found.version, found.dtype) == ("0.30.0", "fp8")
    assert (found.skip_steps, found.skip_layers) == ({0, 3}, {1})


def test_without_the_two_keys_the_engine_says_that_the_file_is_not_read(
    recommendation: Recommendation, workload: Workload, picture: Path, tmp_path: Path
) -> None:
    text = exporter("deploy").export(recommendation)
    for key in ("pipeline: wan2_2_ti2v\n", "    model_class_name: WanImageToVideoPipeline\n"):
        assert key in text
        text = text.replace(key, "")
    file = tmp_path / "deploy.yaml"
    file.write_text(f"{text}        flow_shift: 9.0\n")
    work = replace(workload, flow_shift=None)
    with pytest.raises(UsageError, match=r"sets flow_shift to 9\.0, .* vLLM-Omni reads no deploy file for Wan22I2VP"):
        VllmOmniEngine.open(work, {**OPTIONS, "deploy_config": str(file), "as_deployed": True, "image": str(picture)})
