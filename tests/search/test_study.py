"""The Optuna study, and how it is brought in line with what the store knows."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import FrozenTrial, TrialState

from fa_tuner.domain.errors import StoreError, UsageError
from fa_tuner.domain.policy import Grid, SkipPolicy
from fa_tuner.search import study as study_module
from fa_tuner.search.space import Space
from fa_tuner.search.study import PolicySearch, Score, delete, open_storage, optuna_url
from tests.support.quick_disk import quick_folder

GRID = Grid(3, (0, 1, 4))
SPACE = Space(GRID, ("fp8",))
MET = Score(0.95, 41.5, {"psnr_db>=30": -11.5, "mae<=3": -1.0})
MISSED = Score(0.90, 22.0, {"psnr_db>=30": 8.0, "mae<=3": 2.5}, (410.0, 12.5))
Known = dict[str, tuple[SkipPolicy, str, Score | None]]


@pytest.fixture
def url() -> Iterator[str]:
    with quick_folder() as folder:
        yield f"sqlite:///{folder / 'fa-tune.db'}"


def search(url: str, sampler: str = "random", seed: int = 0, name: str = "s") -> PolicySearch:
    return PolicySearch(url, name, SPACE, sampler, seed)


def trials(url: str, name: str = "s") -> list[FrozenTrial]:
    """As anybody else who opens the study sees them."""
    return optuna.load_study(study_name=name, storage=open_storage(url)).get_trials()


def policy(text: str) -> SkipPolicy:
    return SkipPolicy.parse(text, ("fp8",), GRID)


def known(*entries: tuple[str, Score | None], origin: str = "sampler") -> Known:
    return {policy(text).key: (policy(text), origin, score) for text, score in entries}


def as_plain(trial: FrozenTrial) -> tuple[Any, ...]:
    return trial.state, trial.values, dict(trial.params), dict(trial.user_attrs), dict(trial.constraints or {})


# --- ask and tell ---------------------------------------------------------------------------------------------------


def test_it_is_an_ordinary_optuna_study(url: str) -> None:
    opened = search(url)
    opened.enqueue(policy("0/4"), "try")
    proposal = opened.ask()
    assert (proposal.policy, proposal.origin) == (policy("0/4"), "try")
    opened.tell(proposal, MISSED)
    study = optuna.load_study(study_name="s", storage=open_storage(url))
    assert [d.name for d in study.directions] == ["MINIMIZE", "MAXIMIZE"]
    assert study.metric_names == ["relative latency", "PSNR dB"]
    (trial,) = study.get_trials()
    assert trial.state is TrialState.COMPLETE
    assert trial.values == [0.90, 22.0]
    assert trial.params == SPACE.to_params(policy("0/4"))
    assert {"origin": "try", "policy": "fp8:0/4"}.items() <= trial.user_attrs.items()
    assert dict(trial.constraints) == {"psnr_db>=30": 8.0, "mae<=3": 2.5}


def test_optuna_knows_which_trials_are_feasible(url: str) -> None:
    opened = search(url)
    for text, score in (("0/", MISSED), ("1/", MET)):
        opened.enqueue(policy(text), "try")
        opened.tell(opened.ask(), score)
    best = optuna.load_study(study_name="s", storage=open_storage(url)).best_trials
    assert [trial.user_attrs["policy"] for trial in best] == ["fp8:1/"]


def test_the_samplers_own_proposals_say_so(url: str) -> None:
    opened = search(url)
    proposal = opened.ask()
    assert proposal.origin == "sampler"
    opened.tell(proposal, MET)
    assert trials(url)[0].user_attrs["policy"] == proposal.policy.key


def test_queued_policies_come_first_in_order_and_once(url: str) -> None:
    opened = search(url)
    for text, origin in (("/", "anchor"), ("0/", "try"), ("/", "preset"), ("2/0", "preset")):
        opened.enqueue(policy(text), origin)
    asked = [opened.ask() for _ in range(3)]
    assert [(p.policy.key, p.origin) for p in asked] == [
        ("fp8:/", "anchor"), ("fp8:0/", "try"), ("fp8:2/0", "preset")
    ]  # fmt: skip
    assert opened.ask().origin == "sampler"


def test_a_policy_under_way_or_told_is_not_queued_again(url: str) -> None:
    opened = search(url)
    opened.enqueue(policy("0/"), "try")
    running = opened.ask()
    opened.enqueue(policy("0/"), "try")
    opened.tell(running, MET)
    opened.enqueue(policy("0/"), "try")
    assert len(trials(url)) == 1


def test_a_failed_policy_can_be_queued_again(url: str) -> None:
    opened = search(url)
    opened.enqueue(policy("0/"), "try")
    opened.tell_failed(opened.ask())
    assert trials(url)[0].state is TrialState.FAIL
    opened.enqueue(policy("0/"), "try")
    again = opened.ask()
    assert (again.policy, again.origin) == (policy("0/"), "try")


def test_a_policy_that_quantizes_nothing_is_the_native_one(url: str) -> None:
    """Repeats of the native policy come as such, so the caller can answer them from what it knows."""
    opened = search(url)
    everything_skipped = SkipPolicy("fp8", policy("/").skip_steps, policy("/").skip_layers.of((0, 1, 4)))
    opened.enqueue(everything_skipped, "try")
    assert opened.ask().policy == SkipPolicy()


# --- reconcile ------------------------------------------------------------------------------------------------------


def test_running_with_a_committed_evaluation_becomes_complete(url: str) -> None:
    """Killed between the store's commit and Optuna's tell."""
    opened = search(url)
    opened.enqueue(policy("0/4"), "try")
    opened.ask()
    resumed = search(url)
    assert resumed.reconcile(known(("0/4", MISSED))) == 1
    (trial,) = trials(url)
    assert trial.state is TrialState.COMPLETE
    assert trial.values == [0.90, 22.0]
    assert dict(trial.constraints) == dict(MISSED.violations)
    assert trial.user_attrs["policy"] == "fp8:0/4" and trial.user_attrs["origin"] == "try"


def test_running_without_one_becomes_failed_and_can_be_asked_again(url: str) -> None:
    opened = search(url)
    opened.enqueue(policy("0/4"), "try")
    opened.ask()
    resumed = search(url)
    assert resumed.reconcile({}) == 1
    assert [trial.state for trial in trials(url)] == [TrialState.FAIL]
    resumed.enqueue(policy("0/4"), "try")
    again = resumed.ask()
    assert again.policy == policy("0/4")
    resumed.tell(again, MET)
    assert [trial.state for trial in trials(url)] == [TrialState.FAIL, TrialState.COMPLETE]


def test_running_with_a_failed_evaluation_becomes_failed(url: str) -> None:
    opened = search(url)
    opened.enqueue(policy("0/4"), "try")
    opened.ask()
    resumed = search(url)
    assert resumed.reconcile(known(("0/4", None))) == 1
    assert [trial.state for trial in trials(url)] == [TrialState.FAIL]
    assert resumed.reconcile(known(("0/4", None))) == 0


def test_running_of_the_sampler(url: str) -> None:
    opened = search(url)
    asked = opened.ask().policy
    resumed = search(url)
    resumed.reconcile({asked.key: (asked, "sampler", MET)})
    (trial,) = trials(url)
    assert trial.state is TrialState.COMPLETE and trial.values == [0.95, 41.5]


def test_killed_within_tell(url: str) -> None:
    """One of the two constraints was already there; the first call for a key counts."""
    opened = search(url)
    opened.enqueue(policy("0/"), "try")
    opened.ask().trial.set_constraint("mae<=3", 2.5)
    assert search(url).reconcile(known(("0/", MISSED))) == 1
    (trial,) = trials(url)
    assert trial.state is TrialState.COMPLETE and dict(trial.constraints) == dict(MISSED.violations)


def test_killed_within_ask(url: str) -> None:
    """The trial runs with some of its parameters, or none."""
    opened = search(url)
    study = optuna.load_study(study_name="s", storage=open_storage(url))
    study.ask()
    study.ask().suggest_categorical("skip_step_000", [False, True])
    opened = search(url)
    assert opened.reconcile({}) == 2
    assert {trial.state for trial in trials(url)} == {TrialState.FAIL}
    opened.tell(opened.ask(), MET)


def test_evaluations_that_optuna_never_heard_of_are_added(url: str) -> None:
    opened = search(url)
    evaluations: Known = {"native": (SkipPolicy(), "baseline", Score(1.0, 100.0, {"psnr_db>=30": -70.0}))}
    evaluations |= known(("0/4", MISSED), ("1/", None), origin="preset")
    assert opened.reconcile(evaluations) == 2
    native, missed = trials(url)
    assert native.values == [1.0, 100.0] and set(native.params.values()) == {True}
    assert missed.values == [0.90, 22.0] and missed.params == SPACE.to_params(policy("0/4"))
    assert dict(missed.constraints) == dict(MISSED.violations)
    assert missed.user_attrs == {"origin": "preset", "policy": "fp8:0/4", "mse": [410.0, 12.5]}


def test_told_trials_are_left_alone(url: str) -> None:
    opened = search(url)
    opened.enqueue(policy("0/4"), "try")
    opened.tell(opened.ask(), MET)
    before = list(map(as_plain, trials(url)))
    assert search(url).reconcile(known(("0/4", MET))) == 0
    assert list(map(as_plain, trials(url))) == before


def test_queued_trials_stay_queued(url: str) -> None:
    opened = search(url)
    opened.enqueue(policy("0/4"), "try")
    resumed = search(url)
    assert resumed.reconcile({}) == 0
    assert resumed.ask().policy == policy("0/4")


def test_reconciling_twice_changes_nothing(url: str) -> None:
    opened = search(url)
    for text in ("0/", "1/", "2/", "/0"):
        opened.enqueue(policy(text), "try")
    opened.tell(opened.ask(), MET)  # 0/
    opened.tell_failed(opened.ask())  # 1/
    opened.ask()  # 2/, committed
    opened.ask()  # /0, lost
    evaluations = known(("0/", MET), ("1/", None), ("2/", MISSED), ("/1", MET))
    assert search(url).reconcile(evaluations) == 3
    after = list(map(as_plain, trials(url)))
    states = [trial.state for trial in trials(url)]
    assert states == [TrialState.COMPLETE, TrialState.FAIL, TrialState.COMPLETE, TrialState.FAIL, TrialState.COMPLETE]
    assert search(url).reconcile(evaluations) == 0
    assert list(map(as_plain, trials(url))) == after


def test_no_finished_evaluation_is_there_twice(url: str) -> None:
    """A repeat that was under way is answered with the same figures, and nothing is added for it."""
    opened = search(url)
    opened.add(policy("0/"), "try", MET)
    study = optuna.load_study(study_name="s", storage=open_storage(url))
    study.enqueue_trial(SPACE.to_params(policy("0/")))
    opened.ask()
    assert search(url).reconcile(known(("0/", MET))) == 1
    assert [(trial.state, trial.values) for trial in trials(url)] == [(TrialState.COMPLETE, [0.95, 41.5])] * 2


# --- several at once ------------------------------------------------------------------------------------------------


def test_a_trial_that_another_worker_closes_while_it_is_made_is_asked_for_again(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It saw the trial before the claim, and took it for a killed worker's."""
    opened, other = search(url), search(url)
    original, mended = optuna.Study.ask, []

    def ask(self: optuna.Study, *arguments: Any) -> optuna.Trial:
        trial = original(self, *arguments)
        if not mended:
            mended.append(other.reconcile({}))
        return trial

    monkeypatch.setattr(optuna.Study, "ask", ask)
    opened.tell(opened.ask(), MET)
    assert mended == [1]
    assert [trial.state for trial in trials(url)] == [TrialState.FAIL, TrialState.COMPLETE]


