"""Domain values to rows and back, each equal to what was put in.

The way in checks before anything is written: only finite numbers, whole numbers of 64 bits, and text without NUL. The
one thing not kept is the sign of a zero, which SQLite drops.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from typing import Any

from sqlalchemy import Connection, Row, Table

from fa_tuner.domain.measurement import METRICS, CaseQuality, Constraint, Coverage, Latency, Measurement, Requirement
from fa_tuner.domain.policy import SkipPolicy, parse_dtypes
from fa_tuner.domain.selector import SkipSelector
from fa_tuner.domain.study import Baseline, Evaluation, Study, StudySpec, study_id
from fa_tuner.domain.workload import Case, Workload, fingerprint_of

Values = dict[str, Any]
# Read by the thousand, so by position: the fields of `Latency` and of `Coverage` stand in their own order.
LATENCY = tuple(
    f"latency_{name}" for name in ("relative", "source", "seconds", "spread", "repeats", "end_to_end_seconds", "detail")
)
EVALUATION = (
    "number", "dtype", "skip_steps", "skip_layers", "origin", "reason", *LATENCY,
    "quantized_calls", "native_calls", "expected_quantized_calls", "proven", "seconds", "peak_memory_mb", "detail",
)  # fmt: skip
CASE = ("prompt", "seed", "identical", *METRICS)
MAX_NAME = 200


@dataclass(frozen=True)
class FrontSnapshot:
    """The front after so many evaluations, as policy keys. `hypervolume` is in latency unit x dB."""

    evaluations: int
    policy_keys: tuple[str, ...]
    hypervolume: float
    created: datetime


def digest(text: str) -> str:
    """SHA-256 of a client's text, in hexadecimal: safe as a key and as a file name whatever the text holds."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def is_name(text: str) -> bool:
    """Whether a study can have this name: 1 to 200 characters that a database can keep."""
    return 0 < len(text) <= MAX_NAME and is_text(text)


def is_text(text: str) -> bool:
    """Whether a database can keep it as it is: no NUL, no half of a surrogate pair."""
    return legible(text) == text


# --- the way in ---------------------------------------------------------------------------------------------------


def workload_values(workload: Workload) -> Values:
    for case in workload.cases + workload.holdout_cases:
        _text("prompt", case.prompt)
    document = _json("workload", workload.document())
    return {"fingerprint": workload.fingerprint, "model": _text("model", workload.model), "document": document}


def environment_values(environment: Mapping[str, Any]) -> Values:
    document = _json("environment", environment)
    return {"fingerprint": fingerprint_of(json.loads(document)), "document": document}


def requirement_text(requirement: Requirement) -> str:
    """A requirement as it is kept."""
    constraints = [[c.metric, c.op, _finite("constraint", c.value)] for c in requirement.constraints]
    return _json("requirement", {"constraints": constraints, "aggregate": requirement.aggregate})


def study_values(spec: StudySpec) -> Values:
    """What the spec says beside its workload and environment."""
    if not is_name(spec.name):
        raise ValueError(f"study name {spec.name[:40]!r} must have 1 to {MAX_NAME} characters, none of them NUL")
    return {
        "name": spec.name,
        "study_key": study_id(spec.name),
        "dtype": _text("dtype", spec.dtype),
        "requirement": requirement_text(spec.requirement),
        "sampler": _text("sampler", spec.sampler),
        "sampler_seed": whole("sampler seed", spec.sampler_seed),
        "latency_source": spec.latency_source,
        "latency_profile": None if spec.latency_profile is None else _text("latency profile", spec.latency_profile),
    }


def state_values(state: str, reason: str) -> Values:
    return {"state": _text("state", state), "reason": legible(reason)}


def baseline_values(baseline: Baseline) -> Values:
    return {
        "noise_floor_db": _finite("noise floor", baseline.noise_floor_db),
        "native_seconds": _finite("native seconds", baseline.native_seconds),
        "native_end_to_end_seconds": _finite("native end-to-end seconds", baseline.native_end_to_end_seconds),
    }


def policy_values(policy_key: str) -> Values:
    return {"policy_key": _text("policy key", policy_key), "policy_digest": digest(policy_key)}


def evaluation_values(evaluation: Evaluation) -> Values:
    policy, measurement = evaluation.policy, evaluation.measurement
    values = {
        "number": whole("number", evaluation.number),
        **policy_values(policy.key),
        "dtype": policy.dtype,
        "skip_steps": str(policy.skip_steps),
        "skip_layers": str(policy.skip_layers),
        "origin": _text("origin", evaluation.origin),
        "reason": legible(evaluation.reason),
    }
    if measurement is None:
        return values
    if measurement.policy != policy:
        raise ValueError(f"the evaluation of {policy.key} holds a measurement of {measurement.policy.key}")
    coverage = measurement.coverage
    return {
        **values,
        **latency_values(measurement.latency),
        "quantized_calls": whole("quantized calls", coverage.quantized_calls),
        "native_calls": whole("native calls", coverage.native_calls),
        "expected_quantized_calls": whole("expected quantized calls", coverage.expected_quantized_calls),
        "proven": bool(coverage.proven),
        "seconds": _finite("seconds", measurement.seconds),
        "peak_memory_mb": _finite_or_none("peak memory", measurement.peak_memory_mb),
        "detail": _json("detail", measurement.detail),
    }


