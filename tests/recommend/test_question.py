"""From a question about a model to a recommendation."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from fa_tuner.domain.errors import NotFoundError, NothingQualifiesError, NotQuantizedError, ThresholdError
from fa_tuner.domain.measurement import Constraint, Measurement, Requirement
from fa_tuner.domain.policy import SkipPolicy
from fa_tuner.domain.study import Baseline, Difference, Evaluation, Study, StudySpec
from fa_tuner.domain.workload import Workload
from fa_tuner.recommend.matching import NoMatchError, Question
from fa_tuner.recommend.question import chosen_by_hand, recommend, recommend_from
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


ENVIRONMENT = {
    "steps": GRID.steps, "layers": list(GRID.layers), "operator": "real", "engine": "vllm-omni",
    "device": "Ascend950PR (bfloat16)", "versions": {"vllm-omni": "0.30.1", "torch": "2.13"},
}  # fmt: skip
FULL = {
    "steps": WORK.steps, "height": 480, "width": 832, "frames": 81, "revision": "main", "task": "t2v", "guided": True,
    "latency_source": "measured", "engine": "vllm-omni", "engine_version": "0.30", "device": "A5",
}  # fmt: skip


def evaluations_of(*measured: Measurement) -> list[Evaluation]:
    return [Evaluation(m.policy, "sampler", i, m) for i, m in enumerate(measured)]


@dataclass
class Stored:
    """What this room needs of a store: studies newest first, with what was measured in each."""

    held: list[tuple[Study, tuple[Measurement, ...]]]

    def models(self) -> list[str]:
        return sorted({s.spec.workload.model for s, _ in self.held})

    def studies(self, model: str | None = None) -> list[Study]:
        return [s for s, _ in self.held if model in (None, s.spec.workload.model)]

    def is_checked(self, name: str) -> bool:
        return any(m.holdout for s, measured in self.held for m in measured if s.spec.name == name)

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
    store = Stored([(a_study("new"), (GOOD[0], a_measurement("1/", 0.9, 37, holdout=(37,)))), (a_study("old"), GOOD)])
    assert recommend(store, Question("wan")).study.spec.name == "new"
    assert recommend(store, Question("wan", strict)).study.spec.name == "old"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("steps", 7), ("height", 720), ("width", 1280), ("frames", 61), ("revision", "abc"), ("task", "i2v"),
        ("guided", False), ("latency_source", "projected"), ("engine", "replay"), ("engine_version", "0.28"),
        ("device", "H200"),
    ],
)  # fmt: skip
def test_what_is_asked_must_match(name: str, value: Any) -> None:
    mine, others = FULL, {name: value}
    other = replace(
        WORK, **{key: given for key, given in others.items() if hasattr(WORK, key) and key != "guided"},
        guidance=1.0 if name == "guided" else WORK.guidance, image="0" * 64 if name == "task" else None,
    )  # fmt: skip
    environment = {**ENVIRONMENT, "engine": value} if name == "engine" else ENVIRONMENT
    if name == "engine_version":
        environment = {**ENVIRONMENT, "versions": {"vllm-omni": f"{value}.1rc2"}}
    if name == "device":
        environment = {**ENVIRONMENT, "device": f"NVIDIA {value} (bfloat16)"}
    spec: dict[str, Any] = {"workload": other, "environment": environment, "latency_profile": "a100"}
    if name == "latency_source":
        spec[name] = value
    if name == "engine":
        environment["versions"] = {"replay": "0.30.0", **ENVIRONMENT["versions"]}
    pinned = replace(WORK, revision="main")
    store = Stored([
        (a_study("other", **spec), GOOD),
        (a_study("mine", workload=pinned, environment=ENVIRONMENT), GOOD),
    ])  # fmt: skip
    assert recommend(store, Question("wan")).study.spec.name == "other"
    assert recommend(store, Question("wan", **others)).study.spec.name == "other"
    assert recommend(store, Question("wan", **{name: mine[name]})).study.spec.name == "mine"


@pytest.mark.parametrize(
    ("asked", "alike"),
    [
        ("A5", True), ("a5", True), ("ascend", True), ("Ascend 950", True), ("ascend950", True), ("950PR_9589", False),
        ("Ascend950PR", True), ("A2", False), ("ascend 910", False), ("cend", False), ("h200", False), ("?", False),
        ("pr2640", True), ("bfloat16", True), ("x" * 100, False),
    ],
)  # fmt: skip
def test_a_device_by_its_name_generation_or_profile(asked: str, alike: bool) -> None:
    environment = {**ENVIRONMENT, "device": "Ascend950PR x2 (bfloat16)"}
    study = a_study(environment=environment, latency_profile="mine-pr2640")
    assert (Question("wan", device=asked).differences(study) == ()) is alike


def test_a_dtype_is_asked_of_the_studies_that_have_it_and_of_their_policies() -> None:
    native, faster = GOOD[0], replace(a_measurement("0/", 0.9, 36, holdout=(36,)), policy=SkipPolicy("mxfp4"))
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


# --- which of several -----------------------------------------------------------------------------------------------

UNCHECKED = (GOOD[0], a_measurement("0/", 0.95, 40))
FAILED_HOLDOUT = (GOOD[0], a_measurement("0/", 0.95, 40, holdout=(20,)))
DAY = timedelta(days=1)


def later(study: Study, days: int) -> Study:
    return replace(study, updated=study.updated + days * DAY)


def with_prompts(name: str, count: int, **changes: Any) -> Study:
    prompts = tuple(f"prompt {index}" for index in range(count))
    return a_study(name, workload=replace(WORK, prompts=prompts), **changes)


@pytest.mark.parametrize(
    ("winner", "other"),
    [
        ((a_study("finished"), UNCHECKED), (later(with_prompts("stopped", 9, state="interrupted"), 9), GOOD)),
        ((a_study("passed"), GOOD), (later(with_prompts("unchecked", 9), 9), UNCHECKED)),
        ((with_prompts("more prompts", 3), GOOD), (later(with_prompts("fewer", 2), 9), GOOD)),
        ((with_prompts("more unchecked", 3), UNCHECKED), (later(with_prompts("fewer", 2), 9), UNCHECKED)),
        ((later(a_study("newer figures"), 1), GOOD), (a_study("created later"), GOOD)),
        ((a_study("answers", state="failed"), UNCHECKED), (with_prompts("refuses", 9), FAILED_HOLDOUT)),
        ((a_study("trusted"), UNCHECKED), (with_prompts("unproven", 9, state="unproven"), GOOD)),
    ],
    ids=lambda pair: pair[0].spec.name,
)
def test_the_winner_among_several(winner: Any, other: Any) -> None:
    for held in ([winner, other], [other, winner]):
        assert recommend(Stored(held), Question("wan")).study is winner[0]


def test_one_with_more_prompts_and_none_held_out_wins_over_an_unchecked_one() -> None:
    without = with_prompts("without", 9)
    without = replace(without, spec=replace(without.spec, workload=replace(without.spec.workload, holdout=())))
    store = Stored([(a_study("unchecked"), UNCHECKED), (without, UNCHECKED)])
    assert recommend(store, Question("wan")).study is without
    assert recommend(Stored([*store.held, (a_study("passed"), GOOD)]), Question("wan")).study.spec.name == "passed"


# --- the nearest ----------------------------------------------------------------------------------------------------

HELD = [
    (a_study("two", workload=replace(WORK, steps=20, height=720)), GOOD),
    (a_study("far", workload=replace(WORK, steps=40)), GOOD),
    (a_study("near", workload=replace(WORK, steps=7)), GOOD),
    (a_study("near again", workload=replace(WORK, steps=7)), GOOD),
]
STEPS_8 = Question("wan", steps=8, height=480)


def test_no_match_lists_the_nearest_with_what_differs() -> None:
    with pytest.raises(NoMatchError, match="nearest is study near, with steps 7 and not 8") as refused:
        recommend(Stored(HELD), STEPS_8)
    nearest = refused.value.nearest
    assert [near.study.spec.name for near in nearest] == ["near", "far", "two"]  # each difference once
    assert nearest[0].differences == (Difference("steps", 8, 7),)
    assert nearest[2].differences == (Difference("steps", 8, 20), Difference("height", 480, 720))


def test_no_more_than_five_are_listed() -> None:
    held = [(a_study(str(steps), workload=replace(WORK, steps=steps)), GOOD) for steps in range(10, 20)]
    with pytest.raises(NoMatchError) as refused:
        recommend(Stored(held), STEPS_8)
    assert [near.study.spec.name for near in refused.value.nearest] == ["10", "11", "12", "13", "14"]


def test_the_nearest_answers_where_that_is_allowed() -> None:
    answer = recommend(Stored(HELD), STEPS_8, allow_nearest=True)
    assert (answer.study.spec.name, answer.differences) == ("near", (Difference("steps", 8, 7),))
    assert answer.notes[0] == "no study matches what was asked; this is of the nearest, with steps 7 and not 8"
    exact = recommend(Stored(HELD), replace(STEPS_8, steps=7), allow_nearest=True)
    assert (exact.study.spec.name, exact.differences) == ("near", ())


def test_the_nearest_that_has_an_answer() -> None:
    held = [(HELD[2][0], GOOD[:1]), HELD[1]]
    assert recommend(Stored(held), STEPS_8, allow_nearest=True).study.spec.name == "far"
    with pytest.raises(NothingQualifiesError):
        recommend(Stored(held[:1]), STEPS_8, allow_nearest=True)


def test_the_nearest_has_another_dtype() -> None:
    answer = recommend(Stored([(a_study(), GOOD)]), Question("wan", dtype="mxfp4"), allow_nearest=True)
    assert (answer.policy.dtype, answer.differences) == ("fp8", (Difference("dtype", "mxfp4", "fp8"),))


def test_another_model_is_listed_but_never_answers() -> None:
    store = Stored([(a_study("s", workload=replace(WORK, model="wan-2.2")), GOOD), *HELD])
    with pytest.raises(NoMatchError, match=r"there are studies of wan, wan-2\.2") as refused:
        recommend(store, Question("wan-2.1", steps=6), allow_nearest=True)
    near = refused.value.nearest[0]
    assert near.study.spec.name == "s"
    assert near.differences == (Difference("model", "wan-2.1", "wan-2.2"),)


# --- a policy that somebody picked ------------------------------------------------------------------------------------


def test_chosen_by_hand() -> None:
    _, good, poor = evaluations_of(*GOOD)
    answer = chosen_by_hand(a_study(), good, None)
    assert (answer.policy, answer.holdout_met, answer.notes) == (
        a_policy("0/"), True, ("chosen by hand; it meets psnr_db>=30 (worst prompt)",),
    )  # fmt: skip
    assert "it misses psnr_db>=30" in chosen_by_hand(a_study(), poor, None).notes[0]
    on_holdout = evaluations_of(*FAILED_HOLDOUT)[1]
    assert "it misses psnr_db>=30" in chosen_by_hand(a_study(), on_holdout, None).notes[0]
    with pytest.raises(NothingQualifiesError, match="out of memory"):
        chosen_by_hand(a_study(), Evaluation(a_policy("/1"), "try", 3, None, "out of memory"), None)
    with pytest.raises(NotQuantizedError):
        chosen_by_hand(a_study(state="unproven"), good, None)
