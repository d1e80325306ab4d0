"""Which worker is at which job, inside the transactions of `Jobs`.

A worker is one row with its heartbeat, and with the job that it is at and a fencing token while it is at one: that is
its lease. Tokens of a job only grow. A worker that was silent for too long, or whose process is gone, loses its row to
whoever looks next; what it writes afterwards finds no row with its token and is refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection, Row

from fa_tuner.domain.errors import LeaseLostError
from fa_tuner.domain.job import Job
from fa_tuner.domain.study import StudyState
from fa_tuner.store import rows
from fa_tuner.store.claims import Worker, is_stale, now_of
from fa_tuner.store.schema import evaluations, jobs, studies, workers

# how a study stands that was running, where its job is so
_LEFT: dict[str, StudyState] = {"queued": "interrupted", "cancelled": "interrupted", "failed": "failed"}
RETRY_SECONDS = 30.0  # before the second attempt; before the third, twice that


@dataclass(frozen=True)
class Lease:
    """A worker's right to write what comes of a job; `token` is larger than that of every earlier lease of it."""

    job: Job
    key: int  # of the job's row
    worker: Worker
    token: int


def enlist(connection: Connection, worker: Worker, device: str, lease: tuple[int, int] | None = None) -> None:
    """Put the worker's row there, with the job's key and the token of the lease that it has now; without a lease a row
    that is there stays."""
    if lease is None and renew(connection, worker):
        return
    job, token = lease or (None, None)
    connection.execute(workers.delete().where(workers.c.id == worker.id))
    where = {"host": worker.host, "pid": worker.pid, "process_started": worker.process_started, "device": device}
    values = {"id": worker.id, **where, "job_id": job, "token": token, "heartbeat": now_of(connection)}
    connection.execute(workers.insert().values(values))


def renew(connection: Connection, worker: Worker) -> bool:
    """Whether its row is still there."""
    update = workers.update().where(workers.c.id == worker.id).values(heartbeat=now_of(connection))
    return connection.execute(update).rowcount > 0


def fence(connection: Connection, lease: Lease) -> None:
    """Keep the lease from being taken until the transaction ends.

    Raises:
        LeaseLostError: it was taken already.
    """
    # shared with heartbeats, which change no key; who takes the lease deletes the row, and waits
    held = sa.select(workers.c.id).where(_is(lease)).with_for_update(read=True, key_share=True)
    if connection.scalar(held) is None:
        raise LeaseLostError


def end(connection: Connection, lease: Lease) -> None:
    """The worker has no job any more; raises as `fence`."""
    fence(connection, lease)
    connection.execute(workers.update().where(_is(lease)).values(job_id=None, token=None))


def at(connection: Connection, job: int) -> list[Row[Any]]:
    """The rows of the living workers of a job."""
    return [row for row in _all(connection, workers.c.job_id == job) if not is_stale(row, now_of(connection))]


def living(connection: Connection) -> list[Row[Any]]:
    """The rows of all living workers."""
    return [row for row in _all(connection) if not is_stale(row, now_of(connection))]


def gone(connection: Connection, job: int | None = None) -> list[Row[Any]]:
    """The rows of workers that are not, or of those alone that were at the job."""
    where = () if job is None else (workers.c.job_id == job,)
    return [row for row in _all(connection, *where) if is_stale(row, now_of(connection))]


def left_cancelling(connection: Connection) -> list[int]:
    """The jobs that were being cancelled when the last worker left them."""
    asked = connection.scalars(sa.select(jobs.c.id).where(jobs.c.state == "cancelling")).all()
    return [job for job in asked if not at(connection, job)]


def bury(connection: Connection, dead: Sequence[Row[Any]], limit: int) -> None:
    """Delete the rows of workers that are gone; a job that one was at waits for another, unless others are at it."""
    # all rows before any job: one that comes back holds its row, and waits for what a job's end locks
    drop(connection, dead)
    for row in dead:
        job = connection.execute(sa.select(jobs).where(jobs.c.id == row.job_id)).one_or_none()
        if job is None or at(connection, job.id):
            continue
        if job.state == "cancelling":
            settle(connection, job.id, "cancelled", "cancelled")
        elif job.state == "running":
            again(connection, job, f"its worker on {row.device} ended without a word", "internal", limit, at_once=True)


