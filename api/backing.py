"""What the routes stand on: the store and the artifacts, opened once for the application."""

from __future__ import annotations

import threading
from collections.abc import Hashable
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any, Self

from fastapi import Depends, Path, Request
from starlette.concurrency import run_in_threadpool

from fa_tuner.domain.errors import NotFoundError
from fa_tuner.domain.study import Evaluation, Recommendation
from fa_tuner.recommend.matching import Question
from fa_tuner.recommend.memory import Memory
from fa_tuner.report.documents import recommendation_document
from fa_tuner.settings import ServiceSettings
from fa_tuner.store.artifacts import Artifacts
from fa_tuner.store.database import Database
from fa_tuner.store.jobs import Jobs
from fa_tuner.store.repository import Store

from . import schemas
from .links import recommendation_links
from .stills import FewAtOnce, Stills
from .turns import Turns


@dataclass(frozen=True)
class Answer:
    """A recommendation as JSON text that lacks its age, and when its study's last figure was stored."""

    text: str
    updated: datetime

    @classmethod
    def of(cls, found: Recommendation) -> Self:
        """Checked against the schema, once."""
        document = {**recommendation_document(found), "links": recommendation_links(found), "age_seconds": 0.0}
        checked = schemas.Recommendation.model_validate(document)
        return cls(checked.model_dump_json(exclude_unset=True, exclude={"age_seconds"}), found.study.updated)

    def as_of(self, now: datetime) -> str:
        """The whole text."""
        age = max(0.0, (now - self.updated).total_seconds())  # the clock of another host may be ahead
        return f'{self.text[:-1]},"age_seconds":{age}}}'


class Backing:
    """Opened by the first request that needs it, and tried again by the next one where it cannot be. Safe from several
    threads."""

    def __init__(self, settings: ServiceSettings) -> None:
        self.settings, self._lock = settings, threading.Lock()
        self._database: Database | None = None
        self._memory: Memory[Answer] | None = None
        self._artifacts: Artifacts | None = None
        self.stills = Stills(lambda *name: self.artifacts.frames(*name))
        self.few = FewAtOnce()
        self._stamps = Turns[tuple[Any, ...]](self.version)

    @property
    def database(self) -> Database:
        """
        Raises:
            StoreError: it cannot be opened.
        """
        with self._lock:
            if self._database is None:
                self._database = Database.open(self.settings.url)
            return self._database

    def version(self) -> Hashable | None:
        """As the database's; opens none."""
        return self._database.version() if self._database is not None else None

    @property
    def store(self) -> Store:
        """Raises as `database`."""
        return Store(self.database)

    @property
    def jobs(self) -> Jobs:
        """Raises as `database`."""
        return Jobs(self.database)

    @property
    def memory(self) -> Memory[Answer]:
        """What the store has, kept while it stays as it is; raises as `store`."""
        store = self.store
        with self._lock:
            if self._memory is None:
                self._memory = Memory(store, Answer.of)
            return self._memory

    async def recommend(self, question: Question, allow_nearest: bool) -> Answer:
        """As `Memory.recommend`; those who ask about one model at once share the look whether anything changed.

        Raises:
            NoMatchError, NothingQualifiesError, ThresholdError, NotQuantizedError: as `question.recommend`.
            StoreError: the store cannot be opened, or failed.
        """
        model = question.model
        stamps = await self._stamps.get(model, lambda: self.memory.stamps(model))
        known = self.memory.known(question, allow_nearest, stamps)
        if known is None:
            known = await run_in_threadpool(self.memory.recommend, question, allow_nearest, stamps)
        return known

    @property
    def artifacts(self) -> Artifacts:
        """
        Raises:
            StoreError: a kind of URL that cannot be opened.
        """
        with self._lock:
            if self._artifacts is None:
                settings = self.settings
                self._artifacts = Artifacts(settings.artifact_root, settings.artifact_quota_mb * 2**20)
            return self._artifacts

    def name_of(self, study_id: str) -> str:
        """The name of a study by its id.

        Raises:
            NotFoundError: there is no such study.
        """
        return self.store.name_of(study_id)

    def evaluation(self, name: str, policy_id: str) -> Evaluation:
        """Of the policy with this id: what a client sends is only compared.

        Raises:
            NotFoundError: the study has none.
        """
        found = self.store.evaluation_of_digest(name, policy_id)
        if found is None:
            raise NotFoundError(f"study {name} has no policy of id {policy_id}")
        return found

    def close(self) -> None:
        """Give the store's connections back; the next request opens it again."""
        with self._lock:
            if self._database is not None:
                self._database.close()
            self._database = self._memory = None


async def backing_of(request: Request) -> Backing:
    backing: Backing = request.app.state.backing
    return backing


Backed = Annotated[Backing, Depends(backing_of)]
StudyId = Annotated[str, Path(pattern="^[0-9a-f]{16}$", description="`id` of the study", examples=["9f86d081884c7d65"])]


def study_named(study_id: StudyId, backing: Backed) -> str:
    """The name of the study that a route is about."""
    return backing.name_of(study_id)


StudyName = Annotated[str, Depends(study_named)]
