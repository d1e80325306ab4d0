"""What is stored, kept in memory for as long as it stays as it is: a service is asked the same again and again."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any, Generic, Protocol, TypeVar

from fa_tuner.domain.errors import FaTuneError
from fa_tuner.domain.study import Evaluation, Recommendation, Study
from fa_tuner.recommend.matching import NoMatchError, Question
from fa_tuner.recommend.question import REFUSALS, Studies, recommend

MOST_EVALUATIONS = 40_000  # some 5 KB each
MOST_STUDIES = 10_000
MOST_ANSWERS = 10_000
T = TypeVar("T")
A = TypeVar("A")


class Stamp(Protocol):
    """Equal to a later one of the same study as long as nothing of that was changed; see `store.pages.Stamp`."""

    @property
    def name(self) -> str: ...
    def __hash__(self) -> int: ...


class Stamped(Studies, Protocol):
    """What this module needs of the store."""

    def study(self, name: str) -> Study: ...
    def stamp(self, name: str) -> Any: ...
    def stamps(self, model: str) -> tuple[Any, ...]: ...


class Memory(Generic[A]):
    """Answers as the store would. What it hands out is shared: nobody may change it. Safe from several threads.

    A stamp is read first and goes with what is read after it. What was changed in between is kept under a stamp that
    never comes again, so that it is read anew.
    """

    def __init__(self, store: Stamped, render: Callable[[Recommendation], A]) -> None:
        """Recommendations are kept as `render` gives them."""
        self._store, self._render, self._working = store, render, threading.Lock()
        self._studies = _Latest[tuple[Study, ...]](MOST_STUDIES)
        self._evaluations = _Latest[list[Evaluation]](MOST_EVALUATIONS)
        self._answers = _Latest[A | FaTuneError](MOST_ANSWERS)
        self._checked = _Latest[bool](MOST_STUDIES)

    def study(self, name: str) -> tuple[Study, list[Evaluation]]:
        """A study with all its evaluations.

        Raises:
            NotFoundError: there is none of that name.
        """
        stamp = self._store.stamp(name)
        key = "study", stamp
        if (known := self._studies.get(key)) is None:
            known = (self._store.study(name),)
            self._studies.put(key, known, 1)
        return known[0], self.evaluations(stamp)

    def evaluations(self, stamp: Stamp) -> list[Evaluation]:
        if (known := self._evaluations.get(stamp)) is None:
            known = self._store.evaluations(stamp.name)
            self._evaluations.put(stamp, known, len(known))
        return known

    def studies(self, model: str, stamps: tuple[Stamp, ...]) -> list[Study]:
        key = model, stamps
        if (known := self._studies.get(key)) is None:
            known = tuple(self._store.studies(model))
            self._studies.put(key, known, len(known))
        return list(known)

    def is_checked(self, stamp: Stamp) -> bool:
        if (known := self._checked.get(stamp)) is None:
            known = self._store.is_checked(stamp.name)
            self._checked.put(stamp, known, 1)
        return known

    def recommend(self, question: Question, allow_nearest: bool = False) -> A:
        """As `question.recommend`; one short query where it was asked before and nothing was changed since."""
        stamps = self._store.stamps(question.model)
        key = question, allow_nearest, stamps
        if (known := self._answers.get(key)) is None:
            with self._working:  # those who ask the same at once wait for one answer
                if (known := self._answers.get(key)) is None:
                    known = self._worked_out(question, allow_nearest, stamps)
                    if stamps:  # of a model without studies the answer hangs on the studies of others
                        self._answers.put(key, known, 1)
        if isinstance(known, FaTuneError):
            raise known.with_traceback(None)
        return known

    def _worked_out(self, question: Question, allow_nearest: bool, stamps: tuple[Stamp, ...]) -> A | FaTuneError:
        try:
            return self._render(recommend(_AsOf(self, self._store, question.model, stamps), question, allow_nearest))
        except (NoMatchError, *REFUSALS) as refused:
            return refused


class _AsOf:
    """The store as one question sees it."""

    def __init__(self, memory: Memory[Any], store: Stamped, model: str, stamps: tuple[Stamp, ...]) -> None:
        self._memory, self._store, self._model = memory, store, model
        self._stamps = {stamp.name: stamp for stamp in stamps}
        self._all = stamps

    def studies(self, model: str | None = None) -> list[Study]:
        return self._memory.studies(model, self._all) if model == self._model else self._store.studies(model)

    def models(self) -> list[str]:
        return self._store.models()

    def evaluations(self, name: str) -> list[Evaluation]:
        stamp = self._stamps.get(name)
        return self._store.evaluations(name) if stamp is None else self._memory.evaluations(stamp)

    def is_checked(self, name: str) -> bool:
        stamp = self._stamps.get(name)
        return self._store.is_checked(name) if stamp is None else self._memory.is_checked(stamp)


class _Latest(Generic[T]):
    """What was used last, up to a total size."""

    def __init__(self, most: int) -> None:
        self._most, self._size = most, 0
        self._kept: OrderedDict[Hashable, tuple[T, int]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: Hashable) -> T | None:
        with self._lock:
            if key not in self._kept:
                return None
            self._kept.move_to_end(key)
            return self._kept[key][0]

    def put(self, key: Hashable, value: T, size: int) -> None:
        """What alone is larger than the total is not kept."""
        size = max(size, 1)
        with self._lock:
            if key in self._kept or size > self._most:
                return
            self._kept[key] = value, size
            self._size += size
            while self._size > self._most:
                _, (_, freed) = self._kept.popitem(last=False)
                self._size -= freed
