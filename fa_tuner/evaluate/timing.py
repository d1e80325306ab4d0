"""Measured latency: candidate and baseline interleaved, median and spread."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from fa_tuner.domain.measurement import Latency


@dataclass(frozen=True)
class Pair:
    """Denoising and end-to-end seconds of candidate and baseline, run one right after the other."""

    candidate: float
    native: float
    candidate_end_to_end: float
    native_end_to_end: float


def conclude(rounds: Sequence[Sequence[Pair]], detail: str) -> Latency:
    """From one row of pairs (a pair a case) for each repeat.

    The ratio of a repeat is the candidate's time over all cases by the baseline's; drift that is slower than a
    pair cancels in it. The median of the repeats is the result, which one outlier in three cannot move; the
    spread is half the range of the repeats, relative to the median.
    """
    ratios = [sum(p.candidate for p in row) / sum(p.native for p in row) for row in rounds]
    middle = median(ratios)
    return Latency(
        relative=middle,
        source="measured",
        seconds=median(sum(p.candidate for p in row) for row in rounds),
        spread=(max(ratios) - min(ratios)) / 2 / middle,
        repeats=len(rounds),
        end_to_end_seconds=median(sum(p.candidate_end_to_end for p in row) for row in rounds),
        detail=detail,
    )
