"""Studies that were asked for: put in by the service, taken by workers, each lease with a fencing token."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import sqlalchemy as sa
from sqlalchemy import Connection, Row

from fa_tuner.domain.errors import ConflictError, NotFoundError
from fa_tuner.domain.job import ENDED, STATES, Job, JobState
from fa_tuner.domain.study import study_id
from fa_tuner.store import leases, rows
from fa_tuner.store.claims import Worker, now_of
from fa_tuner.store.database import Database
from fa_tuner.store.leases import Lease
from fa_tuner.store.schema import job_keys, jobs, studies, workers

MAX_ATTEMPTS = 3  # in a row that brought no new evaluation
Standing = Literal["held", "cancelled", "lost"]


@dataclass(frozen=True)
class JobPage:
    """Newest first. `last` is what the next page begins `before`; None on the last page."""

    jobs: tuple[Job, ...]
    last: int | None


class Jobs:
    """The jobs of one database. Every method may raise StoreError: the database failed, and then nothing was written.
    Safe to use from several threads and processes.

    A job that was in vain `limit` times in a row, without a new evaluation in between, has failed."""

    def __init__(self, database: Database, limit: int = MAX_ATTEMPTS) -> None:
        self._database, self._limit = database, limit

    # --- who asks -------------------------------------------------------------------------------------------------

    def submit(
        self, study: str, request: Mapping[str, Any], workers: int = 1, idempotency: str | None = None
    ) -> tuple[Job, bool]:
        """A queued job; or the one that the same `idempotency` text made before, and then False. It takes the place of
        one of that name that has ended before there was a study.

        Raises:
            ConflictError: there is a study or a job of that name, or that text made another request.
        """
        asked = rows.digest(_text({"study": study, "workers": workers, **request}))
        once = None if idempotency is None else rows.digest(idempotency)
        with self._database.writing(serial=True) as connection:
            if once is not None:
                made = connection.execute(sa.select(job_keys).where(job_keys.c.digest == once)).one_or_none()
                if made is not None and made.request_digest != asked:
                    raise ConflictError("this Idempotency-Key came with another request before; give a new one")
                if made is not None:
                    return _job(_row(connection, study_id(study))), False
            if connection.scalar(sa.select(studies.c.id).where(studies.c.name == study)) is not None:
                raise _taken("study", study)
            former = connection.execute(sa.select(jobs).where(jobs.c.study == study)).one_or_none()
            if former is not None and (former.state not in ENDED or leases.at(connection, former.id)):
                raise _taken("job", study)
            if former is not None:
                leases.drop(connection, leases.gone(connection, former.id))
                connection.execute(jobs.delete().where(jobs.c.id == former.id))
            if once is not None:
                connection.execute(job_keys.insert().values(digest=once, request_digest=asked, study=study))
            now = now_of(connection)
            values = {
                "study": study, "study_key": study_id(study), "request": _text(request), "workers": workers,
                "state": "queued", "reason": "", "problem": "", "attempts": 0, "evaluations": 0, "due": now,
                "tokens": 0, "created": now, "updated": now,
            }  # fmt: skip
            connection.execute(jobs.insert().values(values))
            return _job(_row(connection, study_id(study))), True

    def job(self, id: str) -> Job:
        """By the id of its study.

        Raises:
            NotFoundError: there is none.
        """
        with self._database.reading() as connection:
            return _job(_row(connection, id))

    def find(self, id: str) -> Job | None:
        """As `job`; None where there is none."""
        with self._database.reading() as connection:
            row = _found(connection, id)
        return None if row is None else _job(row)

    def page(self, limit: int, before: int | None = None, state: JobState | None = None) -> JobPage:
        """Up to `limit` jobs, newest first, beginning behind the `last` of the page `before`."""
        query = sa.select(jobs).order_by(jobs.c.id.desc()).limit(limit + 1)
        if state is not None:
            query = query.where(jobs.c.state == state)
        if before is not None:
            query = query.where(jobs.c.id < before)
        with self._database.reading() as connection:
            found = connection.execute(query).all()
        page = found[:limit]
        return JobPage(tuple(map(_job, page)), page[-1].id if len(found) > limit else None)

    def cancel(self, id: str) -> Job:
        """Ask for its end: at once where it waits; where a worker is at it, after the running policy.

        Raises:
            NotFoundError: there is none.
            ConflictError: it has ended already.
        """
        with self._database.writing(serial=True) as connection:
            row = _row(connection, id)
            if row.state in ENDED:
                raise ConflictError(f"job {row.study!r} is {row.state} and cannot be cancelled")
            leases.drop(connection, leases.gone(connection, row.id))  # who comes back would go on
            if leases.at(connection, row.id):
                leases.settle(connection, row.id, "cancelling", "asked to stop after the running policy")
            else:
                leases.settle(connection, row.id, "cancelled", "cancelled")
            return _job(_row(connection, id))

    def resume(self, id: str, changes: Mapping[str, Any]) -> Job:
        """Queue it again, with some of its settings changed; None takes one away.

        Raises:
            NotFoundError: there is none.
            ConflictError: it has not ended, or a worker is still at it.
        """
        with self._database.writing(serial=True) as connection:
            row = _row(connection, id)
            if row.state not in ENDED:
                raise ConflictError(f"job {row.study!r} is {row.state}; only one that has ended can be resumed")
            if leases.at(connection, row.id):
                raise ConflictError(f"a worker is still leaving job {row.study!r}; resume it in a moment")
            leases.drop(connection, leases.gone(connection, row.id))
            merged = {**json.loads(row.request), **changes}
            request = {name: value for name, value in merged.items() if value is not None}
            leases.settle(connection, row.id, "queued")
            values = {"request": _text(request), "attempts": 0, "due": now_of(connection)}
            connection.execute(jobs.update().where(jobs.c.id == row.id).values(values))
            return _job(_row(connection, id))

    # --- workers --------------------------------------------------------------------------------------------------

    def enlist(self, worker: Worker, device: str) -> None:
        """Say that the worker is there."""
        with self._database.writing(serial=True) as connection:
            leases.enlist(connection, worker, device)

    def beat(self, worker: Worker, device: str) -> bool:
        """Say that it lives; False where it was taken for gone meanwhile. Then it is there again, without a job."""
        with self._database.writing() as connection:
            if leases.renew(connection, worker):
                return True
        self.enlist(worker, device)
        return False

    def retire(self, worker: Worker) -> None:
        """Take its row away; what it was at waits for another one."""
        with self._database.writing(serial=True) as connection:
            row = connection.execute(sa.select(workers).where(workers.c.id == worker.id)).one_or_none()
            if row is not None:
                leases.drop(connection, [row])
                if row.job_id is not None:
                    leases.leave(connection, row.job_id, f"its worker on {row.device} has ended")

    def workers(self) -> list[str]:
        """The devices of the living workers."""
        with self._database.reading() as connection:
            return [row.device for row in leases.living(connection)]

    def take(self, worker: Worker, device: str, refused: frozenset[str] = frozenset()) -> Lease | None:
        """A job for this worker, of none of the `refused` studies; None where nothing is to be done. Jobs of workers
        that are gone wait again from here on."""
        with self._database.reading() as connection:  # most often there is nothing, and nobody is kept from writing
            left = leases.gone(connection) or leases.left_cancelling(connection)
            if not left and leases.due(connection, _keys(connection, refused), worker) is None:
                return None
        with self._database.writing(serial=True) as connection:
            leases.bury(connection, leases.gone(connection), self._limit)
            for job in leases.left_cancelling(connection):
                leases.settle(connection, job, "cancelled", "cancelled")
            row = leases.due(connection, _keys(connection, refused), worker)
            if row is None:
                return None
            connection.execute(jobs.update().where(jobs.c.id == row.id).values(tokens=row.tokens + 1))
            leases.settle(connection, row.id, "running")
            leases.enlist(connection, worker, device, (row.id, row.tokens + 1))
            return Lease(_job(_row(connection, row.study_key)), row.id, worker, row.tokens + 1)

    def standing(self, lease: Lease) -> Standing:
        """Whether the worker may go on."""
        query = sa.select(jobs.c.state).join(workers).where(workers.c.id == lease.worker.id)
        with self._database.reading() as connection:
            state = connection.scalar(query.where(workers.c.token == lease.token, jobs.c.id == lease.key))
        return "lost" if state is None else "cancelled" if state in ("cancelling", "cancelled") else "held"

    def fenced(self, lease: Lease) -> Database:
        """The database, where every writing is refused with LeaseLostError once the lease was taken."""
        return self._database.fenced(partial(leases.fence, lease=lease))

    # Each of these ends the lease, and raises LeaseLostError where it was taken.

    def finish(self, lease: Lease, reason: str) -> None:
        """The study is done, whoever else is at it."""
        with self._database.writing(serial=True) as connection:
            leases.end(connection, lease)
            leases.settle(connection, lease.key, "finished", reason)

    def fail(self, lease: Lease, reason: str, problem: str, retry: bool) -> bool:
        """It ended with an error; with `retry` it waits for another attempt. False where others are at it and go on."""
        with self._database.writing(serial=True) as connection:
            leases.end(connection, lease)
            row = _row(connection, lease.job.id)
            if row.state in ENDED:
                return True
            if leases.at(connection, lease.key):
                leases.settle(connection, lease.key, row.state, f"one of its workers failed: {reason}", problem)
                return False
            if row.state == "cancelling":
                leases.settle(connection, lease.key, "cancelled", "cancelled")
            elif retry:
                leases.again(connection, row, reason, problem, self._limit)
            else:
                leases.settle(connection, lease.key, "failed", reason, problem)
            return True

    def give_back(self, lease: Lease, reason: str) -> None:
        """The worker stops, or was asked to, or is not the right one: no attempt in vain. Others may go on."""
        with self._database.writing(serial=True) as connection:
            leases.end(connection, lease)
            leases.leave(connection, lease.key, reason)


def _taken(what: str, study: str) -> ConflictError:
    return ConflictError(f"there is a {what} named {study!r} (id {study_id(study)}); resume it, or give another name")


def _found(connection: Connection, id: str) -> Row[Any] | None:
    query = sa.select(jobs).where(jobs.c.study_key == id)
    return connection.execute(query).one_or_none() if rows.is_text(id) else None


def _row(connection: Connection, id: str) -> Row[Any]:
    row = _found(connection, id)
    if row is None:
        raise NotFoundError(
            f"there is no job of id {id[:40]!r}: nobody asked the service for its study; one that `fa-tune run` made "
            "goes on with `fa-tune run`"
        )
    return row


def _job(row: Row[Any]) -> Job:
    state = next(known for known in STATES if known == row.state)
    return Job(
        row.study, json.loads(row.request), row.workers, state, row.created, row.updated, row.reason, row.problem,
        row.attempts,
    )  # fmt: skip


def _keys(connection: Connection, studies_: frozenset[str]) -> set[int]:
    return set(connection.scalars(sa.select(jobs.c.id).where(jobs.c.study.in_(studies_)))) if studies_ else set()


def _text(request: Mapping[str, Any]) -> str:
    return json.dumps(dict(request), sort_keys=True, allow_nan=False)
