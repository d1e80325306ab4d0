"""From a question about a model to a recommendation."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

import pytest

from fa_tuner.domain.errors import NotFoundError, NothingQualifiesError, ThresholdError
from fa_tuner.domain.measurement import Constraint, Measurement, Requirement
from fa_tuner.domain.policy import SkipPolicy
from fa_tuner.domain.study import Baseline, Evaluation, Study, StudySpec
from fa_tuner.domain.workload import Workload
from fa_tuner.recommend.question import Question, recommend, recommend_from
from tests.support.measured import GRID, a_measurement, a_policy

WORK = Workload("wan", ("a cat",), 480, 832, 81, GRID.steps, holdout=("a dog",))
FROM_30 = Requirement((Constraint.parse("psnr_db>=30"),))
GOOD = (a_measurement("native", 1.0, 100), a_measurement("0/", 0.95, 40, holdout=(38,)), a_measurement("/", 0.9, 25))


def a_study(name: str = "s", *, floor: float | None = 100.0, state: Any = "finished", **changes: Any) -> Study:
    known = StudySpec(
        name, WORK, ("fp8",), FROM_30, "tpe", 0,
        {"steps": GRID.steps, "layers": list(GRID.layers), "operator": "real"}, "measured",
    )  # fmt: skip
    now = datetime(2026, 1, 1, tzinfo=UTC)
    baseline = None if floor is None else Baseline(floor, 10, 11)
    return Study(replace(known, **changes), state, now, now, baseline=baseline)


def evaluations_of(*measured: Measurement) -> list[Evaluation]:
    return [Evaluation(m.policy, "sampler", i, m) for i, m in enumerate(measured)]


@dataclass
class Stored:
    """What this room needs of a store: studies newest first, with what was measured in each."""

    held: list[tuple[Study, tuple[Measurement, ...]]]

    def study(self, name: str) -> Study:
        return next(s for s, _ in self.held if s.spec.name == name)

    def studies(self, model: str | None = None) -> list[Study]:
        return [s for s, _ in self.held if model in (None, s.spec.workload.model)]

    def evaluations(self, name: str) -> list[Evaluation]:
        return next(evaluations_of(*measured) for s, measured in self.held if s.spec.name == name)


# --- one study ------------------------------------------------------------------------------------------------------


def test_the_best_of_the_study_with_its_evidence() -> None:
    study = a_study()
    answer = recommend_from(study, evaluations_of(*GOOD), None)
    assert answer.policy == a_policy("0/")
    assert answer.evaluation.number == 1 and answer.measurement == GOOD[1] and answer.study == study
    assert answer.requirement == FROM_30 and answer.holdout_met is True
    assert answer.notes == ()


def test_another_requirement_than_the_studys() -> None:
    from_20 = Requirement((Constraint.parse("psnr_db>=20"),))
    answer = recommend_from(a_study(), evaluations_of(*GOOD), from_20)
    assert answer.policy == a_policy("/") and answer.requirement == from_20 and answer.holdout_met is None


def test_a_study_without_a_baseline() -> None:
    with pytest.raises(NothingQualifiesError, match="study s has no baseline yet"):
        recommend_from(a_study(floor=None), [], None)


def test_a_threshold_above_the_studys_floor() -> None:
    with pytest.raises(ThresholdError, match="noise floor"):
        recommend_from(a_study(floor=29.0), evaluations_of(*GOOD), None)


def test_nothing_qualifies() -> None:
    with pytest.raises(NothingQualifiesError, match="the nearest is fp8"):
        recommend_from(a_study(), evaluations_of(GOOD[0], GOOD[2]), None)


@pytest.mark.parametrize(
    ("changes", "note"),
    [
        ({"latency_source": "projected", "latency_profile": "mine"}, "projected from device profile mine"),
        ({"environment": {"operator": "emulated"}}, "emulated in PyTorch; quality on the device is not proven"),
        ({"environment": {"operator": "replayed"}}, "replayed from a recorded landscape"),
        ({"state": "interrupted"}, "the study is interrupted; a longer search may find better"),
    ],
    ids=["projected", "emulated", "replayed", "interrupted"],
)
def test_what_the_figures_do_not_prove_is_said(changes: dict[str, Any], note: str) -> None:
    (said,) = recommend_from(a_study(**changes), evaluations_of(*GOOD), None).notes
    assert note in said


def test_that_others_may_be_faster_is_said() -> None:
    """By a latency that was only fitted: they are passed over."""
    more = (a_measurement("1/", 0.92, 40, source="fitted"), a_measurement("2/", 0.91, 20, source="fitted"))
    answer = recommend_from(a_study(), evaluations_of(*GOOD, *more), None)
    assert answer.policy == a_policy("0/")
    assert answer.notes == (
        "1 of the policies that meet it are faster by their fitted latency; a further run times them",
    )


def test_held_out_prompts_that_were_not_run_are_said() -> None:
    unchecked = evaluations_of(a_measurement("0/", 0.95, 40))
    assert recommend_from(a_study(), unchecked, None).notes == ("not checked on held-out prompts",)
    without = a_study(workload=replace(WORK, holdout=()))
    (said,) = recommend_from(without, unchecked, None).notes
    assert "the study has none (--holdout-prompt)" in said


# --- all that is stored ---------------------------------------------------------------------------------------------


def test_the_newest_study_that_matches() -> None:
    store = Stored([(a_study("new"), GOOD), (a_study("old"), GOOD)])
    assert recommend(store, Question("wan")).study.spec.name == "new"


def test_an_older_study_answers_where_the_newest_cannot() -> None:
    store = Stored([(a_study("new"), GOOD[:1]), (a_study("old"), GOOD)])
    assert recommend(store, Question("wan")).study.spec.name == "old"


def test_an_older_study_answers_where_the_newest_has_no_baseline_yet() -> None:
    store = Stored([(a_study("new", floor=None, state="running"), ()), (a_study("old"), GOOD)])
    assert recommend(store, Question("wan")).study.spec.name == "old"


def test_an_older_study_answers_where_the_newests_floor_is_too_low() -> None:
    store = Stored([(a_study("new", floor=25.0), GOOD), (a_study("old"), GOOD)])
    assert recommend(store, Question("wan")).study.spec.name == "old"


def test_if_none_answers_the_newests_reason_is_given() -> None:
    nearer = (GOOD[0], a_measurement("1/", 0.95, 29))
    store = Stored([(a_study("new"), nearer), (a_study("old", floor=20.0), GOOD)])
    with pytest.raises(NothingQualifiesError, match=r"29\.00 dB"):
        recommend(store, Question("wan"))
    with pytest.raises(ThresholdError):
        recommend(Stored(store.held[::-1]), Question("wan"))


def test_a_questions_own_requirement_goes_to_every_study() -> None:
    strict = Requirement((Constraint.parse("psnr_db>=38"),))
    store = Stored([(a_study("new"), (GOOD[0], a_measurement("1/", 0.9, 37))), (a_study("old"), GOOD)])
    assert recommend(store, Question("wan")).study.spec.name == "new"
    assert recommend(store, Question("wan", strict)).study.spec.name == "old"


@pytest.mark.parametrize(("name", "value"), [("steps", 7), ("height", 720), ("width", 1280), ("frames", 61)])
def test_what_is_asked_must_match(name: str, value: Any) -> None:
    other = replace(a_study().spec, workload=replace(WORK, **{name: value}))
    store = Stored([(replace(a_study(), spec=replace(other, name="other")), GOOD), (a_study("mine"), GOOD)])
    mine: Any = getattr(WORK, name)
    assert recommend(store, Question("wan")).study.spec.name == "other"
    assert recommend(store, Question("wan", **{name: value})).study.spec.name == "other"
    assert recommend(store, Question("wan", **{name: mine})).study.spec.name == "mine"


def test_a_dtype_is_asked_of_the_studies_that_have_it_and_of_their_policies() -> None:
    native, faster = GOOD[0], replace(a_measurement("0/", 0.9, 36), policy=SkipPolicy("mxfp4"))
    several = a_study("several", dtypes=("fp8", "mxfp4"))
    store = Stored([(several, (native, faster, GOOD[1])), (a_study("fp8 alone"), GOOD)])
    assert recommend(store, Question("wan")).policy == SkipPolicy("mxfp4")
    assert recommend(store, Question("wan", dtype="mxfp4")).policy == SkipPolicy("mxfp4")
    for held in (store, Stored(store.held[1:])):
        assert recommend(held, Question("wan", dtype="fp8")).policy == a_policy("0/")
    with pytest.raises(NotFoundError, match="no study matches"):
        recommend(store, Question("wan", dtype="mxfp8"))


def test_native_timing_noise_counts_whatever_dtype_is_asked_for() -> None:
    noisy = replace(GOOD[0], latency=replace(GOOD[0].latency, spread=0.2))
    with pytest.raises(NothingQualifiesError, match="beyond noise"):
        recommend(Stored([(a_study(), (noisy, *GOOD[1:]))]), Question("wan", dtype="fp8"))


def test_no_study_of_that_model() -> None:
    with pytest.raises(NotFoundError, match="there is no study yet, `fa-tune run` makes one"):
        recommend(Stored([]), Question("wan"))
    store = Stored([(a_study(), GOOD)])
    with pytest.raises(
        NotFoundError, match="no study matches model other with what was asked; there are studies of wan"
    ):
        recommend(store, Question("other"))
    with pytest.raises(NotFoundError, match="with what was asked"):
        recommend(store, Question("wan", steps=99))
