"""Studies with chosen figures, in a store."""

from __future__ import annotations

from dataclasses import replace

from fa_tuner.domain.measurement import Constraint, Requirement
from fa_tuner.domain.study import Baseline, Evaluation, StudySpec, study_id
from fa_tuner.domain.workload import Workload
from fa_tuner.store.repository import Store
from tests.support.measured import GRID, a_measurement

STUDIES = "/api/v1/studies"
HUB_MODEL = "Wan-AI/Wan2.2-T2V-A14B-Diffusers"  # one that studies may be asked for
WORK = Workload("wan", ("prompt 0",), 480, 832, 81, GRID.steps)
ENVIRONMENT = {
    "engine": "vllm-omni", "device": "Ascend950PR (bfloat16)", "operator": "real", "pipeline": "WanPipeline",
    "steps": GRID.steps, "layers": list(GRID.layers), "versions": {"vllm-omni": "0.30.0"},
}  # fmt: skip
POLICIES = ("native", "0/", "/", "0,1/", "/0", "0/1", "1/2", "2/", "3/")


def add_study(store: Store, name: str, model: str = "wan", count: int = 0) -> str:
    """A study with `count` evaluations; its path."""
    wanted = Requirement((Constraint.parse("psnr_db>=30"),))
    spec = StudySpec(name, replace(WORK, model=model), ("fp8",), wanted, "rectangle", 0, ENVIRONMENT, "measured")
    store.create_study(spec, 10)
    for number, text in enumerate(POLICIES[:count]):
        measurement = a_measurement(
            text, 1 - 0.05 * number, 100 if text == "native" else 40 - number, source="measured"
        )
        store.add_evaluation(
            name, Evaluation(measurement.policy, "baseline" if not number else "try", number, measurement)
        )
    if count:
        store.set_baseline(name, Baseline(90.0, 10.0, 11.0))
    return f"{STUDIES}/{study_id(name)}"
