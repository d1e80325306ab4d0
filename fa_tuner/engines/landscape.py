"""Landscapes: what policies did to one workload, recorded in a file. docs/landscapes.md describes the format."""

from __future__ import annotations

import gzip
import json
import math
import os
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from fa_tuner.domain.errors import DocumentError
from fa_tuner.domain.measurement import METRICS, CaseQuality, Measurement
from fa_tuner.domain.policy import DTYPES, Grid, SkipPolicy
from fa_tuner.domain.selector import SkipSelector
from fa_tuner.domain.workload import Case, Workload
from fa_tuner.engines.base import Description, Shadow

FORMAT = "fa-tune-landscape"
VERSION = 1
_KINDS: dict[type, str] = {dict: "an object", list: "a list", str: "text", int: "a whole number", float: "a number"}

Numbers = npt.NDArray[np.float64]
Shadows = Mapping[Case, Mapping[Shadow, float]]


class Record(Protocol):
    """Where a landscape's answers come from: a table of measured policies, or a formula."""

    @property
    def cases(self) -> tuple[Case, ...]: ...

    @property
    def policies(self) -> tuple[SkipPolicy, ...] | None:
        """The recorded policies; None where every policy of the grid has an answer."""

    def quality(self, policy: SkipPolicy, case: Case) -> CaseQuality | None:
        """What the canonical `policy` does to `case`; None where that was not recorded."""

    def relative_latency(self, policy: SkipPolicy) -> float | None:
        """Measured denoising time over the native policy's; None where that was not recorded."""

    def shadow(self, shadow: Shadow, case: Case) -> float | None:
        """What a formula answers to a shadow beside the native run; None where it has none."""

    def document(self) -> dict[str, Any]: ...


@dataclass(frozen=True)
class LatencyModel:
    """Times of one generation. `attention_share` is the share of native denoising spent in the self-attention of
    the grid, `attention_ratio` the time of quantized attention over native attention, by dtype."""

    native_denoise_seconds: float
    native_end_to_end_seconds: float
    attention_share: float
    attention_ratio: Mapping[str, float]

    def __post_init__(self) -> None:
        if not 0 < self.native_denoise_seconds <= self.native_end_to_end_seconds < math.inf:
            raise DocumentError("latency: seconds must be finite and above 0, end to end not below denoising")
        if not 0 <= self.attention_share < 1:
            raise DocumentError(f"latency.attention_share is {self.attention_share}; it must be 0 or above and below 1")
        for dtype, ratio in self.attention_ratio.items():
            if dtype not in DTYPES or not 0 < ratio < 100:
                raise DocumentError(
                    f"latency.attention_ratio.{dtype[:20]} is {ratio}; dtypes are {', '.join(DTYPES)}, ratios above 0"
                )

    def relative(self, policy: SkipPolicy, grid: Grid) -> float:
        """1 - attention share x share of the cells quantized x (1 - ratio): the time of `policy` over native's."""
        if policy.is_native:
            return 1.0
        return 1.0 - self.attention_share * policy.share(grid) * (1.0 - self.attention_ratio[policy.dtype])

    def document(self) -> dict[str, Any]:
        return {
            "native_denoise_seconds": self.native_denoise_seconds,
            "native_end_to_end_seconds": self.native_end_to_end_seconds,
            "attention_share": self.attention_share,
            "attention_ratio": dict(self.attention_ratio),
        }


@dataclass(frozen=True, eq=False)
class Table:
    """Measured policies. `values` is [metric, case, policy] in the order of `METRICS`, NaN where that case of that
    policy was not measured; `identical` [case, policy]; `relative` [policy], NaN where no latency was measured."""

    policies: tuple[SkipPolicy, ...]
    cases: tuple[Case, ...]
    values: Numbers
    identical: npt.NDArray[np.bool_]
    relative: Numbers
    _columns: dict[str, int] = field(init=False, repr=False, default_factory=dict)
    _rows: dict[Case, int] = field(init=False, repr=False, default_factory=dict)

    def __post_init__(self) -> None:
        self._columns.update((policy.key, column) for column, policy in enumerate(self.policies))
        self._rows.update((case, row) for row, case in enumerate(self.cases))

    def quality(self, policy: SkipPolicy, case: Case) -> CaseQuality | None:
        row, column = self._rows.get(case), self._columns.get(policy.key)
        if row is not None and column is not None and not np.isnan(self.values[0, row, column]):
            metrics = dict(zip(METRICS, self.values[:, row, column].tolist(), strict=True))
            return CaseQuality(case, metrics, bool(self.identical[row, column]))
        return CaseQuality.of_identical(case) if row is not None and policy.is_native else None

    def relative_latency(self, policy: SkipPolicy) -> float | None:
        column = self._columns.get(policy.key)
        value = math.nan if column is None else float(self.relative[column])
        return None if math.isnan(value) else value

    def shadow(self, shadow: Shadow, case: Case) -> None:
        """Recorded ones stand beside the table."""
        return

    def document(self) -> dict[str, Any]:
        return {
            "policies": list(self._columns),
            "cases": [{"prompt": case.prompt, "seed": case.seed} for case in self.cases],
            "metrics": {name: [_written(row) for row in self.values[i]] for i, name in enumerate(METRICS)},
            "identical": [np.flatnonzero(row).tolist() for row in self.identical],
            "relative_latency": _written(self.relative),
        }


