"""Shadow probes: which to ask for beside the baseline, and what they say of the cells."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from fa_tuner.domain.policy import Grid
from fa_tuner.engines.base import Shadow
from fa_tuner.search.space import Numbers, Space

SINGLED_STEPS = 2  # steps at which each layer is asked for alone


def worth_asking(space: Space) -> tuple[Shadow, ...]:
    """Of each dtype all layers at every step, and each layer alone at `SINGLED_STEPS` steps spread over the denoising:
    together 1 + 2 N / T generations a dtype, for T steps and N layers."""
    grid = space.grid
    singled = sorted({math.floor((i + 0.5) * grid.steps / SINGLED_STEPS) for i in range(SINGLED_STEPS)})
    alone = [(step, (layer,)) for step in singled for layer in grid.layers if len(grid.layers) > 1]
    together = [(step, grid.layers) for step in range(grid.steps)]
    return tuple(Shadow(step, layers, dtype) for dtype in space.dtypes for step, layers in (*together, *alone))


def cost(shadows: Sequence[Shadow], grid: Grid) -> float:
    """In generations: each is one transformer forward of the grid's steps."""
    return len(shadows) / grid.steps


def cell_weights(answers: Mapping[Shadow, float], space: Space) -> Numbers | None:
    """What each cell adds to one prompt's error, [rows, layers] up to a factor. None where answers are missing."""
    by_dtype = [_weights_of(answers, space.grid, dtype) for dtype in space.dtypes]
    known = [weights for weights in by_dtype if weights is not None]
    return np.concatenate(known) if len(known) == len(by_dtype) else None


def _weights_of(answers: Mapping[Shadow, float], grid: Grid, dtype: str) -> Numbers | None:
    """[steps, layers]: the answer for all layers at a step, divided among the layers as at the nearest steps at which
    they were asked for alone."""
    count, layers = grid.steps, grid.layers
    together = np.array([answers.get(Shadow(step, layers, dtype), math.nan) for step in range(count)])
    alone = np.array([[answers.get(Shadow(t, (n,), dtype), math.nan) for n in layers] for t in range(count)])
    singled = np.flatnonzero(np.isfinite(alone).all(axis=1))
    if not np.isfinite(together).all() or not (len(singled) or len(layers) == 1):
        return None
    if len(layers) == 1:
        return np.asarray(_above_zero(together)[:, None])
    profiles = np.log(_above_zero(alone[singled]))
    profiles -= np.log(np.exp(profiles).sum(1, keepdims=True))
    divided = np.array([np.interp(range(count), singled, column) for column in profiles.T]).T
    return np.asarray(_above_zero(together)[:, None] * np.exp(divided))


def _above_zero(values: Numbers) -> Numbers:
    """A shadow that changed nothing is taken for a thousandth of the least that did."""
    positive = values[values > 0]
    return np.maximum(values, positive.min() / 1000 if len(positive) else 1.0)
