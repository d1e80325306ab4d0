"""What quantizing a rectangle of (step, layer) cells does to one prompt: a Bayesian model, near rank one.

With w the weights of the cells, a and b the sums of its rows and columns, Q the quantized steps, R the layers:

    ln MSE(Q, R) = c + ln sum_{t in Q, n in R} w_tn + (g - 1) ln a(Q) + (h - 1) ln b(R) + r(Q, R),
    w_tn = w0_tn exp(alpha_t + beta_n)

alpha and beta are the sensitivities of steps and layers, normal about a straight line of unknown slope over the index
(early errors grow, or fade; deep layers hurt more, or less); w0 is 1, or what shadow probes say of the cells; g and h,
about 1, say how errors of steps and of layers add up. Of several dtypes each has a row for each step; a(Q) is then a
share of its dtype's rows, w0 holds the dtypes' levels, and alpha is in part a step's own in every dtype. The residual r
is a Gaussian process with the covariance of independent cells (interactions, by the delta method) and of alike
rectangles (cliffs, correlations). All is fitted at once by Gauss-Newton to whatever rectangles were measured, so no
policy is spent on a sensitivity alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.linalg import cho_factor, cho_solve, solve_triangular

from fa_tuner.search.space import Flags, Indices, Numbers

Reals = npt.NDArray[np.floating[Any]]  # in single or double precision

ROUNDS = 5  # of Gauss-Newton in a fit
ALIKE = 0.7  # of the variance of a step's sensitivity: what it has in common over the dtypes
SETTLED = 0.03  # of the logarithm of a sensitivity
LUCK_WEIGHT = 10.0  # measurements worth of belief in the prior luck
MOST_LUCK = 0.5
PRIOR_WEIGHT = 3.0  # indices' worth of belief in the prior spread of sensitivities


@dataclass(frozen=True)
class Spreads:
    """Standard deviations, all of natural logarithms of the squared error (1 dB is 0.23): the `level` about that of
    the first policy measured, `steps` and `layers` of alpha and beta about their lines, `trend` of these lines from the
    middle to either end, `adding` of g and h, `interactions` of single
    cells, `likeness` of rectangles, `luck` of one measurement: rounding decides a fraction of a dB."""

    level: float = 3.0
    steps: float = 1.0
    layers: float = 1.0
    trend: float = 0.7
    adding: float = 0.2
    interactions: float = 0.4
    likeness: float = 0.25
    luck: float = 0.08


@dataclass(frozen=True)
class Belief:
    """Of ln MSE of n rectangles: `mean` and `deviation` [n], and what the model needs to relate them to each other."""

    mean: Numbers
    deviation: Numbers
    slopes: Reals
    alike: Sequence[Reals]
    explained: Numbers


class ErrorModel:
    """One prompt's. Rectangles are flags of quantized rows [n, rows], a row a step, and of layers [n, layers]."""

    def __init__(
        self, rows: int, layers: int, prior: Numbers | None = None, spreads: Spreads | None = None, dtypes: int = 1
    ) -> None:
        """`prior` [rows, layers] are cell weights above 0 up to a common factor; see `Space` for the rows of `dtypes`
        dtypes."""
        self._shape = (rows, layers)
        self._prior = np.ones(self._shape) if prior is None else prior / prior.mean()
        self._spreads = spreads or Spreads()
        steps = rows // dtypes
        self._of_dtype = np.kron(np.eye(dtypes), np.ones((steps, 1)))  # [rows, dtypes]
        # what rows, and layers, have in common beside their own sensitivities: [rows, .], [layers, .]
        common = np.tile(np.eye(steps), (dtypes, 1)) if dtypes > 1 else np.zeros((rows, 0))
        self._common = np.column_stack([np.tile(_line(steps), dtypes), common]), _line(layers)[:, None]
        self._own = 1 - ALIKE if dtypes > 1 else 1.0
        sizes = (1, rows, layers, *(part.shape[1] for part in self._common), 2)
        ends = np.cumsum(sizes).tolist()
        self._parts = [slice(end - size, end) for end, size in zip(ends, sizes, strict=True)]
        self._parameters = np.zeros(ends[-1])
        self._sigma = (self._spreads.steps, self._spreads.layers)
        self._luck: float | None = None  # learned where it is asked for
        self._fitted = False

    def fit(self, steps: Flags, layers: Flags, log_mse: Numbers) -> None:
        """Fit to n measured rectangles; a second fit begins where the first one ended. `log_mse` is [n]."""
        u, v = steps.astype(np.float64), layers.astype(np.float64)
        variances, self._luck = self._prior_variances(), None
        mean = np.zeros_like(variances)
        mean[0] = log_mse[0]
        if not self._fitted:
            self._parameters = mean.copy()
        self._profile = self._shares()
        alike = self._features(u, v)
        residual = self._residual(alike, alike)
        residual[np.diag_indices_from(residual)] += self._spreads.luck**2
        for _ in range(ROUNDS):
            expected, slopes = self._linearized(u, v)
            factor = cho_factor((slopes * variances) @ slopes.T + residual, lower=True, check_finite=False)
            rest = log_mse - expected - slopes @ (mean - self._parameters)
            target = mean + variances * (slopes.T @ cho_solve(factor, rest, check_finite=False))
            change = np.clip(target - self._parameters, -1.0, 1.0)
            self._parameters = self._parameters + change
            if np.abs(change).max() < SETTLED:
                break
        # the data's surprise beyond the parameters, and what is left open of these
        self._offset = mean - self._parameters
        rest = log_mse - self._linearized(u, v)[0] - slopes @ self._offset
        self._weights = cho_solve(factor, rest, check_finite=False)
        explained = solve_triangular(factor[0], slopes, lower=True, check_finite=False) * variances
        self._variances, self._slopes, self._alike, self._factor = variances, slopes, alike, factor
        self._open = np.maximum(variances - (explained**2).sum(0), 1e-9)
        _, rows, columns, *_ = self._parts
        self._sigma = (
            self._spread_of(self._spreads.steps, rows, self._own),
            self._spread_of(self._spreads.layers, columns, 1.0),
        )
        self._fitted = True

    def predict(self, steps: Flags, layers: Flags) -> Belief:
        """What is believed that a measurement of n rectangles would show, its luck included."""
        if self._luck is None:
            self._luck = self._luck_of(self._factor)
        u, v = steps.astype(np.float64), layers.astype(np.float64)
        (expected, slopes), alike = self._linearized(u, v), self._features(u, v)
        cross = (slopes * self._variances) @ self._slopes.T + self._residual(alike, self._alike)
        mean = expected + slopes @ self._offset + cross @ self._weights
        explained = solve_triangular(self._factor[0], cross.T, lower=True, check_finite=False)
        own = (alike[0] ** 2).sum(1) * (alike[1] ** 2).sum(1) * self._spreads.interactions**2
        before = slopes**2 @ self._variances + own + self._spreads.likeness**2 + self._luck**2
        deviation = np.sqrt(np.maximum(before - (explained**2).sum(0), 1e-6))
        return Belief(mean, deviation, slopes, alike, explained)

    def mean(self, steps: Flags, layers: Flags) -> Numbers:
        """Of ln MSE [n], without the deviation, which takes most of the time; in single precision."""
        u, v = steps.astype(np.float32), layers.astype(np.float32)
        expected, slopes = self._linearized(u, v)
        moved = self._offset + self._variances * (self._slopes.T @ self._weights)
        residual = self._residual(self._features(u, v), self._alike) @ self._weights.astype(np.float32)
        return np.asarray(expected + slopes @ moved.astype(np.float32) + residual, dtype=np.float64)

    def learned(self, belief: Belief, about: Indices) -> Numbers:
        """By how much measuring each of n rectangles would narrow the deviation of those `about` [m]: [n, m]."""
        prior = (belief.slopes * self._variances) @ belief.slopes[about].T
        alike = self._residual(belief.alike, [part[about] for part in belief.alike])
        covariance = prior + alike - belief.explained.T @ belief.explained[:, about]
        told = covariance**2 / belief.deviation[:, None] ** 2
        deviation = belief.deviation[about]
        return np.asarray(deviation - np.sqrt(np.maximum(deviation**2 - told, 0)))

    def cells(self, draw: np.random.Generator | None = None) -> Numbers:
        """What each cell adds to the MSE, [T, N]: the mean, or with `draw` one the sensitivities of which are drawn
        from what the measurements leave open."""
        parameters = self._parameters
        if draw is not None:
            parameters = parameters + np.sqrt(self._open) * draw.standard_normal(len(parameters))
        own = self._spreads.interactions**2 * (self._alike[0] * self._weights[:, None]).T @ self._alike[1]
        return np.asarray(np.exp(parameters[0] + own) * self._cells(parameters) / own.size)

    def _prior_variances(self) -> Numbers:
        spread, (steps, layers) = self._spreads, (sigma**2 for sigma in self._sigma)
        alike = self._common[0].shape[1] - 1
        return np.concatenate([
            [spread.level**2], np.full(self._shape[0], self._own * steps), np.full(self._shape[1], layers),
            [spread.trend**2], np.full(alike, ALIKE * steps), [spread.trend**2], [spread.adding**2] * 2,
        ])  # fmt: skip

    def _spread_of(self, prior: float, part: slice, own: float) -> float:
        """How much sensitivities spread, from what is known by now of the part of them that is each one's own, `own` of
        the variance (one step of expectation and maximisation, `PRIOR_WEIGHT` indices for the prior)."""
        seen = float((self._parameters[part] ** 2 + self._open[part]).sum()) / own
        return float(np.sqrt((PRIOR_WEIGHT * prior**2 + seen) / (PRIOR_WEIGHT + part.stop - part.start)))

    def _luck_of(self, factor: tuple[Numbers, bool]) -> float:
        """The luck with which each measurement would be as far from what all others say of it as it is (the residuals
        and variances of leaving one out, from the inverse covariance), `LUCK_WEIGHT` measurements for the prior."""
        inverse = solve_triangular(factor[0], np.eye(len(factor[0])), lower=True, check_finite=False)
        variance = 1 / (inverse**2).sum(0)
        missed = (self._weights * variance) ** 2
        more = float(np.mean(missed - variance)) * len(missed) / (len(missed) + LUCK_WEIGHT)
        return float(np.sqrt(np.clip(self._spreads.luck**2 + more, self._spreads.luck**2, MOST_LUCK**2)))

    def _cells(self, parameters: Numbers) -> Numbers:
        _, rows, columns, of_rows, of_columns, _ = (parameters[part] for part in self._parts)
        by_row, by_layer = rows + self._common[0] @ of_rows, columns + self._common[1] @ of_columns
        return np.asarray(self._prior * np.exp(by_row[:, None] + by_layer))

    def _linearized(self, u: Reals, v: Reals) -> tuple[Reals, Reals]:
        """Expected ln MSE of rectangles [n], and its derivatives [n, parameters]; those through the small exponents of
        the shares are left out."""
        cells = self._cells(self._parameters).astype(u.dtype)
        of_dtype, *common = (part.astype(u.dtype) for part in (self._of_dtype, *self._common))
        by_layer, by_row, rows = u @ cells, v @ cells.T, cells.sum(1)
        everything = (u @ of_dtype > 0) @ (rows @ of_dtype)
        # of all rows of its dtype, and of all layers
        of_rows, of_layers = np.log(u @ rows / everything), np.log(v @ cells.sum(0) / cells.sum())
        total = np.einsum("ij,ij->i", by_layer, v)
        level, (g, h) = float(self._parameters[0]), self._parameters[-2:].tolist()
        expected = level + np.log(total / cells.size) + g * of_rows + h * of_layers
        of_alpha, of_beta = u * by_row / total[:, None], v * by_layer / total[:, None]
        slopes = [np.ones_like(total), of_alpha, of_beta, of_alpha @ common[0], of_beta @ common[1], of_rows, of_layers]
        return expected, np.column_stack(slopes)

    def _shares(self) -> tuple[Numbers, Numbers]:
        """Of all error, by row and by layer."""
        cells = self._cells(self._parameters)
        return cells.sum(1) / cells.sum(), cells.sum(0) / cells.sum()

    def _features(self, u: Reals, v: Reals) -> Sequence[Reals]:
        """Rectangles as vectors, whose products say how much error two of them share, by what was known of the shares
        when the fit began."""
        rows, layers = (part.astype(u.dtype) for part in self._profile)
        of_rows, of_layers = (u @ rows)[:, None], (v @ layers)[:, None]
        # in single precision, which the residual's covariance has no use beyond, and which is twice as fast
        return tuple(part.astype(np.float32) for part in (
            u * rows / of_rows, v * layers / of_layers,
            u * np.sqrt(rows / of_rows), v * np.sqrt(layers / of_layers),
        ))  # fmt: skip

    def _residual(self, one: Sequence[Reals], other: Sequence[Reals]) -> Reals:
        cells = (one[0] @ other[0].T) * (one[1] @ other[1].T)
        likeness = (one[2] @ other[2].T) * (one[3] @ other[3].T)
        return np.asarray(self._spreads.interactions**2 * cells + self._spreads.likeness**2 * likeness**2)


def _line(size: int) -> Numbers:
    return np.linspace(-1, 1, size) if size > 1 else np.zeros(1)
