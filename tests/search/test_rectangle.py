"""Our own sampler, on landscapes of which every policy is known."""

from __future__ import annotations

import shutil
from collections import Counter, deque
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.trial import TrialState, create_trial

from fa_tuner.domain.measurement import Constraint, Requirement
from fa_tuner.domain.policy import Grid, SkipPolicy
from fa_tuner.search.acquisition import Goal
from fa_tuner.search.measured import MSE
from fa_tuner.search.rectangle import Proposed, RectangleSampler
from fa_tuner.search.space import Space
from fa_tuner.search.study import Proposal, Score, open_storage
from tests.support.quick_disk import quick_folder
from tests.support.searched import SPAN_DB, Oracle, spread_of
from tests.support.tables import every_policy

SEEDS = range(5)
GRIDS = [(4, 6), (4, 8), (5, 7)]
WRONG = {"interactions": 1.0, "cliffs": 3}  # cells of no rank, and pairs that cost 10 dB together
EASY = {"interactions": 0.0, "disagreement": 0.0, "prompts": 1}


@cache
def oracle(steps: int, layers: int, seed: int, **options: Any) -> Oracle:
    return Oracle(steps, layers, seed, options)


def budget(known: Oracle) -> int:
    return 2 * (known.steps + known.layers)


@cache
def found(sampler: str, steps: int, layers: int, seed: int, count: int, **options: Any) -> tuple[SkipPolicy, ...]:
    """What a study with this sampler measures."""
    return tuple(oracle(steps, layers, seed, **options).from_all_quantized(sampler, count, seed))


@pytest.fixture
def folder() -> Iterator[Path]:
    with quick_folder() as made:
        yield made


def keys(policies: list[SkipPolicy]) -> list[str]:
    return [policy.key for policy in policies]


def asked(answer: Any) -> Proposal:
    assert isinstance(answer, Proposal), answer
    return answer


# --- how good -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("steps", "layers"), GRIDS)
def test_the_front_after_two_policies_an_index(steps: int, layers: int) -> None:
    shares = []
    for seed in SEEDS:
        known = oracle(steps, layers, seed)
        shares.append(known.share(found("rectangle", steps, layers, seed, budget(known))))
    assert median(shares) >= 0.95 and min(shares) >= 0.85, spread_of(shares)


