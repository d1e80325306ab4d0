"""The use case as a whole, on landscapes: budgets, finalists, noisy clocks, thresholds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fa_tuner.domain.errors import (
    EngineError,
    NotFoundError,
    NothingQualifiesError,
    NotQuantizedError,
    ThresholdError,
    UsageError,
)
from fa_tuner.domain.measurement import CaseQuality
from fa_tuner.domain.policy import DTYPES, SkipPolicy
from fa_tuner.domain.study import Baseline, Evaluation, Recommendation, Study
from fa_tuner.engines.synthetic import synthetic_landscape
from fa_tuner.evaluate.evaluator import Evaluator
from fa_tuner.recommend.question import recommend_from
from fa_tuner.search import study as search_study
from fa_tuner.settings import load_run_settings
from fa_tuner.store.artifacts import Artifacts
from fa_tuner.store.repository import Store
from fa_tuner.tuning import tune
from tests.support.observers import Silent

NOISE = "spread=0.05,drift=0.1,outliers=0.05"
SILENT = Silent()
Tune = Callable[..., tuple[Study, list[Evaluation]]]


@pytest.fixture
def tuned(tmp_path: Path) -> Tune:
    """`tuned(landscape_options, **settings)` tunes a synthetic landscape; the study and its evaluations."""
    url = f"sqlite:///{tmp_path / 'fa-tune.db'}"

    def run(landscape: dict[str, Any], observer: Silent = SILENT, **settings: Any) -> tuple[Study, list[Evaluation]]:
        options = {"steps": 4, "layers": 4, "prompts": 2, "seed": 1, **landscape}
        model = tmp_path / f"landscape-{options['seed']}.json"
        synthetic_landscape(**options).write(model)
        chosen = load_run_settings({"engine": "replay", "model": str(model), "study": "s", "min_psnr": 5, **settings})
        with Store.open(url) as store:
            study = tune(chosen.request(), store, Artifacts(str(tmp_path / "a"), 2**20), observer, url)
            return study, store.evaluations(study.spec.name)

    return run


def answer(outcome: tuple[Study, list[Evaluation]]) -> Recommendation | None:
    try:
        return recommend_from(*outcome, None)
    except NothingQualifiesError:
        return None


def test_a_budget_alone_ends_a_search_over_more_policies_than_a_number_can_count(tuned: Tune) -> None:
    slow = {"steps": 40, "layers": 40}
    study, first = tuned(slow, budget="1s", sampler="random")
    assert (study.reason, study.target) == ("budget", 100_000)
    assert len(first) > 1


def test_a_spent_budget_is_not_given_again(tuned: Tune, monkeypatch: pytest.MonkeyPatch) -> None:
    original = Evaluator.measure

    def measure(self: Evaluator, *arguments: Any) -> Any:
        measurement, frames = original(self, *arguments)
        return replace(measurement, seconds=400.0), frames

    monkeypatch.setattr(Evaluator, "measure", measure)
    study, first = tuned({}, budget="30m")
    assert (study.reason, len(first)) == ("budget", 1 + 5)  # 5 x 400 s are the first to reach 1,800 s
    study, again = tuned({}, budget="30m")
    assert (study.reason, again) == ("budget", first)


def test_own_policies_given_later_are_measured_whatever_the_target(tuned: Tune) -> None:
    _, first = tuned({}, trials=6)
    _, second = tuned({}, trials=6, tries=["0/1-3"])
    assert [e.policy.key for e in second if e.origin == "try"] == ["fp8:0/1-3"]
    assert second[: len(first)] == first


def test_a_study_that_another_worker_begins_meanwhile_is_joined(tuned: Tune, monkeypatch: pytest.MonkeyPatch) -> None:
    _, first = tuned({}, trials=4)
    original, asked = Store.study, []

    def study(self: Store, name: str) -> Study:
        asked.append(name)
        if len(asked) == 1:  # it is begun right behind this look
            raise NotFoundError
        return original(self, name)

    monkeypatch.setattr(Store, "study", study)
    _, second = tuned({}, trials=6)
    assert second[: len(first)] == first and len(second) == 1 + 6


def test_no_finalist_stands_on_the_held_out_prompts(tuned: Tune, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even the fourth: what was not checked is not recommended in place of what failed."""
    asked: list[str] = []

    def failing(self: Evaluator, policy: SkipPolicy) -> tuple[CaseQuality, ...]:
        asked.append(policy.key)
        (case,) = self._workload.holdout_cases
        perfect = CaseQuality.of_identical(case)
        return (replace(perfect, metrics={**perfect.metrics, "psnr_db": 1.0}, identical=False),)

    monkeypatch.setattr(Evaluator, "check_holdout", failing)
    study, evaluations = tuned({"holdout": 1}, trials=8)
    assert sorted(asked) == sorted(e.policy.key for e in evaluations if not e.policy.is_native)
    with pytest.raises(NothingQualifiesError, match="failed on the held-out prompts"):
        recommend_from(study, evaluations, None)


