"""Measured latency: candidate and baseline interleaved, median and spread."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from fa_tuner.domain.measurement import Latency

ROBUST_FROM = 9  # repeats; below that a median absolute deviation says next to nothing


def finalist_repeats(repeats: int) -> int:
    """How often a policy is timed that is about to be recommended, where the others are timed `repeats` times."""
    return max(15, 5 * repeats)


@dataclass(frozen=True)
class Pair:
    """Denoising and end-to-end seconds of candidate and baseline, run one right after the other."""

    candidate: float
    native: float
    candidate_end_to_end: float
    native_end_to_end: float

    @property
    def ratio(self) -> float:
        return self.candidate / self.native


def _weighed(ratios: Sequence[float], weights: Sequence[float]) -> float:
    return math.fsum(r * w for r, w in zip(ratios, weights, strict=True)) / math.fsum(weights)


def _half_width(ratios: Sequence[float]) -> float:
    if len(ratios) < ROBUST_FROM:
        return (max(ratios) - min(ratios)) / 2
    middle = median(ratios)
    deviation = 1.4826 * median(abs(ratio - middle) for ratio in ratios)
    return 2 * 1.2533 * deviation / math.sqrt(len(ratios))


def conclude(rounds: Sequence[Sequence[Pair]], detail: str) -> Latency:
    """From one row of pairs (a pair a case) for each repeat.

    A case's ratio in a repeat is the candidate's time by the baseline's; drift that is slower than a pair cancels in
    it. Its median over the repeats cannot be moved by one outlier in three, so it is taken case by case, and the
    cases are weighed by the time they take natively. The spread, relative to the result, is half the range of the
    repeats' weighed ratios below nine repeats; from nine on it is two standard errors of their median, 2 x 1.2533 x
    1.4826 MAD / sqrt(n), which one outlier among many does not blow up.
    """
    weights = [median(row[case].native for row in rounds) for case in range(len(rounds[0]))]
    middle = _weighed([median(row[c].ratio for row in rounds) for c in range(len(weights))], weights)
    ratios = [_weighed([pair.ratio for pair in row], weights) for row in rounds]
    return Latency(
        relative=middle,
        source="measured",
        seconds=median(sum(p.candidate for p in row) for row in rounds),
        spread=_half_width(ratios) / middle,
        repeats=len(rounds),
        end_to_end_seconds=median(sum(p.candidate_end_to_end for p in row) for row in rounds),
        detail=detail,
    )
