"""Recommendations to export; built from domain values alone."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest

from fa_tuner.domain.measurement import METRICS, CaseQuality, Constraint, Coverage, Latency, Measurement, Requirement
from fa_tuner.domain.policy import SkipPolicy
from fa_tuner.domain.selector import SkipSelector
from fa_tuner.domain.study import Baseline, Evaluation, Recommendation, Study, StudySpec
from fa_tuner.domain.workload import Case, Workload

STEPS, LAYERS = 40, 30
Make = Callable[..., Recommendation]


def quality(prompt: str, seed: int, psnr: float) -> CaseQuality:
    metrics = dict.fromkeys(METRICS, 0.5) | {"psnr_db": psnr, "mse": 255.0**2 / 10 ** (psnr / 10)}
    return CaseQuality(Case(prompt, seed), metrics | {"worst_frame_psnr_db": psnr - 1.5})


def build(
    steps: str = "0,1,38,39",
    layers: str = "0-2",
    dtype: str = "fp8",
    prompts: tuple[str, ...] = ("a cat walks over wet grass", "城市夜景 霓虹灯"),
    holdout: bool = True,
    latency: Latency | None = None,
    notes: tuple[str, ...] = (),
    environment: dict[str, Any] | None = None,
) -> Recommendation:
    workload = Workload(
        model="Wan-AI/Wan2.2-T2V-A14B-Diffusers", revision="5be7df9619b54f4e2667b2755bc6a756675b5cd7", prompts=prompts,
        holdout=("a dog on a beach",) if holdout else (), height=720, width=1280, frames=61, steps=STEPS,
        seeds=(0, 7), guidance=5.0, guidance_2=3.0, flow_shift=5.0,
    )  # fmt: skip
    spec = StudySpec(
        name="wan22",
        workload=workload,
        dtypes=("fp8",),
        requirement=Requirement((Constraint.parse("psnr_db>=25"),)),
        sampler="ours",
        sampler_seed=0,
        environment={
            "engine": "diffusers", "device": "cpu", "operator": "emulated", "pipeline": "WanPipeline",
            "steps": STEPS, "layers": list(range(LAYERS)), "calls_per_cell": 2,
            "versions": {"torch": "2.13.0", "diffusers": "0.40.0"},
        } | (environment or {}),
        latency_source="projected",
        latency_profile="ascend-950",
    )  # fmt: skip
    policy = SkipPolicy(dtype, SkipSelector.parse(steps, STEPS, "step"), SkipSelector.parse(layers, LAYERS, "layer"))
    measurement = Measurement(
        policy,
        latency or Latency(0.8125, "projected", seconds=93.5, spread=0.004, repeats=3),
        tuple(quality(case.prompt, case.seed, 31.0 + number) for number, case in enumerate(workload.cases)),
        Coverage(100, 20, 100, True),
        tuple(quality(case.prompt, case.seed, 29.5) for case in workload.holdout_cases),
    )
    when = datetime(2026, 11, 5, 12, 30, tzinfo=UTC)
    study = Study(spec, "finished", when, when, baseline=Baseline(48.25, 115.0, 140.0))
    evaluation = Evaluation(policy, "sampler", 7, measurement)
    return Recommendation(study, evaluation, measurement, spec.requirement, True if holdout else None, notes)


@pytest.fixture(autouse=True)
def version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fa_tuner.export.header.fa_tune_version", lambda: "0.1.0")


@pytest.fixture(scope="session")
def make() -> Make:
    return build