def test_a_refused_threshold_keeps_the_baseline(tuned: Tune, monkeypatch: pytest.MonkeyPatch) -> None:
    original = Evaluator.run_baseline
    ran = []

    def noisy(self: Evaluator, *arguments: Any) -> Any:
        measurement, baseline = original(self, *arguments)
        ran.append(1)
        return measurement, Baseline(30.0, baseline.native_seconds, baseline.native_end_to_end_seconds)

    monkeypatch.setattr(Evaluator, "run_baseline", noisy)
    with pytest.raises(ThresholdError):
        tuned({}, trials=4, min_psnr=40)
    study, _ = tuned({}, trials=4, min_psnr=20)
    assert (study.state, study.spec.requirement.min_psnr, len(ran)) == ("finished", 20, 1)
    again, _ = tuned({}, trials=4, min_psnr=25)
    assert (again.spec.requirement.min_psnr, len(ran)) == (25, 1)


class Listening(Silent):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


def failing(monkeypatch: pytest.MonkeyPatch, name: str, times: int, error: type[Exception] = EngineError) -> list[int]:
    """The evaluator's method fails that often; gives the number of its calls so far."""
    original, calls = getattr(Evaluator, name), []

    def act(self: Evaluator, *arguments: Any) -> Any:
        calls.append(1)
        if len(calls) <= times:
            raise error(f"the card fell off the bus, {len(calls)}")
        return original(self, *arguments)

    monkeypatch.setattr(Evaluator, name, act)
    return calls


PATIENT = [
    ("run_baseline", {}, {}, "the baseline"),
    ("check_holdout", {"holdout": 1}, {}, "a held-out prompt"),
    ("time_again", {}, {"engine_args": {"latency": "measured", "noise": NOISE}}, "timing fp8, skip steps"),
]


@pytest.mark.parametrize(
    ("name", "landscape", "settings", "what"), PATIENT, ids=lambda v: v if isinstance(v, str) else ""
)
def test_what_has_no_row_to_fail_in_is_tried_again(
    tuned: Tune, monkeypatch: pytest.MonkeyPatch, name: str, landscape: Any, settings: Any, what: str
) -> None:
    calls, listening = failing(monkeypatch, name, 2), Listening()
    study, _ = tuned(landscape, listening, trials=4, **settings)
    assert study.state == "finished" and len(calls) >= 3
    failed = [note for note in listening.notes if "failed: the card fell off the bus" in note]
    assert [note.rpartition("; ")[2] for note in failed] == ["2 more attempts", "1 more attempt"]
    assert all(note.startswith(what) for note in failed)


@pytest.mark.parametrize(
    ("name", "landscape", "settings", "what"), PATIENT, ids=lambda v: v if isinstance(v, str) else ""
)
def test_three_times_is_the_end(
    tuned: Tune, monkeypatch: pytest.MonkeyPatch, name: str, landscape: Any, settings: Any, what: str
) -> None:
    with monkeypatch.context() as patched:
        calls = failing(patched, name, 99)
        with pytest.raises(EngineError, match="fell off the bus, 3"):
            tuned(landscape, trials=4, **settings)
        assert len(calls) == 3
    study, _ = tuned(landscape, trials=4, **settings)  # the same command goes on
    assert study.state == "finished"


