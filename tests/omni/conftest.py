"""The real engine on an emulated NPU; see docs/vllm-omni.md for what that shows and what it does not."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from fa_tuner.domain.workload import Workload
from fa_tuner.engines.vllm_omni.engine import VllmOmniEngine
from tests.support.installed import Installed

if TYPE_CHECKING:
    from fa_tuner.engines.diffusers import DiffusersEngine

ROOT = Path(__file__).parents[2]
DEMO = ROOT / "studies" / "demo" / "model"
WORKLOAD = Workload(
    model=str(DEMO), prompts=("digit seven moving left", "red digit three moving right"),
    holdout=("green digit zero moving up",), height=48, width=48, frames=13, steps=6, seeds=(1,), guidance=3.0,
    flow_shift=3.0, boundary_ratio=0.875,
)  # fmt: skip
OPTIONS = {"dtype": "float32"}
# the same as WORKLOAD on the command line; vLLM-Omni's own boundary ratio is 0.875
SIZE = (
    "--height", "48", "--width", "48", "--frames", "13", "--steps", "6", "--guidance", "3", "--flow-shift", "3",
    "--seed", "1", "--engine-arg", "dtype=float32",
)  # fmt: skip
DEMO_RUN = (
    "run", "--engine", "vllm-omni", "--model", str(DEMO), *SIZE, "--prompt", WORKLOAD.prompts[0], "--prompt",
    WORKLOAD.prompts[1], "--holdout-prompt", WORKLOAD.holdout[0],
)  # fmt: skip
# for tests that import vllm: it warns of its own and its dependencies' future
VLLM_WARNS = [
    pytest.mark.filterwarnings(f"ignore::{name}") for name in ("DeprecationWarning", "FutureWarning", "UserWarning")
]


def pytest_configure(config: pytest.Config) -> None:
    if os.environ.get("FA_TUNE_EMULATE_NPU") != "1" or find_spec("vllm_omni") is None:
        raise pytest.UsageError("tests/omni runs in .venv-omni on the emulated NPU: make test-omni")


@pytest.fixture(scope="session")
def workload() -> Workload:
    return WORKLOAD


@pytest.fixture(scope="module")
def engine() -> Iterator[VllmOmniEngine]:
    """One engine start a module; each takes some twenty seconds."""
    opened = VllmOmniEngine.open(WORKLOAD, OPTIONS)
    try:
        yield opened
    finally:
        opened.close()


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installed]:
    """One store a module."""
    # by an absolute path, for the command runs in a folder of its own
    startup = str(Path(__file__).parent / "emulated_npu" / "startup")
    path = {"PYTHONPATH": os.pathsep.join((startup, os.environ.get("PYTHONPATH", "")))}
    command = Installed(tmp_path_factory.mktemp("data"), path)
    yield command
    command.close()


@pytest.fixture
def one_case() -> Workload:
    return replace(WORKLOAD, prompts=WORKLOAD.prompts[:1], holdout=())


def use_scheduler_of_vllm_omni(engine: DiffusersEngine, workload: Workload) -> None:
    """Put the scheduler that vLLM-Omni takes for Wan into a loaded engine diffusers."""
    from vllm_omni.diffusion.models.wan2_2.pipeline_wan2_2 import build_wan_scheduler

    scheduler = build_wan_scheduler("unipc", workload.flow_shift)
    scheduler.set_timesteps = partial(scheduler.set_timesteps, shift=workload.flow_shift)
    engine._pipeline.scheduler = scheduler