def drop(connection: Connection, dead: Sequence[Row[Any]]) -> None:
    """Delete these rows of workers; what such a worker still writes of its job is refused."""
    connection.execute(workers.delete().where(workers.c.id.in_([row.id for row in dead])))


def leave(connection: Connection, job: int, reason: str) -> None:
    """Who was at the job is not any more: it waits for another, unless others are at it or it has ended."""
    if at(connection, job):
        return
    state = connection.scalar(sa.select(jobs.c.state).where(jobs.c.id == job))
    if state == "cancelling":
        settle(connection, job, "cancelled", "cancelled")
    elif state == "running":
        settle(connection, job, "queued", reason)


def again(connection: Connection, job: Row[Any], reason: str, problem: str, limit: int, at_once: bool = False) -> None:
    """Count an attempt in vain, and let the job wait for the next one; as many as `limit` in a row end it. One that
    brought a new evaluation was not in vain."""
    stored = evaluations_of(connection, job.study)
    attempts = 0 if stored > job.evaluations else job.attempts + 1
    if attempts >= limit:
        settle(connection, job.id, "failed", f"{reason}; given up after {attempts} attempts", problem)
        update = jobs.update().values(attempts=attempts, evaluations=stored)
    else:
        pause = timedelta(seconds=0 if at_once else RETRY_SECONDS * max(1, attempts))
        settle(connection, job.id, "queued", reason, problem)
        update = jobs.update().values(attempts=attempts, evaluations=stored, due=now_of(connection) + pause)
    connection.execute(update.where(jobs.c.id == job.id))


def settle(connection: Connection, job: int, state: str, reason: str = "", problem: str = "") -> None:
    """Say how the job stands, and why; a study that nobody is at any more is not left running."""
    reason = rows.legible(reason)  # an error may tell what no database keeps
    values = {"state": state, "reason": reason, "problem": problem, "updated": now_of(connection)}
    name = connection.scalar(jobs.update().where(jobs.c.id == job).values(values).returning(jobs.c.study))
    if left := _LEFT.get(state):
        deserted = studies.update().where(studies.c.name == name, studies.c.state == "running")
        connection.execute(deserted.values(state=left, reason=reason))


def due(connection: Connection, refused: set[int], worker: Worker) -> Row[Any] | None:
    """The job that this worker is to take next: the one that waited longest, else one that may have more workers than
    it has. A worker that asks is at none, whatever its row says."""
    # of a job in the state "running" nobody may be left; then it is open to one, too
    wanted = sa.select(jobs).where(jobs.c.state.in_(("queued", "running")), jobs.c.id.not_in(refused))
    counts: dict[int, int] = {}
    for row in living(connection):
        if row.id == worker.id:
            continue
        counts[row.job_id] = counts.get(row.job_id, 0) + 1
    now: datetime = now_of(connection)
    found = connection.execute(wanted.where(jobs.c.due <= now).order_by(jobs.c.state, jobs.c.due, jobs.c.id))
    return next((row for row in found if row.state == "queued" or counts.get(row.id, 0) < row.workers), None)


def evaluations_of(connection: Connection, study: str) -> int:
    """How many are stored of the study of that name; 0 where there is none."""
    query = sa.select(sa.func.count()).select_from(evaluations.join(studies)).where(studies.c.name == study)
    return int(connection.scalar(query) or 0)


def _all(connection: Connection, *where: sa.ColumnElement[bool]) -> list[Row[Any]]:
    return list(
        connection.execute(sa.select(workers, workers.c.id.label("worker")).where(*where).order_by(workers.c.id))
    )


def _is(lease: Lease) -> sa.ColumnElement[bool]:
    return sa.and_(workers.c.id == lease.worker.id, workers.c.job_id == lease.key, workers.c.token == lease.token)
