"""What holds for every exporter."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from fa_tuner.domain.errors import NothingQualifiesError, UsageError
from fa_tuner.domain.measurement import METRICS, CaseQuality, Coverage, Latency, Measurement, Requirement
from fa_tuner.domain.policy import SkipPolicy
from fa_tuner.domain.selector import SkipSelector
from fa_tuner.domain.study import Evaluation, Recommendation, Study, StudySpec
from fa_tuner.domain.workload import Workload
from fa_tuner.export import EXPORTERS, Exporter, exporter

POLICIES = [
    SkipPolicy("fp8"),
    SkipPolicy("fp8", SkipSelector((0,)), SkipSelector()),
    SkipPolicy("mxfp8", SkipSelector(), SkipSelector((3,))),
    SkipPolicy("mxfp4", SkipSelector((0, 1, 3, 9)), SkipSelector((0, 1, 2, 5))),
]


def recommend(policy: SkipPolicy) -> Recommendation:
    workload = Workload("tiny", ("a cat",), height=64, width=64, frames=5, steps=10)
    environment: dict[str, Any] = {"steps": 10, "layers": list(range(6))}  # an engine may tell no more
    spec = StudySpec("tiny", workload, (policy.dtype,), Requirement(()), "ours", 0, environment, "measured")
    cases = tuple(CaseQuality(case, dict.fromkeys(METRICS, 1.0)) for case in workload.cases)
    measurement = Measurement(policy, Latency(0.9, "measured"), cases, Coverage(1, 0, 1, True))
    when = datetime(2026, 11, 5, tzinfo=UTC)
    study = Study(spec, "finished", when, when)
    return Recommendation(study, Evaluation(policy, "sampler", 0, measurement), measurement, spec.requirement)


@pytest.fixture(params=sorted(EXPORTERS))
def each(request: pytest.FixtureRequest) -> Exporter:
    return exporter(request.param)


@pytest.mark.parametrize("policy", POLICIES, ids=str)
@pytest.mark.parametrize("stage_id", [0, 1, 999])
def test_reads_back_what_was_recommended(each: Exporter, policy: SkipPolicy, stage_id: int) -> None:
    found = each.read_back(each.export(recommend(policy), stage_id), stage_id)
    assert found == {
        "diffusion_kv_cache_dtype": policy.dtype,
        "diffusion_kv_cache_skip_steps": str(policy.skip_steps),
        "diffusion_kv_cache_skip_layers": str(policy.skip_layers),
    }


def test_is_deterministic_and_ends_in_a_newline(each: Exporter) -> None:
    text = each.export(recommend(POLICIES[3]))
    assert text == each.export(recommend(POLICIES[3]))
    assert text.endswith("\n")
    assert "\r" not in text
    assert text.startswith("# >>> fa-tune, stage 0 >>>\n")


@pytest.mark.parametrize(
    "policy",
    [
        SkipPolicy(),
        SkipPolicy("fp8", SkipSelector.of(range(10))),
        SkipPolicy("fp8", skip_layers=SkipSelector.of(range(6))),
    ],
)
def test_refuses_what_quantizes_nothing(each: Exporter, policy: SkipPolicy) -> None:
    with pytest.raises(NothingQualifiesError, match="native policy"):
        each.export(recommend(policy))


def test_refuses_what_was_only_predicted(each: Exporter) -> None:
    timed = recommend(SkipPolicy("fp8"))
    fitted = replace(timed, measurement=replace(timed.measurement, latency=Latency(0.9, "fitted", spread=0.01)))
    with pytest.raises(NothingQualifiesError, match="is only fitted, and a prediction is not exported; run the study"):
        each.export(fitted)


@pytest.mark.parametrize("stage_id", [-1, 1000])
def test_refuses_a_stage_out_of_range(each: Exporter, stage_id: int) -> None:
    with pytest.raises(UsageError, match="stage id"):
        each.export(recommend(POLICIES[0]), stage_id)


def test_does_not_change_its_input(each: Exporter) -> None:
    recommendation = recommend(POLICIES[3])
    copy = replace(recommendation)
    each.export(recommendation)
    assert recommendation == copy