@dataclass(frozen=True, eq=False)
class Landscape:
    """One workload, and what each recorded policy did to it. `environment` is that of the engine which made the
    record; `made_by` says in words how; `noise_floor_db` is the PSNR of native against native; `shadows` are those
    recorded beside the native run (`Generation.shadows`)."""

    workload: Workload
    environment: Mapping[str, Any]
    dtypes: tuple[str, ...]
    made_by: str
    noise_floor_db: float
    latency: LatencyModel
    record: Record
    shadows: Shadows = field(default_factory=dict)

    @property
    def grid(self) -> Grid:
        return Grid(self.environment["steps"], tuple(self.environment["layers"]))

    @property
    def size(self) -> int:
        """How many policies are recorded; every policy of the grid and its dtypes counts where a formula answers."""
        if self.record.policies is not None:
            return len(self.record.policies)
        steps, layers = self.grid.steps, len(self.grid.layers)
        return 1 + len(self.dtypes) * ((1 << steps) - 1) * ((1 << layers) - 1)

    def relative_latency(self, policy: SkipPolicy) -> float:
        """The measured one, else that of the latency model."""
        measured = self.record.relative_latency(policy)
        return self.latency.relative(policy, self.grid) if measured is None else measured

    def shadow(self, shadow: Shadow, case: Case) -> float | None:
        """The recorded answer, else that of the formula; None where there is neither."""
        recorded = self.shadows.get(case, {}).get(shadow)
        return self.record.shadow(shadow, case) if recorded is None else recorded

    @property
    def has_shadows(self) -> bool:
        everything = Shadow(0, self.grid.layers, self.dtypes[0])
        return any(self.shadows.values()) or self.record.shadow(everything, self.record.cases[0]) is not None

    @classmethod
    def from_measurements(
        cls, workload: Workload, description: Description, measurements: Iterable[Measurement], *,
        made_by: str, noise_floor_db: float, latency: LatencyModel, shadows: Shadows | None = None,
    ) -> Landscape:  # fmt: skip
        """A recorded table; held-out cases are kept where they were measured, latencies where their source is
        `measured`.

        Raises:
            DocumentError: a policy twice, or a case that the workload does not have.
        """
        kept = list(measurements)
        cases = workload.cases + workload.holdout_cases
        rows = {case: row for row, case in enumerate(cases)}
        values = np.full((len(METRICS), len(cases), len(kept)), np.nan)
        identical = np.zeros((len(cases), len(kept)), dtype=np.bool_)
        relative = np.full(len(kept), np.nan)
        policies: dict[SkipPolicy, None] = {}
        for column, measurement in enumerate(kept):
            policy = measurement.policy.on(description.grid)
            if policy in policies:
                raise DocumentError(f"policy {policy.key} was measured twice; a landscape holds each policy once")
            policies[policy] = None
            for quality in (*measurement.cases, *measurement.holdout):
                if (row := rows.get(quality.case)) is None:
                    raise DocumentError(f"{named(quality.case)} of policy {policy.key} is not in the workload")
                values[:, row, column] = [quality.metrics[name] for name in METRICS]
                identical[row, column] = quality.identical
            if measurement.latency.source == "measured":
                relative[column] = measurement.latency.relative
        table = Table(tuple(policies), cases, values, identical, relative)
        return cls(
            workload, description.environment, description.dtypes, made_by, noise_floor_db, latency, table,
            shadows or {},
        )  # fmt: skip

    @classmethod
    def joined(cls, parts: Sequence[Landscape]) -> Landscape:
        """Tables of one workload in one environment, each of other dtypes, as one.

        Raises:
            DocumentError: they are not.
        """
        first, tables = parts[0], [part.record for part in parts]
        dtypes = tuple(dtype for part in parts for dtype in part.dtypes)
        alike = all((p.workload, p.environment) == (first.workload, first.environment) for p in parts)
        recorded = [table for table in tables if isinstance(table, Table)]
        if not alike or len(recorded) < len(parts) or len(set(dtypes)) < len(dtypes):
            raise DocumentError(
                "landscapes join that are recorded, of one workload, in one environment and of different dtypes"
            )
        policies = [policy for one in recorded for policy in one.policies]
        kept = [i for i, policy in enumerate(policies) if not policy.is_native or policies.index(policy) == i]
        table = Table(
            tuple(policies[i] for i in kept), recorded[0].cases,
            np.concatenate([one.values for one in recorded], axis=2)[:, :, kept],
            np.concatenate([one.identical for one in recorded], axis=1)[:, kept],
            np.concatenate([one.relative for one in recorded])[kept],
        )  # fmt: skip
        ratios = {dtype: ratio for part in parts for dtype, ratio in part.latency.attention_ratio.items()}
        shadows = {case: {s: v for p in parts for s, v in p.shadows.get(case, {}).items()} for case in table.cases}
        return cls(
            first.workload, first.environment, dtypes, "; ".join(dict.fromkeys(part.made_by for part in parts)),
            min(part.noise_floor_db for part in parts), replace(first.latency, attention_ratio=ratios), table, shadows,
        )  # fmt: skip

    @classmethod
    def read(cls, path: str | Path) -> Landscape:
        """
        Raises:
            NotFoundError: there is no such file.
            DocumentError: it is not a landscape, with what is wrong and where.
        """
        from fa_tuner.engines.landscape_file import read_landscape  # which imports this module

        return read_landscape(Path(path))

    def write(self, path: str | Path) -> None:
        """Write the file whole or not at all; compressed where the name ends in `.gz`."""
        target = Path(path)
        text = json.dumps(self.document(), ensure_ascii=True, allow_nan=False, separators=(",", ":")).encode()
        data = gzip.compress(text, compresslevel=6, mtime=0) if target.suffix == ".gz" else text
        handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            Path(name).chmod(0o644)  # mkstemp's 0600 is for secrets
            Path(name).replace(target)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise

    def document(self) -> dict[str, Any]:
        """The landscape as plain JSON values."""
        section = "evaluations" if self.record.policies is not None else "synthetic"
        return {
            "format": FORMAT,
            "version": VERSION,
            "workload": self.workload.document(),
            "environment": {**self.environment, "dtypes": list(self.dtypes)},
            "made_by": self.made_by,
            "noise_floor_db": self.noise_floor_db,
            "latency": self.latency.document(),
            section: self.record.document(),
            **({"shadows": _shadows_document(self.shadows, self.record.cases)} if any(self.shadows.values()) else {}),
        }


