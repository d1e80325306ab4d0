"""What every sampler promises, run over each of them through `PolicySearch` (fa_tuner/search/samplers.py)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import optuna
import pytest

from fa_tuner.domain.policy import Grid, SkipPolicy
from fa_tuner.search.space import Space
from fa_tuner.search.study import PolicySearch, Score, open_storage
from tests.support.quick_disk import quick_folder

SAMPLERS = ["rectangle", "tpe", "nsga2", "random", "brute-force"]
GRID = Grid(4, (0, 2, 3, 7))
WIDE = Grid(6, (0, 2, 3, 7, 9))
MEMORY = "sqlite:///:memory:"


@pytest.fixture(params=SAMPLERS)
def sampler(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def folder() -> Iterator[Path]:
    with quick_folder() as made:
        yield made


def searching(sampler: str, seed: int = 3, storage: str = MEMORY, grid: Grid = GRID) -> PolicySearch:
    return PolicySearch(storage, "s", Space(grid, ("fp8",)), sampler, seed)


def score(policy: SkipPolicy, grid: Grid = GRID) -> Score:
    """More cells are faster and worse; the last step and the first layer hurt most."""
    hurt = sum(
        (1 + step) / (1 + layer)
        for step in policy.quantized_steps(grid) for layer in policy.quantized_layers(grid)
        if not policy.is_native
    )  # fmt: skip
    psnr_db = 100.0 if policy.is_native else 45 - hurt
    mse = 255.0**2 / 10 ** (psnr_db / 10)
    return Score(1 - 0.1 * policy.share(grid), psnr_db, {"psnr_db>=30": 30 - psnr_db}, (mse, mse / 2))


def walk(search: PolicySearch, count: int) -> list[str]:
    """The keys of `count` proposals, each answered; fewer where the sampler expects nothing more."""
    keys: list[str] = []
    for _ in range(count):
        proposal = search.ask()
        if isinstance(proposal, str):
            break
        assert proposal.policy == proposal.policy.on(search.space.grid)
        keys.append(proposal.policy.key)
        search.tell(proposal, score(proposal.policy, search.space.grid))
    return keys


def test_the_same_seed_proposes_the_same(sampler: str) -> None:
    assert walk(searching(sampler), 13) == walk(searching(sampler), 13)


@pytest.mark.parametrize("sampler", SAMPLERS[1:])
def test_another_seed_proposes_something_else(sampler: str) -> None:
    """Our own draws only candidates beside those that its model names, which may be the better ones."""
    assert walk(searching(sampler, seed=3), 5) != walk(searching(sampler, seed=4), 5)


def test_it_proposes_binary_parameters_of_the_grid_alone(sampler: str, folder: Path) -> None:
    storage = f"sqlite:///{folder / 'o.db'}"
    search = searching(sampler, storage=storage)
    for _ in range(12):
        proposal = search.ask()
        assert list(proposal.trial.params) == list(Space(GRID, ("fp8",)).choices)
        assert all(type(value) is bool for value in proposal.trial.params.values())
        assert proposal.policy.dtype in ("fp8", "native")
        assert set(proposal.policy.skip_layers) <= set(GRID.layers)
        search.tell(proposal, score(proposal.policy))
    for trial in optuna.load_study(study_name="s", storage=open_storage(storage)).get_trials():
        assert {repr(d) for d in trial.distributions.values()} == {
            repr(optuna.distributions.CategoricalDistribution((False, True)))
        }


def test_a_resumed_search_does_not_begin_with_the_same_numbers(sampler: str, folder: Path) -> None:
    storage = f"sqlite:///{folder / 'o.db'}"
    before = walk(searching(sampler, storage=storage, grid=WIDE), 6)
    after = walk(searching(sampler, storage=storage, grid=WIDE), 6)
    assert len(set(before) & set(after)) <= 1  # of 1,954 policies, by chance
    trials = optuna.load_study(study_name="s", storage=open_storage(storage)).get_trials()
    assert len(trials) == len(before) + len(after)


def test_resuming_is_reproducible_too(sampler: str, folder: Path) -> None:
    walks = []
    for name in ("a.db", "b.db"):
        storage = f"sqlite:///{folder / name}"
        walks.append(walk(searching(sampler, storage=storage), 4) + walk(searching(sampler, storage=storage), 8))
    assert walks[0] == walks[1]


def test_queued_policies_come_first(sampler: str) -> None:
    search = searching(sampler)
    queued = [SkipPolicy.parse(text, ("fp8",), GRID) for text in ("1,2/3,7", "0,2/2", "1/0,7", "0,3/3")]
    walk(search, 3)
    for policy in queued:
        search.enqueue(policy, "try")
    assert walk(search, 4) == [policy.key for policy in queued]
    asked = search.ask()
    assert asked.origin == "sampler" or (
        sampler == "rectangle" and asked.origin in ("preset", "predicted", "probe", "exchange")
    )


def test_a_failed_policy_does_not_stop_it(sampler: str) -> None:
    search, failed = searching(sampler), []
    for _ in range(4):
        proposal = search.ask(failed=failed)
        failed.append(proposal.policy)
        search.tell_failed(proposal)
    if sampler == "rectangle":
        assert len(set(failed)) == 4, "none of those that failed is asked for again"
        assert search.ask(failed=failed).policy not in failed
    assert len(walk(search, 8)) > 3


def test_it_learns_of_what_was_added_without_asking(sampler: str) -> None:
    search = searching(sampler)
    for text in ("/", "0/", "/0", "3/7"):
        policy = SkipPolicy.parse(text, ("fp8",), GRID)
        search.add(policy, "try", score(policy))
    walk(search, 8)


def test_every_policy_can_be_proposed(sampler: str) -> None:
    """No corner of a small grid is out of reach, the native policy included."""
    grid = Grid(2, (5,))
    everything = {"fp8:/", "fp8:0/", "fp8:1/"}
    if sampler == "rectangle":  # which never asks for one twice
        search = searching(sampler, grid=grid)
        for _ in range(3):
            proposal = search.ask()
            everything.remove(proposal.policy.key)
            search.tell(proposal, score(proposal.policy, grid))
        assert not everything and search.ask() == "front verified"
        return
    assert set(walk(searching(sampler, grid=grid), 24 if sampler != "brute-force" else 8)) >= everything
