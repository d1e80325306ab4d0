"""Shadow probes: which to ask for beside the baseline, and what they say of the cells."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from fa_tuner.domain.policy import Grid, SkipPolicy
from fa_tuner.engines.base import Shadow
from fa_tuner.search.space import Numbers, Space

SINGLED_STEPS = 2  # steps at which each layer is asked for alone
LEAST_COMPARED = 5  # policies: fewer may be in the right order by chance


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


def weights_by_prompt(answers: Sequence[Mapping[Shadow, float]], space: Space) -> list[Numbers] | None:
    """`cell_weights` of each prompt. None where any answers are missing."""
    known = [weights for answer in answers if (weights := cell_weights(answer, space)) is not None]
    return known if known and len(known) == len(answers) else None


class Agreement(NamedTuple):
    """How well the shadow probes foretell what was measured: the `rank_correlation` (Spearman) of predicted and
    measured squared errors over so many `policies`, and how far these miss each other in dB, root mean square, beside a
    common level."""

    policies: int
    rank_correlation: float
    spread_db: float


def agreement(
    answers: Mapping[Shadow, float], space: Space, policies: Sequence[SkipPolicy], mse: Sequence[float]
) -> Agreement | None:
    """Of one prompt, over quantized policies with their mean squared errors. None where answers are missing, or
    policies of `LEAST_COMPARED` different errors.

    No step's growth is known to the probes, so this is what they say before anything was measured; the error model
    bends them towards the measurements.
    """
    weights = cell_weights(answers, space)
    different = [(policy, error) for policy, error in zip(policies, mse, strict=True) if error > 0]
    if weights is None or len({error for _, error in different}) < LEAST_COMPARED:
        return None
    rows, layers = (side.astype(np.float64) for side in space.stacked([space.to_rectangle(p) for p, _ in different]))
    predicted = np.log(np.einsum("ni,ij,nj->n", rows, weights, layers))
    measured = np.log([error for _, error in different])
    missed = predicted - measured
    return Agreement(
        len(different),
        float(np.corrcoef(_ranks(predicted), _ranks(measured))[0, 1]),
        float(10 / math.log(10) * np.std(missed)),
    )


def _ranks(values: Numbers) -> Numbers:
    """Of equal ones the mean."""
    return np.asarray([(np.sum(values < value) + np.sum(values <= value)) / 2 for value in values])


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
