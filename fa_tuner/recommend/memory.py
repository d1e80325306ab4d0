"""What is stored, kept in memory for as long as it stays as it is: a service is asked the same again and again."""

from __future__ import annotations

import itertools
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from contextlib import suppress
from typing import Any, Generic, Protocol, TypeVar

from fa_tuner.domain.errors import FaTuneError, NotFoundError
from fa_tuner.domain.measurement import Requirement
from fa_tuner.domain.study import Evaluation, Recommendation, Study
from fa_tuner.recommend.matching import NoMatchError, Question
from fa_tuner.recommend.question import REFUSALS, Studies, recommend, recommend_from

MOST_EVALUATIONS = 120_000  # some 4.5 KB each
MOST_STUDIES = 10_000
MOST_BY_NAME = 5  # studies of a model that are read one by one
MOST_ANSWERS = 10_000
T = TypeVar("T")
A = TypeVar("A")


class Stamp(Protocol):
    """Equal to a later one of the same study as long as nothing of that was changed; see `store.pages.Stamp`."""

    @property
    def name(self) -> str: ...
    def __hash__(self) -> int: ...


class Reading(Protocol):
    """A study's evaluations; see `store.evaluations.Reading`."""

    @property
    def evaluations(self) -> list[Evaluation]: ...


class Stamped(Studies, Protocol):
    """What this module needs of the store."""

    def stamped(self, name: str) -> tuple[Any, Study]: ...
    def stamped_of(self, model: str) -> list[tuple[Any, Study]]: ...
    def reading(self, name: str, before: Any = None) -> Any: ...
    def stamp(self, name: str) -> Any: ...
    def stamps(self, model: str) -> tuple[Any, ...]: ...


class Memory(Generic[A]):
    """Answers as the store would. What it hands out is shared: nobody may change it. Safe from several threads.

    A study is read with the stamp that it has then, since a stamp may come again: a study may be finished, run, and be
    finished. With a new figure none does; so of figures a stamp is read first and goes with what is read after it, and
    those that were changed in between are kept under a stamp that never comes again.
    """

    def __init__(self, store: Stamped, render: Callable[[Recommendation], A]) -> None:
        """Recommendations are kept as `render` gives them."""
        self._store, self._render, self._working = store, render, threading.Lock()
        self._numbering, self._numbers = threading.Lock(), itertools.count()
        self._current = _Latest[tuple[tuple[Stamp, ...], int]](MOST_STUDIES)  # by model, what its answers hang on
        self._studies = _Latest[Study](MOST_STUDIES)
        self._readings = _Latest[tuple[Stamp, Reading]](MOST_EVALUATIONS)  # by the study's name
        self._found = _Latest[Recommendation | FaTuneError](MOST_ANSWERS)  # of single studies
        self._answers = _Latest[A | FaTuneError](MOST_ANSWERS)  # by the number of their stamps, which would be large
        self._checked = _Latest[bool](MOST_STUDIES)

    def study(self, name: str) -> tuple[Study, list[Evaluation]]:
        """A study with all its evaluations.

        Raises:
            NotFoundError: there is none of that name.
        """
        stamp = self._store.stamp(name)
        return self._study(stamp)[1], self.evaluations(stamp)

    def evaluations(self, stamp: Stamp) -> list[Evaluation]:
        """Of a study that grows only what is new is read."""
        held, before = self._readings.get(stamp.name) or (None, None)
        if before is None or held != stamp:
            before = self._store.reading(stamp.name, before)
            self._readings.put(stamp.name, (stamp, before), len(before.evaluations))
        return before.evaluations

    def studies(self, model: str, stamps: tuple[Stamp, ...]) -> list[tuple[Stamp, Study]]:
        """Of the model, newest first, each with its own stamp, which is another one where it was changed just now;
        without those that are deleted just now."""
        if len([stamp for stamp in stamps if self._studies.get(stamp) is None]) > MOST_BY_NAME:
            for stamp, study in self._store.stamped_of(model):
                self._studies.put(stamp, study, 1)
        found = []
        for stamp in stamps:
            with suppress(NotFoundError):
                found.append(self._study(stamp))
        return found

    def is_checked(self, stamp: Stamp) -> bool:
        if (known := self._checked.get(stamp)) is None:
            known = self._store.is_checked(stamp.name)
            self._checked.put(stamp, known, 1)
        return known

    def stamps(self, model: str) -> tuple[Any, ...]:
        """What an answer about the model hangs on, as it is now: one short query."""
        return self._store.stamps(model)

    def known(self, question: Question, allow_nearest: bool, stamps: tuple[Stamp, ...]) -> A | None:
        """As `recommend`, where the answer is in memory; else None. Asks no store."""
        known = self._answers.get((question, allow_nearest, self._numbered(question.model, stamps)[1]))
        return None if known is None else _told(known)

    def recommend(self, question: Question, allow_nearest: bool = False, stamps: tuple[Stamp, ...] | None = None) -> A:
        """As `question.recommend`, as of the `stamps` of the model, which are asked for where none are given. No more
        is read where the same was asked before and nothing was changed since."""
        stamps = self.stamps(question.model) if stamps is None else stamps
        stamps, number = self._numbered(question.model, stamps)
        key = question, allow_nearest, number
        if (known := self._answers.get(key)) is None:
            with self._working:  # those who ask the same at once wait for one answer
                if (known := self._answers.get(key)) is None:
                    store = _AsOf(self, self._store, question.model, stamps)
                    known = self._worked_out(question, allow_nearest, store)
                    # of a model without studies the answer hangs on the studies of others
                    if stamps and not store.is_newer:
                        self._answers.put(key, known, 1)
        return _told(known)

    def answer_of(
        self, stamp: Stamp, study: Study, requirement: Requirement | None, dtype: str | None
    ) -> Recommendation:
        """As `question.recommend_from`: another study's change leaves it as it is."""
        key = stamp, requirement, dtype
        if (known := self._found.get(key)) is None:
            try:
                known = recommend_from(study, self.evaluations(stamp), requirement, dtype)
            except REFUSALS as refused:
                known = refused.with_traceback(None)  # which would keep all that was looked at
            self._found.put(key, known, 1)
        return _told(known)

    def _numbered(self, model: str, stamps: tuple[Stamp, ...]) -> tuple[tuple[Stamp, ...], int]:
        """The stamps, which are the same objects each time, and the number that stands for them until they change. What
        was answered under another number is not found again, and goes with what was not used lately."""
        with self._numbering:
            held = self._current.get(model)
            if held is None or held[0] != stamps:
                held = stamps, next(self._numbers)
                self._current.put(model, held, len(stamps))
            return held

    def _worked_out(self, question: Question, allow_nearest: bool, store: _AsOf) -> A | FaTuneError:
        try:
            return self._render(recommend(store, question, allow_nearest, store.answer_of))
        except (NoMatchError, *REFUSALS) as refused:
            return refused.with_traceback(None)

    def _study(self, stamp: Stamp) -> tuple[Stamp, Study]:
        """With its own stamp, as `studies`."""
        if (known := self._studies.get(stamp)) is None:
            stamp, known = self._store.stamped(stamp.name)
            self._studies.put(stamp, known, 1)
        return stamp, known


