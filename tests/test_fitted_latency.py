"""Searches in which latency is measured, and fitted where that is sure enough."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fa_tuner.cli.render import render_result, render_trials
from fa_tuner.domain.errors import InterruptedByUser, NothingQualifiesError
from fa_tuner.domain.measurement import Latency
from fa_tuner.domain.policy import SkipPolicy
from fa_tuner.domain.study import Evaluation, Study
from fa_tuner.engines.base import Generation
from fa_tuner.engines.landscape import Landscape, Table
from fa_tuner.engines.replay import ReplayEngine
from fa_tuner.engines.synthetic import synthetic_landscape
from fa_tuner.evaluate.evaluator import Evaluator
from fa_tuner.evaluate.latency_fit import CHECK_EVERY, LEAST_TIMED
from fa_tuner.recommend.question import recommend_from
from fa_tuner.report.documents import front_of, result_document
from fa_tuner.settings import load_run_settings
from fa_tuner.store.artifacts import Artifacts
from fa_tuner.store.repository import Store
from fa_tuner.tuning import tune
from tests.support.observers import Silent
from tests.support.tables import every_policy, tabulated

NOISE = "spread=0.01,drift=0.1,outliers=0.02"
OWN = ["0/", "/0", "0,1/", "0/0,1"]  # with everything quantized, enough for a fit
Outcome = tuple[Study, list[Evaluation]]


@dataclass
class Listening(Silent):
    """Keeps what it is told, and stops after so many policies."""

    stop_after: int = 10_000
    notes: list[str] = field(default_factory=list)
    evaluations: list[Evaluation] = field(default_factory=list)

    def note(self, text: str) -> None:
        self.notes.append(text)

    def evaluated(self, evaluation: Evaluation, done: int, best: object) -> None:
        self.evaluations.append(evaluation)

    def stop_requested(self) -> bool:
        return len(self.evaluations) >= self.stop_after

    @property
    def sources(self) -> list[str]:
        """Of the policies in the order of measuring, as they were then."""
        return [e.measurement.latency.source for e in self.evaluations if e.measurement is not None]


@dataclass
class Tuned:
    """Tunes landscapes in one store, with latency that counts as measured."""

    folder: Path

    def __call__(
        self, landscape: Landscape | None = None, observer: Silent | None = None, noise: str = "", **settings: Any
    ) -> Outcome:
        url, model = f"sqlite:///{self.folder / 'fa-tune.db'}", self.folder / "landscape.json"
        (landscape or synthetic_landscape(4, 6, prompts=2, seed=1)).write(model)
        chosen = load_run_settings({
            "engine": "replay", "model": str(model), "study": "s", "min_psnr": 36, "trials": 15,
            "engine_args": {"latency": "measured", "noise": noise}, **settings,
        })  # fmt: skip
        with Store.open(url) as store:
            study = tune(chosen.request(), store, Artifacts(str(self.folder / "a"), 2**20), observer or Silent(), url)
            return study, store.evaluations("s")


@pytest.fixture
def tuned(tmp_path: Path) -> Tuned:
    return Tuned(tmp_path)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """A study that nothing interrupted."""
    return Tuned(tmp_path_factory.mktemp("whole"))()


@pytest.fixture
def generated(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A number for each generation so far, the steps that it did not run."""
    original, counted = ReplayEngine.generate, list[int]()

    def generate(self: ReplayEngine, *arguments: Any, **named: Any) -> Generation:
        made = original(self, *arguments, **named)
        counted.append(made.reused_steps)
        return made

    monkeypatch.setattr(ReplayEngine, "generate", generate)
    return counted


def bent(by: Callable[[SkipPolicy], float]) -> Landscape:
    """Each policy of a small grid takes so much longer, in shares of native, than in proportion to its cells."""
    formula = synthetic_landscape(4, 4, prompts=2, seed=1, attention_share=0.6, attention_ratio=dict.fromkeys(
        ("fp8", "mxfp8", "mxfp4"), 0.5))  # fmt: skip
    made = tabulated(formula, every_policy(formula.grid))
    table = made.record
    assert isinstance(table, Table)
    slower = np.array([0.0 if policy.is_native else by(policy) for policy in table.policies])
    return replace(
        made, record=Table(table.policies, table.cases, table.values, table.identical, table.relative + slower)
    )


def sources(outcome: Outcome) -> dict[str, str]:
    return {e.policy.key: e.measurement.latency.source for e in outcome[1] if e.measurement is not None}


# --- what it saves, and what it does not cost -------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(2))
def test_it_takes_fewer_generations_and_finds_as_much(tmp_path: Path, generated: list[int], seed: int) -> None:
    spent: list[int] = []
    gains: list[float] = []
    for every in (False, True):
        folder = tmp_path / str(every)
        folder.mkdir()
        generated.clear()
        outcome = Tuned(folder)(
            synthetic_landscape(5, 6, prompts=2, seed=seed),
            noise=f"{NOISE},seed={seed}",
            time_every_policy=every,
            trials=20,
        )
        spent.append(len(generated))
        gains.append(recommend_from(*outcome, None).measurement.latency.gain)
    assert spent[0] < 0.8 * spent[1]
    assert gains[0] == pytest.approx(gains[1], abs=0.01)


