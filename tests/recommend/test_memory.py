"""What is kept in memory answers as the store would, and not a moment longer than it stays as it is."""

from __future__ import annotations

import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, NamedTuple

import pytest

from fa_tuner.domain.errors import NotFoundError, NothingQualifiesError
from fa_tuner.domain.measurement import Constraint, Requirement
from fa_tuner.domain.study import Baseline, Evaluation, Recommendation, Study, StudySpec
from fa_tuner.domain.workload import Workload
from fa_tuner.recommend import memory
from fa_tuner.recommend.matching import Question
from fa_tuner.recommend.memory import Memory
from tests.support.measured import GRID, a_measurement, a_policy

WORK = Workload("wan", ("a cat",), 480, 832, 81, GRID.steps)
ENVIRONMENT = {"steps": GRID.steps, "layers": list(GRID.layers), "operator": "real"}


class Stamp(NamedTuple):
    name: str
    version: int


class Reading(NamedTuple):
    evaluations: list[Evaluation]


@dataclass
class Counting:
    """A store that counts what it is asked, and stamps each study with a number."""

    held: dict[str, tuple[Study, list[Evaluation], int]] = field(default_factory=dict)
    asked: Counter[str] = field(default_factory=Counter)

    def add(self, name: str, model: str = "wan", relative: float = 0.9) -> None:
        spec = StudySpec(
            name, replace(WORK, model=model), ("fp8",), Requirement((Constraint.parse("psnr_db>=30"),)), "tpe", 0,
            ENVIRONMENT, "measured",
        )  # fmt: skip
        now = datetime(2026, 1, 1, tzinfo=UTC)
        made = Evaluation(a_policy("0/"), "try", 0, a_measurement("0/", relative, 40))
        version = self.held[name][2] + 1 if name in self.held else 0
        self.held[name] = Study(spec, "finished", now, now, baseline=Baseline(100.0, 1.0, 1.0)), [made], version

    def stamped(self, name: str) -> tuple[Stamp, Study]:
        self.asked["study"] += 1
        if name not in self.held:
            raise NotFoundError(name)
        return Stamp(name, self.held[name][2]), self.held[name][0]

    def stamped_of(self, model: str) -> list[tuple[Stamp, Study]]:
        return [(Stamp(s.spec.name, self.held[s.spec.name][2]), s) for s in self.studies(model)]

    def studies(self, model: str | None = None) -> list[Study]:
        self.asked["studies"] += 1
        return [s for s, _, _ in self.held.values() if model in (None, s.spec.workload.model)]

    def models(self) -> list[str]:
        return sorted({s.spec.workload.model for s, _, _ in self.held.values()})

    def evaluations(self, name: str) -> list[Evaluation]:
        return self.held[name][1]

    def reading(self, name: str, before: Reading | None = None) -> Reading:
        self.asked["evaluations" if before is None else "more evaluations"] += 1
        return Reading(self.held[name][1])

    def is_checked(self, name: str) -> bool:
        self.asked["is_checked"] += 1
        return False

    def stamp(self, name: str) -> Stamp:
        self.asked["stamp"] += 1
        if name not in self.held:
            raise NotFoundError(name)
        return Stamp(name, self.held[name][2])

    def stamps(self, model: str) -> tuple[Stamp, ...]:
        self.asked["stamps"] += 1
        found = (Stamp(name, version) for name, (s, _, version) in self.held.items() if s.spec.workload.model == model)
        return tuple(found)


def same(answer: Recommendation) -> Recommendation:
    return answer


STRICT = Requirement((Constraint.parse("psnr_db>=60"),))


@pytest.fixture
def store() -> Counting:
    made = Counting()
    made.add("one")
    return made


def test_the_same_question_is_one_short_query(store: Counting) -> None:
    kept = Memory(store, same)
    first = kept.recommend(Question("wan"))
    store.asked.clear()
    assert kept.recommend(Question("wan")) is first
    assert store.asked == {"stamps": 1}


def test_another_question_reads_no_evaluation_again(store: Counting) -> None:
    kept = Memory(store, same)
    kept.recommend(Question("wan"))
    store.asked.clear()
    kept.recommend(Question("wan", steps=GRID.steps))
    assert store.asked == {"stamps": 1}


def test_what_changed_is_read_anew(store: Counting) -> None:
    kept = Memory(store, same)
    assert kept.recommend(Question("wan")).measurement.latency.relative == 0.9
    assert kept.study("one")[1][0].measurement.latency.relative == 0.9  # type: ignore[union-attr]
    store.add("one", relative=0.8)
    assert kept.recommend(Question("wan")).measurement.latency.relative == 0.8
    assert kept.study("one")[1][0].measurement.latency.relative == 0.8  # type: ignore[union-attr]
    store.add("two", relative=0.7)
    del store.held["one"]
    assert kept.recommend(Question("wan")).study.spec.name == "two"
    with pytest.raises(NotFoundError):
        kept.study("one")


def test_a_study_is_kept_too(store: Counting) -> None:
    kept = Memory(store, same)
    kept.study("one")
    store.asked.clear()
    assert kept.study("one")[0].spec.name == "one"
    assert store.asked == {"stamp": 1}


def test_other_models_are_read_for_what_comes_near(store: Counting) -> None:
    store.add("other", "wan-2.2")
    with pytest.raises(NotFoundError, match=r"there are studies of wan, wan-2\.2"):
        Memory(store, same).recommend(Question("wan-2.1"))


