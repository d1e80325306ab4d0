"""Results as JSON documents, the same in `--json` and in the service. Every number is finite."""

from __future__ import annotations

from typing import Any

from fa_tuner.domain.measurement import Aggregate, CaseQuality, Measurement, aggregate
from fa_tuner.domain.policy import Grid, SkipPolicy
from fa_tuner.domain.study import Difference, Evaluation, Recommendation, Study, study_id
from fa_tuner.domain.workload import fingerprint_of
from fa_tuner.evaluate.latency_fit import LatencyFit, fit_latencies
from fa_tuner.recommend.choice import Candidate, candidates, missing, pareto_front, ranked
from fa_tuner.report.sensitivity import shadow_agreement
from fa_tuner.store.rows import digest


def policy_document(policy: SkipPolicy, grid: Grid) -> dict[str, Any]:
    return {
        "id": digest(policy.key),  # what it goes by in a URL
        "dtype": policy.dtype,
        "skip_steps": str(policy.skip_steps),
        "skip_layers": str(policy.skip_layers),
        "native": policy.is_native,
        "share_quantized": policy.share(grid),
    }


def _case_document(quality: CaseQuality) -> dict[str, Any]:
    return {
        "prompt": quality.case.prompt, "seed": quality.case.seed, "identical": quality.identical,
        "metrics": dict(quality.metrics),
    }  # fmt: skip


def measurement_document(measurement: Measurement, how: Aggregate) -> dict[str, Any]:
    latency, coverage = measurement.latency, measurement.coverage
    document: dict[str, Any] = {
        "latency": {
            "source": latency.source, "relative": latency.relative, "gain": latency.gain, "spread": latency.spread,
            "repeats": latency.repeats, "detail": latency.detail,
        },
        "psnr_db": aggregate(measurement.cases, "psnr_db", how),
        "ssim": aggregate(measurement.cases, "ssim", how),
        "aggregate": how,
        "prompts": [_case_document(case) for case in measurement.cases],
        "holdout_prompts": [_case_document(case) for case in measurement.holdout],
        "coverage": {
            "proven": coverage.proven, "quantized_calls": coverage.quantized_calls,
            "native_calls": coverage.native_calls,
        },
        "seconds": measurement.seconds,
        "detail": dict(measurement.detail),
    }  # fmt: skip
    # a number is promised wherever a key is there, so what is not known is left out
    for key, value in (("seconds", latency.seconds), ("end_to_end_seconds", latency.end_to_end_seconds)):
        if value is not None:
            document["latency"][key] = value
    if measurement.peak_memory_mb is not None:
        document["peak_memory_mb"] = measurement.peak_memory_mb
    return document


def evaluation_document(evaluation: Evaluation, study: Study) -> dict[str, Any]:
    document: dict[str, Any] = {
        "number": evaluation.number,
        "origin": evaluation.origin,
        "policy": policy_document(evaluation.policy, study.spec.grid),
        "failed": evaluation.failed,
    }
    if evaluation.measurement is None:
        return {**document, "reason": evaluation.reason}
    how = study.spec.requirement.aggregate
    return {**document, **measurement_document(evaluation.measurement, how)}


def study_document(study: Study, evaluated: int) -> dict[str, Any]:
    """`evaluated` counts the policies measured, the native one not among them."""
    spec = study.spec
    document: dict[str, Any] = {
        "study": spec.name, "id": study_id(spec.name), "state": study.state, "reason": study.reason,
        "target": study.target, "evaluated": evaluated, "dtype": spec.dtype,
        "requirement": [str(c) for c in spec.requirement.constraints], "aggregate": spec.requirement.aggregate,
        "sampler": spec.sampler, "sampler_seed": spec.sampler_seed,
        "latency_source": spec.latency_source, "workload": spec.workload.document(),
        "workload_fingerprint": spec.workload.fingerprint, "environment": dict(spec.environment),
        "created": study.created.isoformat(), "updated": study.updated.isoformat(),
    }  # fmt: skip
    if spec.latency_profile is not None:
        document["latency_profile"] = spec.latency_profile
    if study.baseline is not None:
        document["noise_floor_db"] = study.baseline.noise_floor_db
    return document


