"""Small recorded landscapes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import chain, combinations
from pathlib import Path

from fa_tuner.domain.measurement import METRICS, Coverage, Latency, Measurement
from fa_tuner.domain.policy import Grid, SkipPolicy
from fa_tuner.domain.selector import SkipSelector
from fa_tuner.domain.workload import Workload
from fa_tuner.engines.base import Description
from fa_tuner.engines.landscape import Landscape, Table
from fa_tuner.engines.synthetic import synthetic_landscape


def every_policy(grid: Grid, dtype: str = "fp8") -> Iterator[SkipPolicy]:
    """The native policy, then every other of the grid."""
    yield SkipPolicy()
    for steps in _subsets(range(grid.steps)):
        for layers in _subsets(grid.layers):
            policy = SkipPolicy(dtype, SkipSelector.of(steps), SkipSelector.of(layers))
            if not policy.on(grid).is_native:
                yield policy


def tabulated(
    formula: Landscape, policies: Iterable[SkipPolicy], *, timed: bool = True, workload: Workload | None = None
) -> Landscape:
    """`policies` measured on a synthetic landscape and recorded as a table."""
    work = workload or formula.workload
    return Landscape.from_measurements(
        work,
        Description(
            "synthetic", formula.grid, 2, formula.dtypes, "measured", "emulated", "none", "WanPipeline", {"x": "1"}
        ),
        [_measured(formula, work, policy, timed) for policy in policies],
        made_by="tests.support.tables",
        noise_floor_db=100.0,
        latency=formula.latency,
    )


def _measured(formula: Landscape, workload: Workload, policy: SkipPolicy, timed: bool) -> Measurement:
    found = [formula.record.quality(policy, case) for case in workload.cases]
    latency = Latency(formula.relative_latency(policy), "measured" if timed else "projected")
    return Measurement(policy, latency, tuple(q for q in found if q is not None), Coverage(0, 0, 0, True))


def _subsets(indices: Iterable[int]) -> Iterator[tuple[int, ...]]:
    pool = tuple(indices)
    return chain.from_iterable(combinations(pool, count) for count in range(len(pool) + 1))


def noisy_landscape(path: Path, floor_db: float) -> Path:
    """Two native runs of it differ by `floor_db`."""
    formula = synthetic_landscape(3, 2, prompts=2, seed=3, psnr_db={"fp8": 30.0})
    landscape = tabulated(formula, every_policy(formula.grid))
    table = landscape.record
    assert isinstance(table, Table)
    native = table.policies.index(SkipPolicy())
    values, identical = table.values.copy(), table.identical.copy()
    values[METRICS.index("psnr_db"), :, native] = floor_db
    identical[:, native] = False
    record = Table(table.policies, table.cases, values, identical, table.relative)
    replace(landscape, record=record, noise_floor_db=floor_db).write(path)
    return path