@pytest.mark.parametrize("question", [Question("wan", steps=99), Question("wan", STRICT)])
def test_a_refusal_is_kept_too(store: Counting, question: Question) -> None:
    kept = Memory(store, same)
    said = []
    for _ in range(2):
        store.asked.clear()
        with pytest.raises((NotFoundError, NothingQualifiesError)) as refused:
            kept.recommend(question)
        said.append(str(refused.value))
    assert store.asked == {"stamps": 1} and said[0] == said[1]


def test_what_comes_near_an_unknown_model_is_asked_anew(store: Counting) -> None:
    kept = Memory(store, same)
    for known in ("wan", "wan, wan-2"):
        with pytest.raises(NotFoundError, match=f"studies of {known}$"):
            kept.recommend(Question("wan-3"))
        store.add("other", "wan-2")


def test_those_who_ask_the_same_at_once_wait_for_one_answer(store: Counting) -> None:
    kept, begun = Memory(store, same), threading.Barrier(8)

    def ask() -> Recommendation:
        begun.wait()
        return kept.recommend(Question("wan"))

    with ThreadPoolExecutor(8) as pool:
        answers = [future.result() for future in [pool.submit(ask) for _ in range(8)]]
    assert all(answer is answers[0] for answer in answers)
    assert store.asked["evaluations"] == 1


def test_memory_is_bounded(store: Counting, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MOST_EVALUATIONS", "MOST_STUDIES", "MOST_ANSWERS"):
        monkeypatch.setattr(memory, name, 2)
    kept: Any = Memory(store, same)
    for name in ("a", "b", "c"):
        store.add(name, model=name)
    for _ in range(2):
        for name in ("a", "b", "c", "none", "nothing"):
            if name in store.held:
                assert kept.recommend(Question(name)).study.spec.name == name
            else:
                with pytest.raises(NotFoundError):
                    kept.recommend(Question(name))
    for part in (kept._studies, kept._readings, kept._found, kept._answers):
        assert len(part._kept) <= 2
    store.asked.clear()
    kept.recommend(Question("b"))
    assert store.asked["evaluations"] == 0  # the one before the last is still there
    kept.recommend(Question("a"))
    assert store.asked["evaluations"] == 1


def test_of_a_study_that_grows_a_later_reading_begins_with_the_one_before(store: Counting) -> None:
    kept = Memory(store, same)
    kept.recommend(Question("wan"))
    store.asked.clear()
    store.add("one", relative=0.8)
    assert kept.recommend(Question("wan")).measurement.latency.relative == 0.8
    assert (store.asked["evaluations"], store.asked["more evaluations"]) == (0, 1)


def test_one_studys_change_leaves_what_others_answered(store: Counting) -> None:
    for number in range(8):
        store.add(f"study {number}")
    kept = Memory(store, same)
    assert kept.recommend(Question("wan")).study.spec.name == "one"
    store.asked.clear()
    store.add("study 7", relative=0.5)
    kept.recommend(Question("wan"))
    assert store.asked == {"stamps": 1, "study": 1, "is_checked": 1}


def test_what_is_known_asks_no_store(store: Counting) -> None:
    kept = Memory(store, same)
    stamps = kept.stamps("wan")
    assert kept.known(Question("wan"), False, stamps) is None
    answer = kept.recommend(Question("wan"))
    store.asked.clear()
    assert kept.known(Question("wan"), False, stamps) is answer
    assert not store.asked
    with pytest.raises(NothingQualifiesError):
        kept.recommend(Question("wan", STRICT))
    with pytest.raises(NothingQualifiesError):
        kept.known(Question("wan", STRICT), False, stamps)


def test_a_study_deleted_meanwhile_is_passed_over(store: Counting) -> None:
    store.add("two")
    kept = Memory(store, same)
    stamps = kept.stamps("wan")
    del store.held["one"]
    assert kept.recommend(Question("wan"), stamps=stamps).study.spec.name == "two"


@pytest.mark.parametrize("others", [0, memory.MOST_BY_NAME])
def test_a_stamp_that_comes_again_stands_for_what_it_stood_for(
    store: Counting, monkeypatch: pytest.MonkeyPatch, others: int
) -> None:
    """A study that runs for as long as it is read, and is finished before and after."""
    for number in range(others):
        store.add(f"study {number}", relative=0.95)
    finished = store.held["one"]

    def while_it_runs(known: Any) -> Any:
        def read(self: Counting, which: str) -> Any:
            self.held["one"] = replace(finished[0], state="running"), *finished[1:2], finished[2] + 1
            try:
                return known(self, which)
            finally:
                self.held["one"] = finished

        return read

    kept = Memory(store, same)
    with monkeypatch.context() as meanwhile:
        for name in ("stamped", "stamped_of"):
            meanwhile.setattr(Counting, name, while_it_runs(getattr(Counting, name)))
        assert kept.study("one")[0].state == "running"
        passing = kept.recommend(Question("wan"))
    lasting = kept.recommend(Question("wan"))
    assert lasting == Memory(store, same).recommend(Question("wan")) != passing
    assert kept.study("one")[0].state == "finished"


def test_what_many_questions_take_does_not_grow_with_the_studies(store: Counting) -> None:
    for number in range(50):
        store.add(f"study {number}")
    kept: Any = Memory(store, same)
    for steps in range(100, 200):
        with pytest.raises(NotFoundError):
            kept.recommend(Question("wan", steps=steps))
    assert len(kept._answers._kept) == 100
    assert all(isinstance(number, int) for _, _, number in kept._answers._kept)
    for bound in range(30, 40):
        kept.recommend(Question("wan", Requirement((Constraint.parse(f"psnr_db>={bound}"),))))
    ((current, _),) = [held for held, _ in kept._current._kept.values()]
    assert {id(stamp) for stamp, *_ in kept._found._kept} <= {id(stamp) for stamp in current}