def test_policies_are_timed_until_the_fit_holds_and_one_in_eight_from_then_on(tuned: Tuned) -> None:
    told = Listening()
    tuned(observer=told)
    first = told.sources.index("fitted")
    assert first >= LEAST_TIMED and set(told.sources[:first]) == {"measured"}
    (said,) = told.notes
    assert said.startswith(f"latency of fp8 is fitted over {first} timed policies, residuals 0.0% RMS")
    runs = "".join(source[0] for source in told.sources).split("m")
    assert max(map(len, runs)) == CHECK_EVERY - 1 and told.sources.count("fitted") > len(told.sources) / 2


def test_a_fitted_policy_is_generated_once_a_case_and_may_resume(tuned: Tuned, generated: list[int]) -> None:
    by_policy: list[tuple[str, int]] = []
    original = Evaluator.measure

    def measure(self: Evaluator, policy: SkipPolicy, given: Latency | None = None) -> Any:
        before = len(generated)
        made = original(self, policy, given)
        by_policy.append((made[0].latency.source, len(generated) - before))
        if made[0].latency.source == "measured":
            assert not any(generated[before:])
        assert made[0].coverage.proven and made[0].coverage.quantized_calls
        return made

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Evaluator, "measure", measure)
        _, evaluations = tuned()
    assert set(by_policy) == {("measured", 2 * 3 * 2), ("fitted", 2)}
    assert any(e.measurement.detail["steps_reused"] for e in evaluations if e.measurement and not e.policy.is_native)


def test_own_policies_are_always_timed(tuned: Tuned) -> None:
    own = [*OWN, "1,2/", "0-2/1"]
    outcome = tuned(tries=own, trials=14)
    found = sources(outcome)
    assert "fitted" in found.values() and {found[f"fp8:{text}"] for text in own} == {"measured"}


def test_every_policy_may_be_timed(tuned: Tuned) -> None:
    told = Listening()
    tuned(observer=told, time_every_policy=True)
    assert set(told.sources) == {"measured"} and told.notes == []


def test_projected_latency_is_never_fitted(tuned: Tuned) -> None:
    outcome = tuned(device_profile="ascend-pr2640")
    assert set(sources(outcome).values()) == {"projected"}
    assert "latency_fits" not in result_document(*outcome)


# --- what is shown and recommended ------------------------------------------------------------------------------------


def test_the_recommended_policy_and_the_front_are_timed(tuned: Tuned) -> None:
    study, evaluations = outcome = tuned(noise=NOISE)
    found = sources(outcome)
    assert "fitted" in found.values()
    answer = recommend_from(study, evaluations, None)
    assert (answer.measurement.latency.source, answer.measurement.latency.repeats) == ("measured", 15)
    assert {c.measurement.latency.source for c in front_of(study, evaluations)} == {"measured"}
    beyond = [e.measurement for e in evaluations if e.measurement and found[e.policy.key] == "fitted"]
    for measured in beyond:  # none is left that would be on it
        assert any(
            c.measurement.latency.relative <= measured.latency.relative
            and c.measurement.psnr_db() >= measured.psnr_db()
            for c in front_of(study, evaluations)
        )


def test_each_figures_source_is_shown_with_the_residuals(tuned: Tuned, capsys: pytest.CaptureFixture[str]) -> None:
    outcome = tuned(noise=NOISE)
    predicted = Counter(sources(outcome).values())["fitted"]
    render_trials(*outcome)
    shown = capsys.readouterr().out
    assert shown.count("% fitted  ") == predicted > 0
    assert f"holds, {predicted} policies have theirs from it" in shown and "RMS, " in shown and " worst; " in shown
    render_result(*outcome)
    table = capsys.readouterr().out
    assert "fit        latency fitted over" in table and "% fitted  " not in table
    document = result_document(*outcome)
    (fit,) = document["latency_fits"]
    assert fit["holds"] and fit["doubt"] == "" and 0 < fit["rms"] <= fit["worst"] < 0.03
    assert fit["timed"] == len(outcome[1]) - 1 - predicted
    assert {point["latency"]["source"] for point in document["front"]} == {"measured"}
    assert document["recommended"]["latency"]["source"] == "measured"


def test_what_was_only_fitted_is_not_recommended_before_it_is_timed(tuned: Tuned) -> None:
    """A study that was interrupted, asked for what no timed policy meets."""
    told = Listening(stop_after=13)
    with pytest.raises(InterruptedByUser):
        tuned(observer=told)
    with Store.open(f"sqlite:///{tuned.folder / 'fa-tune.db'}") as store:
        study, evaluations = store.study("s"), store.evaluations("s")
        answer = recommend_from(study, evaluations, None)
        assert answer.measurement.latency.source == "measured"
        assert any("faster by their fitted latency; a further run times them" in note for note in answer.notes)
        fitted = [e for e in evaluations if e.measurement and e.measurement.latency.source in ("fitted", "projected")]
        native = [e for e in evaluations if e.policy.is_native]
        with pytest.raises(NothingQualifiesError, match="only fitted, and a prediction is not recommended"):
            recommend_from(study, native + fitted, None)