def test_what_did_not_run_quantized_is_not_tried_again(tuned: Tune, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = failing(monkeypatch, "run_baseline", 99, NotQuantizedError)
    with pytest.raises(NotQuantizedError):
        tuned({}, trials=4)
    assert len(calls) == 1


def test_noise_alone_is_never_recommended(tuned: Tune) -> None:
    """Quantized attention that gains nothing, under 5 % noise, drift and one outlier in 20."""
    found = 0
    for seed in range(8):
        engine_args = {"latency": "measured", "noise": f"{NOISE},seed={seed}"}
        landscape = {"seed": seed, "attention_ratio": dict.fromkeys(DTYPES, 1.0)}
        found += answer(tuned(landscape, trials=12, study=f"s{seed}", engine_args=engine_args)) is not None
    assert found <= 1


def test_a_true_gain_is_found_through_the_noise(tuned: Tune) -> None:
    """Everything quantized takes 0.75 of the time; all meet the threshold, so it should win."""
    hits = 0
    for seed in range(8):
        engine_args = {"latency": "measured", "noise": f"{NOISE},seed={seed}"}
        landscape = {"seed": seed, "attention_ratio": dict.fromkeys(DTYPES, 0.5)}
        found = answer(tuned(landscape, trials=8, study=f"t{seed}", engine_args=engine_args))
        if found is not None:
            assert found.measurement.latency.repeats == 15
            hits += abs(found.measurement.latency.relative - 0.75) < 0.1
    assert hits >= 7


def test_what_another_worker_found_unproven_is_not_finished(tuned: Tune, monkeypatch: pytest.MonkeyPatch) -> None:
    """The verdict of one worker holds for all: no figure of the study can be trusted."""
    original = Evaluator.measure
    stores: list[Store] = []
    opened = Store.open.__func__  # type: ignore[attr-defined]
    monkeypatch.setattr(Store, "open", classmethod(lambda cls, url: stores.append(opened(cls, url)) or stores[-1]))

    def measure(self: Evaluator, *arguments: Any) -> Any:
        stores[-1].set_state("s", "unproven", "layer 3 ran native")
        return original(self, *arguments)

    monkeypatch.setattr(Evaluator, "measure", measure)
    with pytest.raises(NotQuantizedError, match="layer 3 ran native"):
        tuned({}, trials=5)
    assert len(stores) == 1
    with Store.open(str(stores[0]._database.engine.url)) as store:
        study = store.study("s")
    assert (study.state, study.reason) == ("unproven", "layer 3 ran native")


def test_what_layers_cost_reaches_the_sampler_and_the_projection(
    tuned: Tune, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And a profile with other costs is asked anew of what is stored: nothing is generated again."""
    made: list[Any] = []
    original = search_study.make_sampler

    def make(*arguments: Any) -> Any:
        made.append(arguments[-1])
        return original(*arguments)

    monkeypatch.setattr(search_study, "make_sampler", make)
    profile = tmp_path / "profile.yaml"
    known = "name: mine\nsource: here\ndit_seconds: 10\nattention_seconds: 5\nquantized_attention_seconds: {fp8: 3}\n"
    profile.write_text(known + "layer_costs: {0-1: 3}\n")
    _, first = tuned({}, trials=6, tries=["/0,1", "/2,3"], device_profile=str(profile))
    gains = {e.policy.key: e.measurement.latency.gain for e in first if e.measurement}
    assert gains["fp8:/"] == pytest.approx(0.2)
    assert gains["fp8:/0,1"] == pytest.approx(0.2 * 2 / 8) and gains["fp8:/2,3"] == pytest.approx(0.2 * 6 / 8)
    profile.write_text(known)
    _, second = tuned({}, trials=6, tries=["/0,1", "/2,3"], device_profile=str(profile))
    assert [e.measurement.latency.gain for e in second if e.policy.key == "fp8:/0,1" and e.measurement] == [
        pytest.approx(0.1)
    ]
    assert made[0] == (3.0, 3.0, 1.0, 1.0) and made[-1] is None


def test_a_profile_of_a_model_with_more_layers_is_refused(tuned: Tune, tmp_path: Path) -> None:
    profile = tmp_path / "profile.yaml"
    profile.write_text(
        "name: mine\nsource: here\ndit_seconds: 10\nattention_seconds: 5\nquantized_attention_seconds: {fp8: 3}\n"
        "layer_costs: {0-4: 3}\n"
    )
    with pytest.raises(UsageError, match="gives a cost for layer 4, and this model's last one is 3"):
        tuned({}, device_profile=str(profile))