def fits_of(study: Study, evaluations: list[Evaluation]) -> list[LatencyFit]:
    """The fits over the timed policies, one a dtype; none where latency is not measured, or too few were timed."""
    spec, measured = study.spec, study.spec.latency_source == "measured"
    return list(fit_latencies(evaluations, spec.dtypes, spec.grid).values()) if measured else []


def fit_document(fit: LatencyFit) -> dict[str, Any]:
    """`rms` and `worst` of the residuals, in shares of native latency."""
    return {
        "dtype": fit.dtype, "timed": fit.timed, "overhead": fit.overhead, "saving": fit.saving, "rms": fit.rms,
        "worst": fit.worst, "holds": fit.holds, "doubt": fit.doubt,
    }  # fmt: skip


def searched_document(study: Study, evaluations: list[Evaluation]) -> dict[str, Any]:
    """A study, what the search cost, how far its predictions of latency and of quality were right, where it made any,
    and how many policies belong on the front by a fitted latency, and were not timed yet."""
    document = study_document(study, sum(not e.policy.is_native for e in evaluations))
    known = [e.measurement for e in evaluations if e.measurement is not None]
    document["generation_equivalents"] = sum(m.generations(study.spec.grid.steps) for m in known)
    if fits := fits_of(study, evaluations):
        document["latency_fits"] = [fit_document(fit) for fit in fits]
    if agreed := shadow_agreement(study, evaluations):
        document["shadow_agreement"] = agreed
    if untimed := untimed_of(study, evaluations):
        document["front_untimed"] = untimed
    return document


def untimed_of(study: Study, evaluations: list[Evaluation]) -> int:
    """How many policies belong on the front by a latency that is only fitted."""
    return len(missing(candidates(evaluations), study.spec.requirement.aggregate))


def front_of(study: Study, evaluations: list[Evaluation]) -> list[Candidate]:
    """The Pareto front, fastest first: of one kind of latency, so without those that are only fitted."""
    return pareto_front(candidates(evaluations), study.spec.requirement.aggregate)


def result_document(study: Study, evaluations: list[Evaluation]) -> dict[str, Any]:
    """A study with its front, and its recommended policy where there is one."""
    wanted = study.spec.requirement
    order = ranked(candidates(evaluations), wanted)
    document = searched_document(study, evaluations)
    document["front"] = [point_document(c, study) for c in front_of(study, evaluations)]
    if order:
        document["recommended"] = evaluation_document(order[0].evaluation, study)
    return document


def point_document(candidate: Candidate, study: Study) -> dict[str, Any]:
    """A policy on the front, and whether it meets the study's requirement, on held-out prompts too where it was run."""
    wanted = study.spec.requirement
    document = evaluation_document(candidate.evaluation, study)
    document["feasible"] = wanted.met_by(candidate.measurement.cases)
    if (held := candidate.holdout_met(wanted)) is not None:
        document["holdout_met"] = held
    return document


def difference_document(difference: Difference) -> dict[str, Any]:
    return {"field": difference.field, "asked": difference.asked, "stored": difference.stored}


def recommendation_document(recommendation: Recommendation) -> dict[str, Any]:
    study, spec = recommendation.study, recommendation.study.spec
    how = recommendation.requirement.aggregate
    return {
        "model": spec.workload.model,
        "study": spec.name,
        "study_id": study_id(spec.name),
        "verified": not recommendation.differences,
        "differences": [difference_document(each) for each in recommendation.differences],
        "policy": policy_document(recommendation.policy, spec.grid),
        **measurement_document(recommendation.measurement, how),
        "worst_psnr_db": recommendation.measurement.psnr_db(),
        "requirement": [str(c) for c in recommendation.requirement.constraints],
        "holdout": {None: "not checked", True: "passed", False: "failed"}[recommendation.holdout_met],
        "noise_floor_db": study.baseline.noise_floor_db if study.baseline else 0.0,
        "holds_for": {
            "steps": spec.workload.steps, "height": spec.workload.height, "width": spec.workload.width,
            "frames": spec.workload.frames, "guidance": spec.workload.guidance, "task": spec.workload.task,
        },
        "environment": dict(spec.environment),
        "environment_fingerprint": fingerprint_of(spec.environment),
        "workload_fingerprint": spec.workload.fingerprint,
        "measured": study.updated.isoformat(),
        "notes": list(recommendation.notes),
    }  # fmt: skip
