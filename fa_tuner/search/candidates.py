"""Rectangles worth a thought: of the predicted front, and exchanges around the measured one."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Literal

import numpy as np

from fa_tuner.search.space import Flags, Indices, Numbers, Rectangle, Rectangles

Phase = Literal["preset", "predicted", "probe", "exchange"]

MOST_COUNTS = 10  # of steps, and of layers, on one chain
MOST_UNITS = 256  # that the layers' costs are rounded to, in all
EXCHANGED = 3  # of the worst quantized and of the best native indices


def schedules(steps: int, layers: int) -> Rectangles:
    """First, last, or first and last steps native, up to half of each: what people use by hand."""
    ends = [
        (head, steps - tail)
        for depth in sorted({1, 2, steps // 4, steps // 2})
        for head, tail in ((depth, 0), (0, depth), (depth, depth))
        if 0 < head + tail < steps
    ]
    index = np.arange(steps)
    u = np.array([(index >= first) & (index < end) for first, end in ends], dtype=np.bool_).reshape(-1, steps)
    return u, np.ones((len(u), layers), dtype=np.bool_)


def chains(cells: Numbers, costs: Numbers) -> Rectangles:
    """The best rectangle of k steps and of layers of a certain cost, for each k and cost (equal `costs`: each number of
    layers), by what each of the `cells` [T, N] adds to the error.

    For a rank-one matrix this is exact, but for the rounding of unequal costs (`_units`); else steps are chosen first
    and layers given these, and the other way round.
    """
    steps_first = _least(cells.sum(1))
    *given, layers_first = _least_by_cost(np.array([*(cells[u].sum(0) for u in steps_first), cells.sum(0)]), costs)
    layers_given = list(zip(steps_first, given, strict=True))
    steps_given = [(_least(cells[:, v].sum(1)), v) for v in layers_first]
    return (
        np.concatenate([np.repeat(u[None], len(v), 0) for u, v in layers_given] + [u for u, _ in steps_given]),
        np.concatenate([v for _, v in layers_given] + [np.repeat(v[None], len(u), 0) for u, v in steps_given]),
    )


def exchanges(rectangle: Rectangle, cells: Numbers) -> Rectangles:
    """One step or layer less, one more, or one for another: the worst that are quantized, the best that are not."""
    u, v = rectangle
    steps, layers = _exchanged(u, cells[:, v].sum(1)), _exchanged(v, cells[u].sum(0))
    return (
        np.concatenate([steps, np.repeat(u[None], len(layers), 0)]),
        np.concatenate([np.repeat(v[None], len(steps), 0), layers]),
    )


def unseen(proposed: Iterable[tuple[Phase, Rectangles]], seen: Collection[bytes]) -> tuple[list[Phase], Flags, Flags]:
    """Each rectangle once, those in `seen` (see `keys`) left out, with the first phase that proposed it."""
    parts = list(proposed)
    u, v = (np.concatenate([rectangles[side] for _, rectangles in parts]) for side in (0, 1))
    named = np.repeat(np.arange(len(parts)), [len(rectangles[0]) for _, rectangles in parts])
    filled = np.flatnonzero(u.any(axis=1) & v.any(axis=1))
    first = dict(zip(reversed(keys(u[filled], v[filled])), reversed(filled.tolist()), strict=True))
    kept = sorted(index for name, index in first.items() if name not in seen)
    return [parts[part][0] for part in named[kept].tolist()], u[kept], v[kept]


def keys(steps: Flags, layers: Flags) -> list[bytes]:
    """One name for each of the rectangles."""
    bits = np.packbits(np.concatenate([steps, layers], axis=1), axis=1)
    data, width = bits.tobytes(), bits.shape[1]
    return [data[start : start + width] for start in range(0, len(data), width)]


def _exchanged(flags: Flags, weights: Numbers) -> Flags:
    """Of one row, the changed ones [n, size]."""
    on, off = np.flatnonzero(flags), np.flatnonzero(~flags)
    worst = on[np.argsort(-weights[on], kind="stable")][:EXCHANGED]
    best = off[np.argsort(weights[off], kind="stable")][:EXCHANGED]
    flips = [[i] for i in (*best, *worst)] + [[i, j] for i in worst for j in best]
    changed = np.repeat(flags[None], len(flips), 0)
    for row, indices in zip(changed, flips, strict=True):
        row[indices] ^= True
    return changed


def _least(weights: Numbers) -> Flags:
    """The least of the weights: 1 of them, 2, and so on to all, thinned out where they are many. [counts, size]"""
    size = len(weights)
    counts = sorted({round(x) for x in np.linspace(1, size, min(size, MOST_COUNTS)).tolist()})
    rank = np.empty(size, dtype=np.intp)
    rank[np.argsort(weights, kind="stable")] = np.arange(size)
    return np.asarray(rank < np.array(counts)[:, None])


def _least_by_cost(weights: Numbers, costs: Numbers) -> list[Flags]:
    """For each row of the `weights` [n, size] the sets of least weight for what they cost, from the cheapest to all,
    thinned out as in `_least`: a knapsack over whole units of cost, all rows at once. Where all cost the same, the sets
    of least weight for their count.
    """
    if np.ptp(costs) <= 1e-9 * costs.max():
        return [_least(row) for row in weights]
    units = _units(costs)
    least = np.full((len(weights), units.sum() + 1), np.inf)  # weight by cost, of the sets of the first items
    least[:, 0] = 0.0
    taken = np.zeros((weights.shape[1], *least.shape), dtype=np.bool_)
    for item, unit in enumerate(units.tolist()):
        with_item = np.full_like(least, np.inf)
        with_item[:, unit:] = least[:, :-unit] + weights[:, item, None]
        taken[item] = with_item < least
        least = np.where(taken[item], with_item, least)
    return [_traced(row, taken[:, index], units) for index, row in enumerate(least)]


def _traced(least: Numbers, taken: Flags, units: Indices) -> Flags:
    """The sets that no dearer one undercuts or equals in weight, read back from `taken` [size, cost]. [sets, size]"""
    dearer = np.minimum.accumulate(np.append(least[1:], np.inf)[::-1])[::-1]
    left = 1 + np.flatnonzero((least < dearer)[1:])
    if len(left) > MOST_COUNTS:
        spaced = np.linspace(left[0], left[-1], MOST_COUNTS)
        left = np.unique(left[np.argmin(np.abs(left[:, None] - spaced), axis=0)])
    chosen = np.zeros((len(left), len(units)), dtype=np.bool_)
    for item in range(len(units) - 1, -1, -1):
        chosen[:, item] = taken[item, left]
        left = left - units[item] * chosen[:, item]
    return chosen


def _units(costs: Numbers) -> Indices:
    """Costs as whole numbers, in all at most `MOST_UNITS` (or little more where they differ by very much), on the scale
    on which rounding changes them least."""
    scales = np.append(np.arange(1, MOST_UNITS) / costs.min(), MOST_UNITS / costs.sum())[:, None]
    units = np.maximum(1, np.rint(costs * scales))
    changed = np.abs(units / (costs * scales) - 1).max(1).round(6)
    changed[:-1][units[:-1].sum(1) > MOST_UNITS] = np.inf
    return np.asarray(units[int(np.argmin(changed))], dtype=np.intp)
