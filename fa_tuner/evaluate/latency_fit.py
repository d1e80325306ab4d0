"""Fitted latency: from the policies of a study that were timed to those that were not."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from statistics import fmean, median

from fa_tuner.domain.measurement import Latency
from fa_tuner.domain.policy import Grid, SkipPolicy
from fa_tuner.domain.study import Evaluation
from fa_tuner.evaluate.timing import ROBUST_FROM

LEAST_TIMED = 5  # for two coefficients, and three residuals to judge them by
LEAST_SHARES = 3  # that differ by a percent of the cells: a line through two shares shows no bend
LEAST_ERROR = 0.001  # standard error, of native; no timing is taken to be surer
TOLERATED = 0.01  # of native; what a straight line may miss however sure timings are
ERRORS = 3.0  # of a timing that it may miss where they are not
CHECK_EVERY = 8  # of so many policies one is timed all the same


@dataclass(frozen=True)
class _Line:
    """Weighted least squares. `weight` is the sum of the weights, `about` that of w (x - center)^2."""

    weight: float
    center: float
    level: float  # at the center
    slope: float
    about: float

    @classmethod
    def through(cls, xs: Sequence[float], ys: Sequence[float], weights: Sequence[float]) -> _Line:
        """Not all `xs` may be alike."""
        weight = math.fsum(weights)
        center, level = (math.fsum(map(math.prod, zip(weights, values, strict=True))) / weight for values in (xs, ys))
        rows = list(zip(weights, xs, ys, strict=True))
        about = math.fsum(w * (x - center) ** 2 for w, x, _ in rows)
        return cls(weight, center, level, math.fsum(w * (x - center) * (y - level) for w, x, y in rows) / about, about)

    def at(self, x: float) -> float:
        return self.level + self.slope * (x - self.center)

    def variance(self, x: float) -> float:
        """Where weights are 1 / deviation^2; that times a row's weight is its leverage."""
        return 1.0 / self.weight + (x - self.center) ** 2 / self.about


@dataclass(frozen=True)
class LatencyFit:
    """relative latency = 1 - `overhead` - `saving` x share of the cells quantized, for one dtype.

    `rms` and `worst` are of the residuals, each of a timed policy against the line through all others, in shares of
    native latency. `doubt` says why the fit does not hold; it is empty where it does.
    """

    dtype: str
    timed: int
    overhead: float
    saving: float
    rms: float
    worst: float
    doubt: str
    _grid: Grid
    _costs: Sequence[float] | None
    _shares: tuple[float, float]  # the least and the most that were timed
    _line: _Line
    _excess: float  # the residuals' squares over what timing explains of them, 1 where that is all

    @property
    def holds(self) -> bool:
        return not self.doubt

    def covers(self, policy: SkipPolicy) -> bool:
        """Whether its share lies between timed ones: beyond them a straight line is a guess."""
        least, most = self._shares
        return policy.dtype == self.dtype and least <= policy.share(self._grid, self._costs) <= most

    def latency(self, policy: SkipPolicy) -> Latency:
        """The spread is two standard errors of the line at the policy's share and, where the residuals are larger than
        timing explains, of what they are beyond that."""
        share, line = policy.share(self._grid, self._costs), self._line
        relative = max(line.at(share), LEAST_ERROR)  # above 0
        spread = 2.0 * math.sqrt(self._excess * line.variance(share) + self._beyond_timing) / relative
        return Latency(relative, "fitted", spread=spread, detail=str(self))

    def may_be_faster(self, one: SkipPolicy, other: SkipPolicy) -> bool:
        """Whether the line, or what it leaves open of a difference, makes `one` faster than `other`; where the fit says
        nothing of either, it may be."""
        if not (self.holds and self.covers(one) and self.covers(other)):
            return True
        more = one.share(self._grid, self._costs) - other.share(self._grid, self._costs)
        return self._line.slope * more < 2.0 * math.sqrt(
            self._excess * more**2 / self._line.about + self._beyond_timing
        )

    @property
    def _beyond_timing(self) -> float:
        """The variance of the residuals that timing does not explain."""
        return (self._excess - 1.0) * self.timed / self._line.weight

    def __str__(self) -> str:
        return f"fitted over {self.timed} timed policies, residuals {self.rms:.1%} RMS, {self.worst:.1%} worst"


