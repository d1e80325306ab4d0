"""What each step and each layer costs in quality, by what a study has measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fa_tuner.domain.errors import NotFoundError
from fa_tuner.domain.policy import SkipPolicy
from fa_tuner.search.fitted import LEAST_MSE, MOST_FITTED, by_dtype, fit_models, one_thread
from fa_tuner.search.space import Numbers, Space

LEAST_MEASURED = 6  # policies of a dtype, before anything is said of its steps and layers


@dataclass(frozen=True)
class Sensitivity:
    """One prompt's, under one dtype: the share of the squared error by step [steps] and by layer [layers], each of
    which adds up to 1."""

    dtype: str
    steps: tuple[float, ...]
    layers: tuple[float, ...]


def sensitivities(
    space: Space, policies: Sequence[SkipPolicy], mse: Sequence[Sequence[float]],
    priors: Sequence[Numbers] | None = None,
) -> list[list[Sensitivity]]:  # fmt: skip
    """By prompt, for each dtype of which enough was measured.

    Args:
        policies: n that quantize something.
        mse: mean squared error, for each policy by prompt: [n][prompts].
        priors: cell weights [rows, layers] by prompt, from shadow probes.

    Raises:
        NotFoundError: too few policies were measured of every dtype.
    """
    of_dtype = {dtype: sum(policy.dtype == dtype for policy in policies) for dtype in space.dtypes}
    known = [dtype for dtype, count in of_dtype.items() if count >= LEAST_MEASURED]
    if not known:
        raise NotFoundError(
            f"sensitivities need {LEAST_MEASURED} measured policies of a dtype, and there are "
            f"{', '.join(f'{count} of {dtype}' for dtype, count in of_dtype.items())}; measure more"
        )
    rows, layers = space.stacked([space.to_rectangle(policy) for policy in policies])
    # spread over all shares that were measured, those that quantize most first
    chosen = np.argsort(-(rows.sum(1) * layers.sum(1)), kind="stable")[:: -(-len(policies) // MOST_FITTED)]
    log_mse = np.log(np.maximum(np.asarray(mse, dtype=np.float64)[chosen], LEAST_MSE)).T
    with one_thread():
        models = fit_models(space, rows[chosen], layers[chosen], log_mse, priors)
    return [
        [_of(dtype, cells) for dtype, cells in zip(space.dtypes, by_dtype(space, model.cells()), strict=True)
         if dtype in known]
        for model in models
    ]  # fmt: skip


def _of(dtype: str, cells: Numbers) -> Sensitivity:
    """`cells` [steps, layers] is what each adds to the squared error."""
    total = cells.sum()
    return Sensitivity(dtype, tuple((cells.sum(1) / total).tolist()), tuple((cells.sum(0) / total).tolist()))