class _AsOf:
    """The store as one question sees it."""

    def __init__(self, memory: Memory[Any], store: Stamped, model: str, stamps: tuple[Stamp, ...]) -> None:
        self._memory, self._store, self._model = memory, store, model
        self._stamps = {stamp.name: stamp for stamp in stamps}
        self._all = stamps
        self.is_newer = False  # a study was changed since the stamps were read

    def studies(self, model: str | None = None) -> list[Study]:
        if model != self._model:
            return self._store.studies(model)
        found = self._memory.studies(self._model, self._all)
        for stamp, study in found:
            self.is_newer |= self._stamps[study.spec.name] != stamp
            self._stamps[study.spec.name] = stamp
        return [study for _, study in found]

    def models(self) -> list[str]:
        return self._store.models()

    def evaluations(self, name: str) -> list[Evaluation]:
        return self._memory.evaluations(self._stamps[name])

    def is_checked(self, name: str) -> bool:
        return self._memory.is_checked(self._stamps[name])

    def answer_of(self, study: Study, requirement: Requirement | None, dtype: str | None) -> Recommendation:
        return self._memory.answer_of(self._stamps[study.spec.name], study, requirement, dtype)


def _told(known: T | FaTuneError) -> T:
    if isinstance(known, FaTuneError):
        raise known.with_traceback(None)
    return known


class _Latest(Generic[T]):
    """What was used last, up to a total size."""

    def __init__(self, most: int) -> None:
        self._most, self._size = most, 0
        self._kept: OrderedDict[Hashable, tuple[T, int]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: Hashable) -> T | None:
        with self._lock:
            if (held := self._kept.get(key)) is None:
                return None
            self._kept.move_to_end(key)
            return held[0]

    def put(self, key: Hashable, value: T, size: int) -> None:
        """In place of what was there. What alone is larger than the total is not kept."""
        size = max(size, 1)
        with self._lock:
            self._size -= self._kept.pop(key, (None, 0))[1]
            if size > self._most:
                return
            self._kept[key] = value, size
            self._size += size
            while self._size > self._most:
                _, (_, freed) = self._kept.popitem(last=False)
                self._size -= freed