def fit_latencies(
    evaluations: Iterable[Evaluation], dtypes: Iterable[str], grid: Grid, costs: Sequence[float] | None = None
) -> dict[str, LatencyFit]:
    """`fit_latency` by dtype, of those for which there is one."""
    known = list(evaluations)
    fits = {dtype: fit_latency(known, dtype, grid, costs) for dtype in dtypes}
    return {dtype: fit for dtype, fit in fits.items() if fit is not None}


def may_be_faster(fits: Mapping[str, LatencyFit], one: SkipPolicy, other: SkipPolicy) -> bool:
    """Whether `one` may be faster than `other`, by the fit of their dtype; of two dtypes no fit says."""
    fit = fits.get(one.dtype)
    return fit is None or one.dtype != other.dtype or fit.may_be_faster(one, other)


def fit_latency(
    evaluations: Iterable[Evaluation], dtype: str, grid: Grid, costs: Sequence[float] | None = None
) -> LatencyFit | None:
    """The fit over the timed policies of `dtype`; None where they are too few, or too much alike, to be believed.
    `costs` are those of `SkipPolicy.share`.

    Each timing is weighed by its standard error. A few repeats may agree by chance, so below `ROBUST_FROM` of them none
    is taken to be surer than the study's usual timing. The fit holds if no timing misses the line through the others by
    more than `ERRORS` of these, or `TOLERATED`, with that line's own uncertainty taken in.
    """
    timed = [
        (e.policy, e.policy.share(grid, costs), e.measurement.latency)
        for e in evaluations
        if e.policy.dtype == dtype and e.measurement is not None and e.measurement.latency.source == "measured"
    ]
    if len(timed) < LEAST_TIMED or len({round(share, 2) for _, share, _ in timed}) < LEAST_SHARES:
        return None
    errors = _standard_errors([latency for _, _, latency in timed])
    shares, weights = [share for _, share, _ in timed], [1.0 / error**2 for error in errors]
    line = _Line.through(shares, [latency.relative for _, _, latency in timed], weights)
    residuals: list[float] = []
    doubts: list[tuple[float, str]] = []
    explained = 0.0
    for (policy, share, latency), error, weight in zip(timed, errors, weights, strict=True):
        missed = abs(latency.relative - line.at(share))
        left = max(1.0 - weight * line.variance(share), 1e-9)
        explained += weight * missed**2
        residuals.append(missed / left)  # against the line through the others
        allowed = max(ERRORS * error, TOLERATED) / math.sqrt(left)
        if residuals[-1] > allowed:
            what = f"{policy} took {latency.relative:.1%} of native, {residuals[-1]:.1%} off where {allowed:.1%} may be"
            doubts.append((residuals[-1] / allowed, what))
    return LatencyFit(
        dtype=dtype,
        timed=len(timed),
        overhead=1.0 - line.at(0.0),
        saving=-line.slope,
        rms=math.sqrt(fmean(r**2 for r in residuals)),
        worst=max(residuals),
        doubt=max(doubts)[1] if doubts else "",
        _grid=grid,
        _costs=costs,
        _shares=(min(shares), max(shares)),
        _line=line,
        _excess=max(1.0, explained / (len(timed) - 2)),
    )


def _standard_errors(timings: Sequence[Latency]) -> list[float]:
    """In shares of native. What `timing.conclude` states is two of them from `ROBUST_FROM` repeats on; below that it is
    half a range, in which the standard error of n repeats' median is about 2.4 / n."""
    stated = [
        (one.relative * one.spread * (0.5 if one.repeats >= ROBUST_FROM else 2.4 / max(one.repeats, 3)), one.repeats)
        for one in timings
    ]
    few = [error for error, repeats in stated if repeats < ROBUST_FROM]
    usual = median(few) if few else 0.0
    return [max(error, usual if repeats < ROBUST_FROM else 0.0, LEAST_ERROR) for error, repeats in stated]


def due_for_timing(evaluations: Iterable[Evaluation], dtype: str) -> bool:
    """Whether the next policy of `dtype` is the one of `CHECK_EVERY` that is timed though its fit holds."""
    sources = [
        e.measurement.latency.source
        for e in sorted(evaluations, key=lambda e: -e.number)
        if e.measurement is not None and e.policy.dtype == dtype
    ]
    return len(list(takewhile(lambda source: source == "fitted", sources))) >= CHECK_EVERY - 1
