"""The Pareto front of two objectives: less latency, more PSNR."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple, TypeVar

T = TypeVar("T")


class Objectives(NamedTuple):
    """`latency` is to be small (any unit, the same for all points), `psnr_db` large."""

    latency: float
    psnr_db: float


def dominates(a: Objectives, b: Objectives) -> bool:
    """Whether `a` is at least as good as `b` in both objectives and better in one."""
    return a.latency <= b.latency and a.psnr_db >= b.psnr_db and a != b


def front(points: Iterable[T], objectives: Callable[[T], Objectives]) -> list[T]:
    """The points that no other dominates, fastest first; of equal points the first one given."""
    chosen: list[T] = []
    best = float("-inf")
    for point in sorted(points, key=lambda p: (objectives(p).latency, -objectives(p).psnr_db)):
        if objectives(point).psnr_db > best:
            chosen.append(point)
            best = objectives(point).psnr_db
    return chosen


def hypervolume(points: Iterable[Objectives], reference: Objectives) -> float:
    """The area dominated by the points and bounded by `reference` (the slowest latency and the lowest PSNR
    that count), in latency unit x dB."""
    area = 0.0
    right = reference.latency
    inside = [p for p in points if p.latency < reference.latency and p.psnr_db > reference.psnr_db]
    for point in reversed(front(inside, lambda p: p)):
        area += (right - point.latency) * (point.psnr_db - reference.psnr_db)
        right = point.latency
    return area
