"""An error model a prompt, fitted to what was measured."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager

import numpy as np
from threadpoolctl import ThreadpoolController

from fa_tuner.search.error_model import ErrorModel, Spreads
from fa_tuner.search.space import Flags, Numbers, Space

LEAST_MSE = 255.0**2 / 1e10  # of identical frames: 100 dB
MOST_FITTED = 200  # measurements that models are fitted to
MOST_IN_FIRST = 80  # of the first fit, from which the second takes the spreads, and begins
SHADOWED = Spreads(steps=0.5, layers=0.5)  # about what shadow probes say; how true they are is learned
_BLAS = ThreadpoolController().select(user_api="blas")


def one_thread() -> AbstractContextManager[object]:
    """Around work with the models: beside another busy process threads of so small matrices only wait."""
    return _BLAS.limit(limits=1)  # type: ignore[no-any-return]


def fit_models(
    space: Space, rows: Flags, layers: Flags, log_mse: Numbers, priors: Sequence[Numbers] | None = None
) -> list[ErrorModel]:
    """To rectangles [n, rows], [n, layers] with ln MSE [prompts, n]. `priors` are cell weights [rows, layers] by
    prompt, from shadow probes. Anew each time: what a model was before would not be there in a resumed study."""
    spreads, models = None if priors is None else SHADOWED, []
    weights = [np.ones(space.size)] * len(log_mse) if priors is None else priors
    for prior, row in zip(weights, log_mse, strict=True):
        levelled = prior if len(space.dtypes) == 1 else _levelled(space, prior, rows, layers, row)
        model = ErrorModel(*space.size, levelled, spreads, len(space.dtypes))
        first = slice(None, None, -(-len(rows) // MOST_IN_FIRST))
        model.fit(rows[first], layers[first], row[first])
        model.fit(rows, layers, row)
        models.append(model)
    return models


def by_dtype(space: Space, cells: Numbers) -> Numbers:
    """[rows, layers] as [dtypes, steps, layers]."""
    return cells.reshape(len(space.dtypes), space.grid.steps, -1)


def _levelled(space: Space, prior: Numbers, rows: Flags, layers: Flags, log_mse: Numbers) -> Numbers:
    """Cell weights that add up to the error of the largest rectangle that was measured in each dtype."""
    levels = np.full(len(space.dtypes), np.nan)
    expected = np.log(np.einsum("ni,ij,nj->n", rows.astype(np.float64), prior, layers.astype(np.float64)))
    for of, level in zip(space.dtype_of(rows), log_mse - expected, strict=True):
        levels[of] = level if np.isnan(levels[of]) else levels[of]  # the largest come first
    levels = np.where(np.isfinite(levels), levels, np.nanmean(levels) if np.isfinite(levels).any() else 0.0)
    return np.asarray(prior * np.exp(levels - levels.max()).repeat(space.grid.steps)[:, None])