# --- where it does not hold -------------------------------------------------------------------------------------------


def test_a_fit_that_a_check_disagrees_with_switches_itself_off(tuned: Tuned) -> None:
    """The user's own policies are in line, all others take longer."""
    in_line = {f"fp8:{text}" for text in (*OWN, "/")}
    told, landscape = Listening(), bent(lambda policy: 0.0 if policy.key in in_line else 0.1)
    study, evaluations = outcome = tuned(landscape, told, tries=OWN, trials=24)
    start, check = len(in_line), len(in_line) + CHECK_EVERY - 1
    assert set(told.sources[:start]) == {"measured"} == set(told.sources[check:])
    assert len(told.sources) > check + 2
    first_fitted = told.sources.index("fitted")
    last_fitted = len(told.sources) - 1 - told.sources[::-1].index("fitted")
    assert last_fitted - first_fitted < CHECK_EVERY
    held, off = told.notes
    assert held.startswith("latency of fp8 is fitted over") and off.startswith(
        "the fit of latency of fp8 does not hold: fp8, skip"
    )
    assert off.endswith("; policies are timed again")
    answer = recommend_from(study, evaluations, None)
    best = min(
        landscape.relative_latency(e.policy) for e in evaluations
        if e.measurement and not e.policy.is_native and study.spec.requirement.met_by(e.measurement.cases)
    )  # fmt: skip
    assert answer.measurement.latency.relative == pytest.approx(best)
    for evaluation in evaluations:  # what is left of it says how wrong it may be
        if evaluation.measurement and evaluation.measurement.latency.source == "fitted":
            assert evaluation.measurement.latency.spread > 0.03
    assert not result_document(*outcome)["latency_fits"][0]["holds"]


def test_latency_that_is_no_line_is_never_fitted(tuned: Tuned, capsys: pytest.CaptureFixture[str]) -> None:
    told = Listening()
    outcome = tuned(bent(lambda policy: 0.2 if policy.skip_layers.indices else 0.0), told, tries=OWN, trials=14)
    assert set(told.sources) == {"measured"} and told.notes == []
    render_trials(*outcome)
    assert "; does not hold: fp8, skip steps" in capsys.readouterr().out


# --- going on -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stop_after", [1, LEAST_TIMED - 1, LEAST_TIMED + 1, 13, 15])
def test_a_resumed_study_decides_alike(tuned: Tuned, whole: Outcome, stop_after: int) -> None:
    told = Listening(stop_after=stop_after)
    with pytest.raises(InterruptedByUser):
        tuned(observer=told)
    _, evaluations = resumed = tuned()
    assert sources(resumed) == sources(whole)
    figures = [[e.measurement.latency for e in found if e.measurement] for found in (evaluations, whole[1])]
    assert [latency.relative for latency in figures[0]] == pytest.approx([latency.relative for latency in figures[1]])


@pytest.mark.parametrize("at", [0, 1, 3])
def test_stopped_among_the_finalists_it_goes_on_there(
    tuned: Tuned, whole: Outcome, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    original, calls = Evaluator.time_again, list[str]()

    def time_again(self: Evaluator, policy: SkipPolicy, repeats: int) -> Latency:
        calls.append(policy.key)
        if len(calls) == at + 1:
            raise KeyboardInterrupt
        return original(self, policy, repeats)

    monkeypatch.setattr(Evaluator, "time_again", time_again)
    with pytest.raises(InterruptedByUser):
        tuned()
    resumed = tuned()
    assert sources(resumed) == sources(whole)
    assert calls[at] == calls[at + 1] and len(set(calls)) == len(calls) - 1  # only what was lost is timed again


def test_a_finished_study_is_left_as_it_is(tuned: Tuned, generated: list[int]) -> None:
    first = tuned()
    generated.clear()
    assert tuned()[1] == first[1] and generated == []


def test_a_study_may_be_gone_on_with_either_way(tuned: Tuned) -> None:
    first = tuned(trials=12)
    told = Listening()
    second = tuned(observer=told, trials=14, time_every_policy=True)
    assert "fitted" in sources(first).values() and set(told.sources) == {"measured"}
    assert [e.policy for e in second[1][: len(first[1])]] == [e.policy for e in first[1]]


def test_an_own_policy_that_was_fitted_before_is_timed(tuned: Tuned) -> None:
    before = sources(tuned(tries=OWN, trials=14))
    fitted = next(key for key, source in before.items() if source == "fitted")
    after = sources(tuned(tries=[*OWN, fitted], trials=14))
    assert after[fitted] == "measured" and after.keys() == before.keys()
