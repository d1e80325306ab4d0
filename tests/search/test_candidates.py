"""Which rectangles are worth a thought."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fa_tuner.search import candidates
from fa_tuner.search.candidates import EXCHANGED, MOST_COUNTS, Rectangles, chains, exchanges, keys, schedules, unseen
from fa_tuner.search.space import Flags, Numbers

EQUAL = np.ones(6)


def subsets(size: int) -> Flags:
    """All but the empty one."""
    return np.array(list(product([False, True], repeat=size))[1:])


def sums(cells: Numbers, rectangles: Rectangles) -> Numbers:
    steps, layers = (side.astype(float) for side in rectangles)
    return np.asarray(((steps @ cells) * layers).sum(1))


def least(cells: Numbers, rectangles: Rectangles) -> dict[tuple[int, int], float]:
    """By how many steps and layers are quantized."""
    found: dict[tuple[int, int], float] = {}
    counts = zip(rectangles[0].sum(1).tolist(), rectangles[1].sum(1).tolist(), strict=True)
    for count, total in zip(counts, sums(cells, rectangles).tolist(), strict=True):
        found[count] = min(total, found.get(count, np.inf))
    return found


def every(steps: int, layers: int) -> Rectangles:
    u, v = subsets(steps), subsets(layers)
    return np.repeat(u, len(v), 0), np.tile(v, (len(u), 1))


def rank_one(seed: int, steps: int = 5, layers: int = 6) -> Numbers:
    draw = np.random.default_rng(seed)
    return np.asarray(np.exp(draw.normal(0, 1, steps)[:, None] + draw.normal(0, 1, layers)))


# --- chains ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
def test_chains_are_exact_for_rank_one(seed: int) -> None:
    cells = rank_one(seed)
    assert least(cells, chains(cells, EQUAL)) == pytest.approx(least(cells, every(5, 6)))


def test_chains_are_near_the_best_beyond_rank_one() -> None:
    draw = np.random.default_rng(0)
    ratios = []
    for seed in range(10):
        cells = rank_one(seed) * np.exp(0.5 * draw.normal(size=(5, 6)))
        found, best = least(cells, chains(cells, EQUAL)), least(cells, every(5, 6))
        assert found.keys() == best.keys()
        ratios += [found[count] / best[count] for count in best]
    assert np.mean(ratios) < 1.05 and np.quantile(ratios, 0.95) < 1.2


def test_of_layers_equally_bad_the_dearest_is_quantized_first() -> None:
    costs = np.array([1.0, 3.0, 2.0, 0.5])
    _, v = chains(np.ones((2, 4)), costs)
    assert {tuple(np.flatnonzero(row)) for row in v} == {(1,), (1, 2), (0, 1, 2), (0, 1, 2, 3)}


def test_a_dear_layer_may_be_quantized_before_a_better_one() -> None:
    cells = np.array([[1.0, 2.0, 4.0]])
    order = {tuple(np.flatnonzero(row)) for row in chains(cells, np.array([1.0, 1.0, 5.0]))[1]}
    assert order == {(0,), (0, 1), (2,), (0, 2), (0, 1, 2)}


def test_costs_of_layers_do_not_order_steps() -> None:
    cells = rank_one(1)
    draw = np.random.default_rng(2)
    ordered = {row.tobytes() for row in chains(cells, EQUAL)[0]}
    assert {row.tobytes() for row in chains(cells, draw.random(6) + 0.1)[0]} == ordered


def test_long_chains_are_thinned_out_and_keep_their_ends() -> None:
    u, v = chains(rank_one(0, 50, 60), np.ones(60))
    for side, size in ((u, 50), (v, 60)):
        counts = set(side.sum(1).tolist())
        assert len(counts) == MOST_COUNTS and {1, size} <= counts
    assert len(u) == len(v) <= 2 * MOST_COUNTS**2


@pytest.mark.parametrize(("steps", "layers"), [(1, 1), (1, 8), (8, 1)])
def test_chains_of_one_step_or_one_layer(steps: int, layers: int) -> None:
    cells = rank_one(3, steps, layers)
    assert least(cells, chains(cells, np.ones(layers))) == pytest.approx(least(cells, every(steps, layers)))


# --- layers of unequal cost -----------------------------------------------------------------------------------------


def undominated(weights: Numbers, costs: Numbers, sets: Flags) -> set[tuple[float, float]]:
    """Cost and weight of the sets than which none both costs as much or more and weighs as little or less."""
    cost, weight = sets @ costs, sets @ weights
    return {
        (c, round(w, 9)) for c, w in zip(cost.tolist(), weight.tolist(), strict=True)
        if not ((cost >= c) & (weight <= w) & ((cost > c) | (weight < w))).any()
    }  # fmt: skip


@pytest.mark.parametrize("seed", range(20))
def test_of_layers_of_unequal_cost_the_best_sets_are_found(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(candidates, "MOST_COUNTS", 1000)
    draw = np.random.default_rng(seed)
    size = 3 + seed % 6
    cells, costs = draw.exponential(size=(1, size)), draw.integers(1, 6, size).astype(float)
    costs[:2] = 1, 2  # not all alike
    _, v = chains(cells, costs / costs.mean())
    found = {(c, round(w, 9)) for c, w in zip((v @ costs).tolist(), (v @ cells[0]).tolist(), strict=True)}
    assert found == undominated(cells[0], costs, subsets(size))


@pytest.mark.parametrize("seed", range(5))
def test_chains_are_exact_for_rank_one_and_unequal_costs(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(candidates, "MOST_COUNTS", 1000)
    cells, costs = rank_one(seed), np.array([1.0, 1.0, 2.0, 2.0, 3.0, 1.0])
    rectangles = chains(cells, costs)
    u, v = every(5, 6)

    def by_cost(steps: Flags, layers: Flags) -> dict[tuple[int, float], float]:
        found: dict[tuple[int, float], float] = {}
        costing = zip(steps.sum(1).tolist(), (layers @ costs).tolist(), strict=True)
        for at, total in zip(costing, sums(cells, (steps, layers)).tolist(), strict=True):
            found[at] = min(total, found.get(at, np.inf))
        return found

    best, found = by_cost(u, v), by_cost(*rectangles)
    for (steps, cost), total in best.items():
        reached = [error for (count, saved), error in found.items() if count == steps and saved >= cost]
        assert min(reached) <= total * (1 + 1e-9)


def test_greed_misses_what_the_knapsack_finds() -> None:
    """By ratio the layers of cost 3 come first; of cost 4 two of cost 2 are better than 3 and 1."""
    cells, costs = np.array([[2.9, 2.0, 2.0, 3.0]]), np.array([3.0, 2.0, 2.0, 1.0])
    sets = {tuple(np.flatnonzero(row)) for row in chains(cells, costs)[1]}
    assert (1, 2) in sets


@pytest.mark.parametrize(
    ("costs", "units"),
    [([2.0] * 19 + [1.0] * 38, [2] * 19 + [1] * 38), ([0.5, 0.75, 1.0], [2, 3, 4]), ([1.0, 1.0, 1000.0], None)],
)
def test_costs_in_whole_units(costs: list[float], units: list[int] | None) -> None:
    found = candidates._units(np.array(costs) / np.mean(costs))
    assert found.tolist() == units if units else (found.min() == 1 and found.sum() <= candidates.MOST_UNITS + 3)


def test_sixty_layers_of_unequal_cost_are_thinned_out_and_keep_their_ends() -> None:
    draw = np.random.default_rng(0)
    cells, costs = rank_one(0, 40, 60), 1 + draw.random(60)
    u, v = chains(cells, costs)
    assert len(u) == len(v) <= 2 * MOST_COUNTS**2 and v.all(1).any()
    assert v.any(1).all() and (v @ costs).min() < 0.1 * costs.sum()


# --- exchanges ------------------------------------------------------------------------------------------------------


@given(st.integers(0, 10**6), st.integers(1, 9), st.integers(1, 9))
def test_exchanges_are_neighbours(seed: int, steps: int, layers: int) -> None:
    """One side stays; on the other one index more, one less, or one for another."""
    draw = np.random.default_rng(seed)
    here = draw.random(steps) < 0.6, draw.random(layers) < 0.6
    for u, v in zip(*exchanges(here, draw.random((steps, layers))), strict=True):
        changed, kept = (u ^ here[0], v ^ here[1])
        if kept.any():
            changed, kept = kept, changed
        assert not kept.any() and changed.sum() in (1, 2)
        if changed.sum() == 2:
            before = (here[0] if len(changed) == steps and (u ^ here[0]).any() else here[1])[changed]
            assert before.sum() == 1


def test_exchanges_are_of_the_worst_quantized_and_the_best_native() -> None:
    cells = np.outer(np.arange(1, 9), np.ones(1))
    quantized = np.arange(8) < 4
    u, _ = exchanges((quantized, np.ones(1, bool)), cells)
    dropped, added = (quantized & ~u).any(axis=0), (u & ~quantized).any(axis=0)
    assert np.flatnonzero(dropped).tolist() == [1, 2, 3] and np.flatnonzero(added).tolist() == [4, 5, 6]
    assert EXCHANGED == 3


def test_exchanges_of_a_small_grid_are_all_neighbours() -> None:
    here = np.array([True, False, True]), np.array([True, True, False])
    found = set(keys(*exchanges(here, rank_one(0, 3, 3))))
    expected = set()
    for u, v in zip(*every(3, 3), strict=True):
        changed = (u ^ here[0], v ^ here[1])
        one_side = changed[0].any() != changed[1].any()
        count = int(sum(side.sum() for side in changed))
        balanced = count == 1 or (count == 2 and u.sum() == here[0].sum() and v.sum() == here[1].sum())
        if one_side and balanced:
            expected.update(keys(u[None], v[None]))
    assert expected <= found
    assert len(found) == len(exchanges(here, rank_one(0, 3, 3))[0])


# --- schedules ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", range(1, 9))
def test_schedules_keep_ends_native_within_the_grid(steps: int) -> None:
    u, v = schedules(steps, 4)
    assert u.shape == (len(u), steps) and v.shape == (len(u), 4) and v.all()
    assert not u.all(axis=1).any()
    for row in u:
        inside = np.flatnonzero(row)
        assert len(inside) and len(inside) == inside[-1] - inside[0] + 1  # without a gap


def test_schedules_of_forty_steps() -> None:
    native = {tuple(np.flatnonzero(~row)) for row in schedules(40, 1)[0]}
    assert {(0,), (39,), (0, 39), (0, 1), (38, 39), (0, 1, 38, 39), tuple(range(20)), tuple(range(20, 40))} <= native


def test_one_step_has_no_schedule() -> None:
    assert [side.shape for side in schedules(1, 3)] == [(0, 1), (0, 3)]


# --- unseen ---------------------------------------------------------------------------------------------------------


def flags(*rows: str) -> Flags:
    return np.array([[letter == "1" for letter in row] for row in rows])


def test_seen_empty_and_repeated_rectangles_are_dropped_and_the_first_phase_is_kept() -> None:
    preset = flags("11", "01", "00", "01"), flags("110", "110", "111", "110")
    predicted = flags("01", "10", "10"), flags("110", "001", "000")
    exchange = flags("10", "10"), flags("001", "011")
    phases, u, v = unseen(
        [("preset", preset), ("predicted", predicted), ("exchange", exchange)], keys(flags("11"), flags("110"))
    )
    assert phases == ["preset", "predicted", "exchange"]
    assert (u == flags("01", "10", "10")).all() and (v == flags("110", "001", "011")).all()


def test_nothing_is_left() -> None:
    everything = every(2, 3)
    phases, u, v = unseen([("probe", everything)], set(keys(*everything)))
    assert (phases, u.shape, v.shape) == ([], (0, 2), (0, 3))


def test_each_rectangle_has_a_name_of_its_own() -> None:
    """Also where steps and layers fill more than a byte, or less."""
    for steps, layers in ((5, 6), (4, 4), (9, 1)):
        everything = every(steps, layers)
        assert len(set(keys(*everything))) == len(everything[0]) == (2**steps - 1) * (2**layers - 1)
