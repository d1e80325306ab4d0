"""A study and its evaluations, as they are stored and as they are recommended."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal

from fa_tuner.domain.errors import UsageError
from fa_tuner.domain.measurement import CaseQuality, LatencySource, Measurement, Requirement
from fa_tuner.domain.policy import Grid, SkipPolicy
from fa_tuner.domain.workload import Workload

# anchor: everything quantized; try: the user's own; sampler: one of Optuna's. Of our sampler: preset (head and tail
# schedules), predicted (of the predicted front), probe (of a front that is possible, too), exchange (next to the
# measured front).
Origin = Literal["baseline", "anchor", "try", "preset", "predicted", "probe", "exchange", "sampler"]
MAX_NAME = 200
# unproven: quantization did not take effect somewhere, so no figure of the study can be trusted
StudyState = Literal["running", "finished", "interrupted", "failed", "unproven"]


def study_id(name: str) -> str:
    """What a study goes by in a URL: a name may hold any printable character, "/" too. 16 hexadecimal digits of its
    SHA-256, so the same in every store."""
    return hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def check_name(name: str) -> None:
    """
    Raises:
        UsageError: no study can have this name.
    """
    if not name.strip() or len(name) > MAX_NAME or not name.isprintable():
        raise UsageError(
            f"study name {name[:40]!a} is empty, longer than {MAX_NAME} characters, or holds control "
            "characters; choose another --study"
        )


@dataclass(frozen=True)
class StudySpec:
    """What a study is: fixed when it is created. `environment` is `engines.base.Description.environment`;
    `latency_profile` is the device profile's name where latency is projected."""

    name: str
    workload: Workload
    dtypes: tuple[str, ...]
    requirement: Requirement
    sampler: str
    sampler_seed: int
    environment: Mapping[str, Any]
    latency_source: LatencySource
    latency_profile: str | None = None

    @property
    def dtype(self) -> str:
        """The dtypes as they are written: "fp8" or "fp8,mxfp4"."""
        return ",".join(self.dtypes)

    @property
    def grid(self) -> Grid:
        return Grid(self.environment["steps"], tuple(self.environment["layers"]))


def differing(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """Where two environments differ: a name, such as "device" or "settings scheduler" for what is nested, with what
    each has there, "absent" where it has nothing."""
    a, b = dict(_flat(one)), dict(_flat(other))
    return [
        (name, a.get(name, "absent"), b.get(name, "absent"))
        for name in {**a, **b}
        if not (name in a and name in b and a[name] == b[name])
    ]


def _flat(values: Mapping[str, Any], outer: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{outer}{key} ")
        else:
            yield f"{outer}{key}", value


@dataclass(frozen=True)
class Baseline:
    """The native run, twice. `noise_floor_db` is the worst case's PSNR of the second run against the first
    (100 dB where they are identical); `native_seconds` the denoising time summed over the searched cases."""

    noise_floor_db: float
    native_seconds: float
    native_end_to_end_seconds: float


@dataclass(frozen=True)
class Study:
    """A stored study. `reason` says why it stopped, `updated` when its last figure was stored."""

    spec: StudySpec
    state: StudyState
    created: datetime
    updated: datetime
    target: int = 0
    reason: str = ""
    baseline: Baseline | None = None


@dataclass(frozen=True, slots=True)
class Evaluation:
    """One policy of one study, measured once. A failed one has no measurement but a reason.
    `number` counts from 0 in the order of evaluation."""

    policy: SkipPolicy
    origin: Origin
    number: int
    measurement: Measurement | None = None
    reason: str = ""

    @property
    def failed(self) -> bool:
        return self.measurement is None


@dataclass(frozen=True)
class Difference:
    """One thing in which a stored study is not what was asked for."""

    field: str
    asked: str | int | bool
    stored: str | int | bool


@dataclass(frozen=True)
class Recommendation:
    """One measured policy that answers a question, with its evidence."""

    study: Study
    evaluation: Evaluation
    measurement: Measurement
    requirement: Requirement
    holdout_met: bool | None = None  # None where no held-out prompt was generated
    notes: tuple[str, ...] = field(default_factory=tuple)
    differences: tuple[Difference, ...] = ()  # where the nearest study answers, as none matched

    @property
    def policy(self) -> SkipPolicy:
        return self.measurement.policy

    @property
    def holdout(self) -> tuple[CaseQuality, ...]:
        return self.measurement.holdout
