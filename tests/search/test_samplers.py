"""Samplers by name; what all of them promise is in contract/test_sampler_contract.py."""

from __future__ import annotations

import pytest
from optuna.samplers import BaseSampler

from fa_tuner.domain.errors import UsageError
from fa_tuner.domain.policy import Grid
from fa_tuner.search.samplers import BRUTE_FORCE_LIMIT, make_sampler
from fa_tuner.search.space import Space
from fa_tuner.search.study import PolicySearch, Score
from tests.support.tables import every_policy

SMALL = Space(Grid(3, (0, 1)), ("fp8",))
LARGE = Space(Grid(40, tuple(range(40))), ("fp8",))


@pytest.mark.parametrize("name", ["rectangle", "tpe", "nsga2", "random", "brute-force"])
def test_by_name(name: str) -> None:
    assert isinstance(make_sampler(name, SMALL, 0), BaseSampler)


@pytest.mark.parametrize("name", ["", "TPE", "cmaes", "brute_force"])
def test_an_unknown_name(name: str) -> None:
    with pytest.raises(UsageError, match="choose one of rectangle, tpe, nsga2, random, brute-force"):
        make_sampler(name, SMALL, 0)


def test_brute_force_is_for_small_grids_only() -> None:
    steps = BRUTE_FORCE_LIMIT - 4
    make_sampler("brute-force", Space(Grid(steps, (0, 1, 2, 3)), ("fp8",)), 0)
    with pytest.raises(UsageError, match=r"2\^15 policies; it is refused past 2\^14"):
        make_sampler("brute-force", Space(Grid(steps, (0, 1, 2, 3, 4)), ("fp8",)), 0)
    with pytest.raises(UsageError, match=r"40 steps x 40 layers would be 2\^80"):
        make_sampler("brute-force", LARGE, 0)
    make_sampler("tpe", LARGE, 0)


def test_brute_force_finds_every_policy_and_does_not_end_with_an_error() -> None:
    """Under ask and tell Optuna's own raises when nothing is left."""
    grid = Grid(2, (0, 1))
    search = PolicySearch("sqlite:///:memory:", "s", Space(grid, ("fp8",)), "brute-force", 0)
    found = []
    for _ in range(2**4 + 3):
        proposal = search.ask()
        found.append(proposal.policy.key)
        search.tell(proposal, Score(0.9, 30.0, {}))
    assert set(found[: 2**4]) == {policy.key for policy in every_policy(grid)}
