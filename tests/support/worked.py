"""Jobs in a store, and workers for them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fa_tuner.domain.job import Job
from fa_tuner.domain.study import Evaluation, study_id
from fa_tuner.engines.synthetic import synthetic_landscape
from fa_tuner.planning import TuneRequest
from fa_tuner.settings import WorkerSettings
from fa_tuner.store.database import Database
from fa_tuner.store.jobs import Jobs
from fa_tuner.store.repository import Store
from fa_tuner.worker.loop import WorkerLoop
from tests.support.observers import Silent

TRIALS = 8


class Observer(Silent):
    """Stops when it is asked to, and tells `seen` of each evaluation."""

    def __init__(self, stop: Callable[[], bool], seen: Callable[[str, int], None]) -> None:
        self.stop_requested, self._seen, self._study = stop, seen, ""  # type: ignore[method-assign]

    def of(self, study: str) -> Observer:
        self._study = study
        return self

    def evaluated(self, evaluation: Evaluation, done: int, best: Any) -> None:
        self._seen(self._study, done)


@dataclass
class Yard:
    """A store with landscapes beside it, for workers with the engine replay."""

    url: str
    folder: Path
    said: list[str] = field(default_factory=list)

    @property
    def settings(self) -> WorkerSettings:
        return WorkerSettings(storage=self.url, artifacts=str(self.folder / "artifacts"))

    @contextmanager
    def opened(self) -> Iterator[tuple[Jobs, Store]]:
        database = Database.open(self.url)
        try:
            yield Jobs(database), Store(database)
        finally:
            database.close()

    def landscape(self, seed: int = 3) -> str:
        path = self.folder / f"landscape-{seed}.json"
        if not path.exists():
            synthetic_landscape(6, 4, prompts=2, holdout=1, seed=seed).write(path)
        return str(path)

    def ask(self, name: str = "s", workers: int = 1, **request: Any) -> Job:
        asked = {"model": self.landscape(), "trials": TRIALS, "min_psnr": 20.0, **request}
        with self.opened() as (jobs, _):
            return jobs.submit(name, asked, workers)[0]

    def work(self, seen: Callable[[str, int], None] = lambda _study, _done: None, **settings: Any) -> None:
        """One worker of this process, until nothing is left to do."""

        def observe(request: TuneRequest, stop: Callable[[], bool]) -> Observer:
            return Observer(stop, seen).of(request.study)

        chosen = self.settings.model_copy(update=settings)
        WorkerLoop(chosen, observe, self.said.append).run(until_idle=True)

    def job(self, name: str = "s") -> Job:
        with self.opened() as (jobs, _):
            return jobs.job(study_id(name))

    def evaluations(self, name: str = "s") -> list[Evaluation]:
        with self.opened() as (_, store):
            return store.evaluations(name)

    def assert_whole(self, name: str = "s", target: int = TRIALS) -> None:
        """Finished, with as many different policies as were wanted, each once."""
        with self.opened() as (jobs, store):
            job, study, evaluations = jobs.job(study_id(name)), store.study(name), store.evaluations(name)
            assert store.claimed(name) == {}
        assert (job.state, study.state, job.reason) == ("finished", "finished", study.reason), job.reason
        assert [e.number for e in evaluations] == list(range(target + 1))
        assert len({e.policy.key for e in evaluations}) == target + 1
        assert not any(e.failed for e in evaluations)