@pytest.mark.parametrize(("steps", "layers"), GRIDS)
def test_it_is_ahead_at_a_quarter_of_that(steps: int, layers: int) -> None:
    medians = {}
    for sampler in ("rectangle", "random", "tpe"):
        shares = []
        for seed in SEEDS:
            known = oracle(steps, layers, seed)
            count = budget(known) if sampler == "rectangle" else budget(known) // 4
            shares.append(known.share(found(sampler, steps, layers, seed, count)[: budget(known) // 4]))
        medians[sampler] = median(shares)
    assert medians["rectangle"] > max(medians["random"], medians["tpe"]), medians


def test_a_landscape_that_the_model_is_wrong_about() -> None:
    shares = []
    for seed in SEEDS:
        known = oracle(4, 6, seed, **WRONG)
        shares.append(known.share(found("rectangle", 4, 6, seed, budget(known), **WRONG)))
    assert median(shares) >= 0.85 and min(shares) >= 0.6, spread_of(shares)


def test_the_largest_share_at_a_threshold() -> None:
    """Of that of the best policy which meets it."""
    reached = []
    for seed in SEEDS:
        known = oracle(4, 6, seed)
        quality = sorted(known.score(policy).psnr_db for policy in every_policy(known.grid) if not policy.is_native)
        for rank in (0.5, 0.8):
            threshold = quality[int(rank * len(quality))]
            best, ours = (
                max(p.share(known.grid) for p in policies if known.score(p).psnr_db >= threshold)
                for policies in (
                    every_policy(known.grid),
                    known.walk(known.search(goal=Goal(threshold_db=threshold)), budget(known))[0],
                )
            )
            reached.append(ours / best)
    assert median(reached) >= 0.98 and min(reached) >= 0.85, spread_of(reached)


# --- what it proposes -----------------------------------------------------------------------------------------------


def test_everything_quantized_comes_first() -> None:
    known = oracle(4, 6, 0)
    first = asked(known.search().ask())
    assert (first.policy.key, first.origin) == ("fp8:/", "preset")


@pytest.mark.parametrize(("steps", "layers", "options"), [(4, 6, {}), (3, 3, WRONG)])
def test_no_policy_is_proposed_twice_and_never_the_native_one(steps: int, layers: int, options: dict[str, Any]) -> None:
    known = oracle(steps, layers, 2, **options)
    policies, _ = known.walk(known.search(), 40)
    assert max(Counter(keys(policies)).values()) == 1
    assert not any(policy.is_native for policy in policies)


def test_a_seed_means_the_same_proposals() -> None:
    known = oracle(4, 6, 3)
    assert keys(known.walk(known.search(seed=7), 16)[0]) == keys(known.walk(known.search(seed=7), 16)[0])


@pytest.mark.parametrize("threshold", [99.0, 1.0])
def test_a_threshold_that_nothing_or_everything_meets(threshold: float) -> None:
    """The front is found all the same."""
    known = oracle(4, 6, 1)
    policies, _ = known.walk(known.search(goal=Goal(threshold_db=threshold)), budget(known))
    assert known.share(policies) > (0.85 if threshold < 50 else 0.6)
    if threshold > 50:  # and what comes nearest to it
        best = max(known.score(policy).psnr_db for policy in policies)
        assert best > known.score(SkipPolicy("fp8")).psnr_db + SPAN_DB - 3


def test_a_threshold_of_another_metric_is_learned() -> None:
    wanted = Requirement((Constraint.parse("ssim>=0.9"),))
    known = Oracle(4, 6, 1, requirement=wanted)
    policies, _ = known.walk(known.search(goal=Goal.of(wanted)), budget(known))
    best, ours = (
        max(p.share(known.grid) for p in some if known.score(p).violations["ssim>=0.9"] <= 0 and not p.is_native)
        for some in (every_policy(known.grid), policies)
    )
    assert 0 < 0.9 * best <= ours


@pytest.mark.parametrize(("steps", "layers"), [(1, 1), (1, 8), (8, 1), (2, 1)])
def test_one_step_or_one_layer(steps: int, layers: int) -> None:
    known = oracle(steps, layers, 4)
    policies, why = known.walk(known.search(), 40)
    assert known.share(policies) > 0.98 and why in ("front verified", "nothing left to gain")
    assert len(policies) < 40


# --- when it ends ---------------------------------------------------------------------------------------------------


def test_a_tiny_grid_ends_verified_with_its_whole_front() -> None:
    for seed in SEEDS:
        known = oracle(2, 2, seed)
        policies, why = known.walk(known.search(), 20)
        assert (why, known.share(policies)) == ("front verified", pytest.approx(1.0))
        assert len(policies) <= known.space.count - 1 == 9


def test_all_measured_is_verified() -> None:
    known = oracle(2, 3, 0)
    search = known.search()
    for policy in every_policy(known.grid):
        search.add(policy, "try", known.score(policy))
    assert search.ask() == "front verified"


def test_an_easy_landscape_ends_before_a_generous_budget() -> None:
    for seed in SEEDS:
        known = oracle(4, 6, seed, **EASY)
        policies, why = known.walk(known.search(), 60)
        assert why in ("front verified", "nothing left to gain") and len(policies) < 60
        assert known.share(policies) > 0.99


def test_the_end_is_told_as_often_as_it_is_asked() -> None:
    known = oracle(2, 2, 0)
    search = known.search()
    _, why = known.walk(search, 20)
    assert search.ask() == search.ask() == why


# --- what it knows --------------------------------------------------------------------------------------------------


def test_resumed_at_any_boundary_it_proposes_the_same(folder: Path) -> None:
    """From the storage alone; a copy of it is kept at each boundary."""
    known, boundaries = oracle(5, 7, 4), 13
    whole, search = [], known.search(storage=f"sqlite:///{folder / 'whole.db'}")
    for count in range(boundaries):
        shutil.copy(folder / "whole.db", folder / f"{count}.db")
        whole += keys(known.walk(search, 1)[0])
    for count in range(boundaries):
        resumed = known.search(storage=f"sqlite:///{folder / f'{count}.db'}")
        assert keys(known.walk(resumed, 2)[0]) == (
            whole[count : count + 2] if count + 2 <= boundaries else whole[count:] + keys(known.walk(search, 1)[0])
        ), count


@pytest.mark.parametrize("every", [1, 5])
def test_resumed_again_and_again_it_proposes_the_same(folder: Path, every: int) -> None:
    known = oracle(5, 7, 3)
    whole, _ = known.walk(known.search(), 15)
    resumed: list[SkipPolicy] = []
    while len(resumed) < 15:
        resumed += known.walk(known.search(storage=f"sqlite:///{folder / 'o.db'}"), every)[0]
    assert keys(resumed) == keys(whole)


def test_it_learns_of_policies_that_others_add() -> None:
    known = oracle(4, 6, 0)
    search = known.search()
    given = [SkipPolicy.parse(text, ("fp8",), known.grid) for text in ("/", "0/", "/0", "3/5", "0,1/", "/0-2")]
    for policy in given:
        search.add(policy, "try", known.score(policy))
    policies, _ = known.walk(search, budget(known) - 6)
    assert not set(keys(policies)) & set(keys(given))
    assert known.share([*given, *policies]) > 0.8


@pytest.mark.parametrize(("measured", "running"), [(0, 2), (1, 5), (7, 5)])
def test_what_runs_elsewhere_is_not_proposed(measured: int, running: int) -> None:
    """Trials that run, and the policies of others that the study does not know of."""
    known = oracle(4, 6, 1)
    search = known.search()
    done, _ = known.walk(search, measured)
    elsewhere = [SkipPolicy.parse(text, ("fp8",), known.grid) for text in ("/", "0/", "3/", "0,3/", "/5")]
    also = [asked(search.ask(elsewhere)).policy for _ in range(running)]
    taken = keys(done + also) + [key for key in keys(elsewhere) if key not in keys(done)]
    assert max(Counter(taken).values()) == 1


def test_a_worker_waits_where_all_that_it_knew_before_a_measurement_is_under_way() -> None:
    known = oracle(4, 6, 1)
    search = known.search()
    taken = [asked(search.ask()).policy.key for _ in range(6)]
    assert len(set(taken)) == 6 and search.ask() == "nothing left to gain"


def test_the_native_policy_elsewhere_is_nothing() -> None:
    known = oracle(4, 6, 1)
    assert asked(known.search().ask([SkipPolicy()])).policy.key == "fp8:/"


def test_three_at_once_find_in_the_end_what_one_finds() -> None:
    """What runs counts as measured as predicted, so they are not all neighbours of one promising policy."""
    for seed in SEEDS:
        known = oracle(4, 6, seed)
        count = 3 * (known.steps + known.layers)
        search, running = known.search(), deque[Proposal]()
        policies, _ = known.walk(search, 1)
        while len(policies) < count:
            while len(running) < 3 and isinstance(proposal := search.ask(), Proposal):
                running.append(proposal)
            if not running:
                break
            told = running.popleft()
            search.tell(told, known.score(told.policy))
            policies.append(told.policy)
        assert known.share(policies) > 0.98 * known.share(known.walk(known.search(), count)[0]), seed


def test_trials_without_an_error_are_passed_over(folder: Path) -> None:
    """Failed ones, some that another sampler or an older release left, and some that somebody else added."""
    known = oracle(4, 6, 2)
    url = f"sqlite:///{folder / 'o.db'}"
    search = known.search("random", storage=url)
    for _ in range(3):
        search.tell(asked(search.ask()), Score(0.9, 30.0, {}))
        search.tell_failed(asked(search.ask()))
    study = optuna.load_study(study_name="s", storage=open_storage(url))
    study.add_trial(create_trial(values=[0.9, 30.0]))
    params = known.space.to_params(SkipPolicy("fp8"))
    distributions: Any = {name: optuna.distributions.CategoricalDistribution((False, True)) for name in params}
    study.add_trial(create_trial(values=[0.9, 30.0], params=params, distributions=distributions))
    ours = known.search(storage=url)
    assert asked(ours.ask()).policy.key == "fp8:/"
    policies, _ = known.walk(known.search(storage=url), 12)
    assert known.share([SkipPolicy("fp8"), *policies]) > 0.6


def test_the_native_baseline_is_passed_over() -> None:
    known = oracle(4, 6, 2)
    search = known.search()
    search.add(SkipPolicy(), "baseline", known.score(SkipPolicy()))
    assert keys(known.walk(search, 8)[0]) == keys(known.walk(known.search(), 8)[0])


def test_identical_frames_are_no_trouble() -> None:
    """Nothing that is quantized changes a sample; a study ends here, at its noise floor."""
    known = oracle(4, 6, 0)
    search, policies = known.search(), []
    while len(policies) < 12 and isinstance(proposal := search.ask(), Proposal):
        search.tell(proposal, Score(1 - 0.1 * proposal.policy.share(known.grid), 100.0, {}, (0.0, 0.0)))
        policies.append(proposal.policy)
    assert max(Counter(keys(policies)).values()) == 1


def test_optuna_alone_reads_its_trials(folder: Path) -> None:
    known = oracle(4, 6, 0)
    url = f"sqlite:///{folder / 'o.db'}"
    policies, _ = known.walk(known.search(storage=url), 12)
    trials = optuna.load_study(study_name="s", storage=open_storage(url)).get_trials()
    assert [trial.state for trial in trials] == [TrialState.COMPLETE] * 12
    assert [trial.params for trial in trials] == [known.space.to_params(policy) for policy in policies]
    assert [trial.user_attrs["policy"] for trial in trials] == keys(policies)
    assert [tuple(trial.user_attrs["mse"]) for trial in trials] == [known.score(policy).mse for policy in policies]
    origins = {trial.user_attrs["origin"] for trial in trials}
    assert origins <= {"preset", "predicted", "probe", "exchange"} and len(origins) > 1


# --- the sampler without `PolicySearch` -----------------------------------------------------------------------------


def walk(sampler: RectangleSampler, known: Oracle, count: int) -> list[SkipPolicy]:
    """As any Optuna study drives it, in memory."""
    study = optuna.create_study(directions=["minimize", "maximize"], sampler=sampler)
    names = list(known.space.choices)
    policies: list[SkipPolicy] = []

    def objective(trial: optuna.Trial) -> tuple[float, float]:
        params = {name: trial.suggest_categorical(name, [False, True]) for name in names}
        policies.append(known.space.to_policy(params))
        score = known.score(policies[-1])
        trial.set_user_attr(MSE, list(score.mse))
        return score.relative, score.psnr_db

    study.optimize(objective, n_trials=count)
    return policies


def test_it_is_an_ordinary_optuna_sampler() -> None:
    known = oracle(4, 6, 0)
    policies = walk(RectangleSampler(known.space), known, 12)
    assert keys(policies) == keys(known.walk(known.search(), 12)[0])


def test_past_its_end_optuna_goes_on_at_random() -> None:
    known = oracle(2, 1, 0)
    assert len(walk(RectangleSampler(known.space), known, 12)) == 12


def test_layers_cheap_to_keep_are_kept_first() -> None:
    """All layers alike but for their cost: of as many quantized ones the dearest are quantized."""
    known = oracle(3, 6, 0, spread=0.0, **EASY)
    costs = [1.0, 4.0, 1.0, 4.0, 1.0, 4.0]
    policies = walk(RectangleSampler(known.space, costs=costs), known, 14)
    kept = Counter(layer for policy in policies for layer in policy.skip_layers)
    assert sum(kept[layer] for layer in (0, 2, 4)) > 2 * sum(kept[layer] for layer in (1, 3, 5))


def test_costs_change_what_a_share_is() -> None:
    """A front over cost-weighted shares: nearly all of it is found."""
    known = oracle(4, 6, 0, **EASY)
    costs = np.array([6.0, 1.0, 1.0, 1.0, 1.0, 6.0])

    def share(policy: SkipPolicy) -> float:
        u, v = known.space.to_rectangle(policy)
        return float(u.mean() * (v * costs).sum() / costs.sum())

    def volume(policies: list[SkipPolicy]) -> float:
        quality = np.array([known.score(policy).psnr_db for policy in policies if not policy.is_native])
        shares = np.array([share(policy) for policy in policies if not policy.is_native])
        levels = known.score(SkipPolicy("fp8")).psnr_db + np.linspace(0, 25, 200)
        return float(np.where(quality[:, None] >= levels, shares[:, None], 0).max(0).mean())

    policies = walk(RectangleSampler(known.space, costs=costs), known, budget(known))
    assert volume(policies) / volume(list(every_policy(known.grid))) > 0.95


def test_a_right_prior_leads_to_the_front_at_once() -> None:
    """Against none, at a quarter of the budget."""
    shares: dict[bool, list[float]] = {True: [], False: []}
    for seed in SEEDS:
        known = oracle(4, 8, seed)
        for told in shares:
            priors = [true_weights(known, case) for case in range(2)] if told else None
            policies = walk(RectangleSampler(known.space, priors=priors), known, budget(known) // 4)
            shares[told].append(known.share(policies))
    assert median(shares[True]) > median(shares[False]) + 0.05, shares


def true_weights(known: Oracle, case: int) -> Any:
    """From the policies that quantize one cell alone."""
    grid = known.grid
    single = np.empty((grid.steps, len(grid.layers)))
    for policy in every_policy(grid):
        u, v = Space(grid, ("fp8",)).to_rectangle(policy)
        if u.sum() == v.sum() == 1:
            single[u.argmax(), v.argmax()] = known.score(policy).mse[case]
    return single


def test_a_resumed_generation_counts_for_what_it_costs() -> None:
    """With prefixes kept, policies that begin natively are cheap, and so asked for more often."""
    begins = {}
    for resumes in (False, True):
        begins[resumes] = 0
        for seed in SEEDS:
            known = oracle(5, 6, seed)
            policies, _ = known.walk(known.search(resumes=resumes), 16)
            begins[resumes] += sum(known.space.to_rectangle(p)[0].argmax() for p in policies)
    assert begins[True] > begins[False]


def test_the_settled_and_the_proposed_are_told_apart() -> None:
    sampler = RectangleSampler(Space(Grid(1, (0,)), ("fp8",)))
    study = optuna.create_study(directions=["minimize", "maximize"], sampler=sampler)
    first = sampler.propose(study)
    assert isinstance(first, Proposed) and [side.tolist() for side in first.rectangle] == [[True], [True]]
    assert sampler.propose(study, [first.rectangle]) == "nothing left to gain"
