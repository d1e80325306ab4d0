"""How much a policy is expected to gain, from what the error models believe of it.

The yardstick is the hypervolume over the share of cells quantized (0 to 1) and PSNR from that of everything quantized
to `SPAN_DB` above it, as a share of that box: how much of it the best policies so far leave to be had.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from scipy.special import ndtr

from fa_tuner.domain.measurement import Aggregate, Requirement, may_fall_short
from fa_tuner.search.space import Flags, Numbers

SPAN_DB = 25.0
LEVELS = 60
DB = 10 / np.log(10)  # of a natural logarithm
PEAK_DB = 20 * np.log10(255.0)
UNMET_DB = 3.0  # how far beyond the best policy a learned threshold is believed where none meets it
FRONT_WEIGHT = 0.2  # of the front as a whole, beside the gain at the threshold


@dataclass(frozen=True)
class Goal:
    """What is searched for: the front of PSNR aggregated over the prompts, and where there is a threshold above all
    the largest share of quantized cells that reaches it. A threshold of other metrics is `learned`, as the PSNR that
    divides the policies which meet it from the others."""

    how: Aggregate = "worst"
    threshold_db: float | None = None
    learned: bool = False

    @classmethod
    def of(cls, requirement: Requirement) -> Goal:
        metrics = {constraint.metric for constraint in requirement.constraints}
        return cls(requirement.aggregate, requirement.min_psnr, learned=bool(metrics - {"psnr_db"}))

    def given(self, quality: Numbers, feasible: Flags) -> Goal:
        """With the threshold that the measured policies show: `quality` [n] in dB, and which meet the requirement."""
        if not self.learned:
            return self
        if not feasible.any():
            return replace(self, threshold_db=float(quality.max()) + UNMET_DB)
        low = quality[~feasible & (quality <= quality[feasible].min())]
        lowest = float(quality[feasible].min())
        return replace(self, threshold_db=(lowest + float(low.max())) / 2 if len(low) else lowest)


def psnr(log_mse: Numbers) -> Numbers:
    """dB of ln MSE of uint8 samples."""
    return np.asarray(PEAK_DB - DB * log_mse)


def aggregated(log_mse: Numbers, how: Aggregate) -> Numbers:
    """PSNR [n] of measured policies, from ln MSE [prompts, n]."""
    if how == "mean":
        return psnr(np.log(np.exp(log_mse).mean(0)))
    return psnr(np.sort(log_mse, axis=0)[-1 - may_fall_short(how, len(log_mse))])


def reaching(mean: Numbers, deviation: Numbers, levels: Numbers, how: Aggregate) -> Numbers:
    """The probability [n, levels] that a policy's PSNR is at least each of `levels` (dB), from what is believed of its
    ln MSE [prompts, n]. Prompts count as independent, which for the worst of them is on the safe side."""
    missing = 0 if how == "mean" else may_fall_short(how, len(mean))
    if how == "mean":
        raw = np.exp(mean + deviation**2 / 2)
        spread = np.expm1(deviation**2)
        relative = (raw**2 * spread).sum(0) / raw.sum(0) ** 2
        own = np.log1p(relative)
        mean, deviation = (np.log(raw.mean(0)) - own / 2)[None], np.sqrt(own)[None]
    chances = ndtr((psnr(mean)[:, :, None] - levels) / (DB * deviation[:, :, None]))
    return _all_but(missing, chances)


def _all_but(most: int, chances: Numbers) -> Numbers:
    """The probability [...] that of independent events with `chances` [events, ...] at most `most` fail."""
    failed = np.zeros((most + 1, *chances.shape[1:]))  # so many of the events so far
    failed[0] = 1.0
    for chance in chances:
        lost = failed[:-1] * (1.0 - chance)
        failed *= chance
        failed[1:] += lost
    return np.asarray(failed.sum(0))


class Yardstick:
    """What the policies measured so far leave to be gained. `share` and `quality` (dB) are [n], all quantized first."""

    def __init__(self, share: Numbers, quality: Numbers, goal: Goal) -> None:
        self._goal = goal
        self._levels = quality[0] + np.linspace(0, SPAN_DB, LEVELS + 1)[1:]
        reached = quality[:, None] >= self._levels
        self._taken = np.where(reached, share[:, None], 0.0).max(0)
        enough = share[quality >= goal.threshold_db] if goal.threshold_db is not None else share
        self._best = float(enough.max()) if len(enough) else 0.0

    def gains(self, share: Numbers, mean: Numbers, deviation: Numbers) -> Numbers:
        """Expected improvement [n] of policies with quantized `share` [n] and believed ln MSE [prompts, n]."""
        chance = reaching(mean, deviation, self._levels, self._goal.how)
        front = (chance * np.maximum(share[:, None] - self._taken, 0)).mean(1)
        threshold = self._goal.threshold_db
        if threshold is None:
            return np.asarray(front)
        meets = reaching(mean, deviation, np.array([threshold]), self._goal.how)[:, 0]
        return np.asarray(FRONT_WEIGHT * front + np.maximum(share - self._best, 0) * meets)