def latency_values(latency: Latency) -> Values:
    return {
        "latency_relative": _finite("relative latency", latency.relative),
        "latency_source": latency.source,
        "latency_seconds": _finite_or_none("latency", latency.seconds),
        "latency_spread": _finite("latency spread", latency.spread),
        "latency_repeats": whole("repeats", latency.repeats),
        "latency_end_to_end_seconds": _finite_or_none("end-to-end seconds", latency.end_to_end_seconds),
        "latency_detail": legible(latency.detail),
    }


def case_values(kind: str, qualities: Iterable[CaseQuality]) -> list[Values]:
    return [
        {
            "kind": kind,
            "position": position,
            "prompt": _text("prompt", quality.case.prompt),
            "seed": whole("seed", quality.case.seed),
            "identical": bool(quality.identical),
            **_metrics(quality.metrics),
        }
        for position, quality in enumerate(qualities)
    ]


def inserted(connection: Connection, table: Table, values: Values) -> int:
    """The id of a new row."""
    key = connection.execute(table.insert().values(values)).inserted_primary_key
    assert key is not None
    return int(key[0])


def front_values(policy_keys: Iterable[str], hypervolume: float) -> Values:
    return {"policy_keys": _json("policy keys", list(policy_keys)), "hypervolume": _finite("hypervolume", hypervolume)}


def whole(what: str, value: int) -> int:
    if not -(2**63) <= value < 2**63:
        raise ValueError(f"{what} does not fit 64 bits")
    return int(value)


def _metrics(metrics: Mapping[str, float]) -> Values:
    if unknown := set(metrics) - set(METRICS):
        raise ValueError(f"metric {min(unknown)!r} has no column; add a migration for it")
    return {metric: _finite(metric, metrics[metric]) for metric in METRICS}


def _finite(what: str, value: float) -> float:
    if not math.isfinite(value):
        raise ValueError(f"{what} is {value}; only finite numbers are stored")
    return float(value)


def _finite_or_none(what: str, value: float | None) -> float | None:
    return None if value is None else _finite(what, value)


def _text(what: str, value: str) -> str:
    if not is_text(value):
        raise ValueError(f"{what} {value[:40]!r} holds NUL or half a surrogate pair, which no database keeps")
    return value


def legible(text: str) -> str:
    """Free text, such as an engine's last words: odd characters must not cost the evaluation."""
    return text.encode("utf-8", "replace").decode().replace("\0", "\ufffd")


def _json(what: str, value: Any) -> str:
    try:
        return json.dumps(value, allow_nan=False, default=_plain)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{what} is not plain JSON: {error}") from error


def _plain(value: object) -> dict[str, Any]:
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"a {type(value).__name__}")


# --- the way out --------------------------------------------------------------------------------------------------


def study_of(row: Row[Any]) -> Study:
    """From a row of `studies` with `workload` and `environment`, the two documents."""
    requirement = json.loads(row.requirement)
    spec = StudySpec(
        name=row.name,
        workload=Workload.from_document(json.loads(row.workload)),
        dtypes=parse_dtypes(row.dtype),
        requirement=Requirement(tuple(Constraint(*c) for c in requirement["constraints"]), requirement["aggregate"]),
        sampler=row.sampler,
        sampler_seed=row.sampler_seed,
        environment=json.loads(row.environment),
        latency_source=row.latency_source,
        latency_profile=row.latency_profile,
    )
    baseline = None
    if row.noise_floor_db is not None:
        baseline = Baseline(row.noise_floor_db, row.native_seconds, row.native_end_to_end_seconds)
    return Study(spec, row.state, row.created, row.updated, row.target, row.reason, baseline)


def evaluation_of(row: Sequence[Any], search: Iterable[CaseQuality], holdout: Iterable[CaseQuality]) -> Evaluation:
    """From the columns that `EVALUATION` names."""
    number, dtype, skip_steps, skip_layers, origin, reason, *measured = row
    policy = SkipPolicy(dtype, _selector_of(skip_steps), _selector_of(skip_layers))
    measurement = None
    if measured[0] is not None:
        latency, coverage, (seconds, peak_memory_mb, detail) = measured[:7], measured[7:11], measured[11:]
        measurement = Measurement(
            policy, Latency(*latency), tuple(search), Coverage(*coverage), tuple(holdout), seconds, peak_memory_mb,
            json.loads(detail),
        )  # fmt: skip
    return Evaluation(policy, origin, number, measurement, reason)


@lru_cache(maxsize=4096)  # policies of a study share many of them
def _selector_of(text: str) -> SkipSelector:
    return SkipSelector.parse(text)


def latency_tuple(latency: Latency) -> tuple[Any, ...]:
    """What the columns that `LATENCY` names have for it."""
    return (
        latency.relative, latency.source, latency.seconds, latency.spread, latency.repeats,
        latency.end_to_end_seconds, latency.detail,
    )  # fmt: skip


def case_of(row: Sequence[Any]) -> CaseQuality:
    """From the columns that `CASE` names."""
    prompt, seed, identical, *values = row
    return CaseQuality(_case_of(prompt, seed), dict(zip(METRICS, values, strict=True)), identical)


@lru_cache(maxsize=1024)  # all policies of a study have the same
def _case_of(prompt: str, seed: int) -> Case:
    return Case(prompt, seed)


def front_of(row: Row[Any]) -> FrontSnapshot:
    return FrontSnapshot(row.evaluations, tuple(json.loads(row.policy_keys)), row.hypervolume, row.created)