def take(document: Mapping[str, Any], where: str, name: str, *kinds: type) -> Any:
    """`document[name]`, which must be of one of the `kinds` (a bool is no number, a number must be finite)."""
    at = f"{where}.{name}" if where else name
    if name not in document:
        raise DocumentError(f"{at} is missing")
    value = document[name]
    if type(value) not in kinds:
        raise DocumentError(f"{at} is {ascii(value)[:40]}; it must be {_KINDS[kinds[0]]}")
    if type(value) in (int, float) and not abs(value) < 1e300:  # also not NaN
        raise DocumentError(f"{at} is not a finite number")
    return value


def only(document: Mapping[str, Any], where: str, names: Iterable[str]) -> None:
    """Refuse keys that this version does not have: they are typing errors, or of a later version."""
    if odd := sorted(set(document) - set(names)):
        raise DocumentError(f"{where or 'the document'} has an unknown key {ascii(odd[0])[:40]}")


def named(case: Case) -> str:
    return f"prompt {case.prompt[:40]!a} with seed {case.seed}"


def _shadows_document(shadows: Shadows, cases: Iterable[Case]) -> dict[str, Any]:
    probes = sorted({shadow for answers in shadows.values() for shadow in answers})
    return {
        "probes": [[shadow.dtype, shadow.step, str(SkipSelector.of(shadow.layers))] for shadow in probes],
        "values": [
            _written(np.array([shadows.get(case, {}).get(shadow, math.nan) for shadow in probes])) for case in cases
        ],
    }


def _written(numbers: Numbers) -> list[float | None]:
    """Nine digits, which is more than any metric has; null where nothing was measured."""
    return [None if value != value else float(f"{value:.9g}") for value in numbers.tolist()]
