"""What a rehearsed search says of prefix reuse, against searches of landscapes that it has not seen."""

from __future__ import annotations

import pytest

from fa_tuner.domain.measurement import Constraint, Requirement
from fa_tuner.domain.policy import Grid, SkipPolicy
from fa_tuner.domain.selector import SkipSelector
from fa_tuner.engines.replay import LatencyNoise, ReplayEngine
from fa_tuner.search import rehearsal
from fa_tuner.search.acquisition import Goal
from fa_tuner.search.rehearsal import HEIGHTS, Rehearsal, rehearse
from fa_tuner.search.space import Space
from tests.support.searched import Oracle

FROM_30 = Requirement((Constraint("psnr_db", ">=", 30.0),))
EVERYTHING = SkipPolicy("fp8")


@pytest.fixture(autouse=True)
def unhurried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rehearsal, "MOST_SECONDS", 1e9)


def spent(oracle: Oracle, count: int, seed: int = 0) -> float:
    """Generation equivalents of a search of one landscape, by an engine that keeps what it ran."""
    engine, (case, _) = ReplayEngine(oracle.landscape, LatencyNoise(), "projected", ""), oracle.landscape.workload.cases
    engine.generate(SkipPolicy(), case, "keep")
    search = oracle.search(seed=seed, goal=Goal.of(oracle.requirement), resumes=True)
    search.enqueue(EVERYTHING, "anchor")
    policies, _ = oracle.walk(search, count)
    assert len(policies) == count
    return sum(1 - engine.generate(policy, case, "reuse").reused_steps / oracle.steps for policy in policies)


def test_beyond_what_was_rehearsed_policies_cost_what_the_later_half_did() -> None:
    made = Rehearsal(((1.0, 0.5, 0.25, 0.25), (1.0, 1.0, 0.5, 0.0)))
    assert made.each(2) == [1.5, 2.0] and made.equivalents(2) == 1.75
    assert made.each(4) == [2.0, 2.5]
    assert made.each(8) == [2.0 + 4 * 0.25, 2.5 + 4 * 0.25]
    assert made.policies == 4


def test_so_many_policies_as_can_be_paid_for() -> None:
    made = Rehearsal(((1.0, 0.5, 0.5, 0.5),))
    assert [made.affordable(paid, 100) for paid in (0.9, 1.0, 1.4, 2.0, 10.0)] == [0, 1, 1, 3, 19]
    assert made.affordable(10.0, 7) == 7


@pytest.mark.parametrize("sampler", ["rectangle", "tpe", "nsga2", "random", "brute-force"])
def test_each_sampler_is_rehearsed(sampler: str) -> None:
    made = rehearse(Space(Grid(5, (0, 1, 2)), ("fp8",)), 2, FROM_30, [EVERYTHING], 12, sampler=sampler)
    assert [costs[0] for costs in made.costs] == [1.0] * len(HEIGHTS), "everything quantized shares no step"
    assert all(1 / 5 <= cost <= 1.0 and cost * 5 == round(cost * 5) for costs in made.costs for cost in costs)
    assert made.policies == 12
    assert made.equivalents(12) < 12
    assert made == rehearse(Space(Grid(5, (0, 1, 2)), ("fp8",)), 2, FROM_30, [EVERYTHING], 12, sampler=sampler)


@pytest.mark.parametrize("layers", [(0, 1, 2), (2, 5, 40)])
def test_queued_policies_come_first_whatever_the_numbers_of_the_layers(layers: tuple[int, ...]) -> None:
    first_steps = SkipPolicy("fp8", SkipSelector.of(range(3)), SkipSelector.of(layers[1:]))
    last_step = SkipPolicy("fp8", SkipSelector.of(range(4)), SkipSelector.of(layers[1:]))
    made = rehearse(Space(Grid(5, layers), ("fp8",)), 1, Requirement(()), [EVERYTHING, last_step, first_steps], 3)
    assert made.costs == ((1.0, 0.2, 0.4),) * len(HEIGHTS)


def test_no_policy_is_counted_twice_and_none_that_is_not_there() -> None:
    made = rehearse(Space(Grid(2, (0, 1)), ("fp8",)), 1, FROM_30, [EVERYTHING], 9, sampler="random")
    assert all(2 <= len(costs) <= 9 for costs in made.costs)  # of 9 there are


def test_it_ends_when_its_time_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rehearsal, "MOST_SECONDS", 0.0)
    made = rehearse(Space(Grid(40, tuple(range(40))), ("fp8",)), 3, FROM_30, [EVERYTHING], 160)
    assert made.costs == ((1.0,),) * len(HEIGHTS)
    assert made.equivalents(160) == 160


def test_no_more_are_rehearsed_than_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rehearsal, "MOST_POLICIES", 4)
    made = rehearse(Space(Grid(6, (0, 1, 2, 3)), ("fp8",)), 2, FROM_30, [EVERYTHING], 20, shadows=True)
    assert {len(costs) for costs in made.costs} == {4}


def test_the_estimate_is_near_what_searches_of_other_landscapes_take() -> None:
    """In the mean of four; a single one is between a half and one and a half of it."""
    made = rehearse(Space(Grid(6, tuple(range(6))), ("fp8",)), 2, FROM_30, [EVERYTHING], 20).equivalents(20)
    real = [spent(Oracle(6, 6, seed, requirement=FROM_30), 20) for seed in (11, 12, 13, 14)]
    assert sum(real) / 4 == pytest.approx(made, rel=0.2), real
    assert all(0.5 * made < one < 1.5 * made for one in real), (made, real)


def test_several_dtypes() -> None:
    space = Space(Grid(5, (0, 1, 2)), ("fp8", "mxfp4"))
    made = rehearse(space, 2, FROM_30, [SkipPolicy("fp8"), SkipPolicy("mxfp4")], 12)
    assert made.policies == 12 and all(costs[:2] == (1.0, 1.0) for costs in made.costs)