def test_what_another_worker_told_meanwhile_is_told_once(url: str) -> None:
    opened = search(url)
    opened.enqueue(policy("0/4"), "try")
    asked = opened.ask()
    assert search(url).reconcile(known(("0/4", MISSED))) == 1
    opened.tell(asked, MISSED)
    opened.tell_failed(asked)
    (trial,) = trials(url)
    assert trial.values == [0.90, 22.0] and dict(trial.constraints) == dict(MISSED.violations)


# --- storage --------------------------------------------------------------------------------------------------------


def test_studies_are_apart(url: str) -> None:
    search(url, name="a").add(policy("0/"), "try", MET)
    assert search(url, name="b").reconcile({}) == 0
    assert trials(url, "b") == [] and len(trials(url, "a")) == 1


def test_deleting(url: str) -> None:
    for name in ("a", "b"):
        search(url, name=name).add(policy("0/"), "try", MET)
    delete(url, ["a", "never there"])
    assert optuna.get_all_study_names(open_storage(url)) == ["b"]
    assert search(url, name="a").reconcile({}) == 0


def test_an_unknown_sampler_is_refused(url: str) -> None:
    with pytest.raises(UsageError, match="sampler 'best' is unknown"):
        search(url, sampler="best")


def test_a_storage_that_cannot_be_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(study_module, "OPEN_SECONDS", 0.2)
    (tmp_path / "notes.txt").write_text("no database " * 500)
    with pytest.raises(StoreError, match="Optuna cannot open its tables for study s") as caught:
        search(f"sqlite:///{tmp_path / 'notes.txt'}")
    assert "no database" not in str(caught.value)


def test_the_driver_is_named_for_postgresql_alone() -> None:
    assert optuna_url("postgresql://u@h/d") == "postgresql+psycopg://u@h/d"
    assert optuna_url("postgresql+psycopg://u@h/d") == "postgresql+psycopg://u@h/d"
    assert optuna_url("sqlite:///x.db") == "sqlite:///x.db"
