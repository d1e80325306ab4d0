"""Policies worth trying before any sampler: anchors, and the head-and-tail schedules that people use by hand."""

from __future__ import annotations

from collections.abc import Iterator

from fa_tuner.domain.policy import Grid, SkipPolicy
from fa_tuner.domain.selector import SkipSelector


def all_quantized(dtype: str) -> SkipPolicy:
    return SkipPolicy(dtype)


def presets(dtype: str, grid: Grid) -> Iterator[SkipPolicy]:
    """First, last, and first and last steps native, one then two of each: what vLLM-Omni 3505 and 7210 and
    xDiT's hybrid schedules ask for. Which end matters differs by model, so both are tried."""
    last = grid.steps - 1
    for depth in (1, 2):
        head, tail = range(depth), range(grid.steps - depth, grid.steps)
        for steps in (head, tail, (*head, *tail)):
            policy = SkipPolicy(dtype, SkipSelector.of(i for i in steps if 0 <= i <= last)).on(grid)
            if not policy.is_native:
                yield policy
