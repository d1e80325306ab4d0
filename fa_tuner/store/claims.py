"""Who runs which policy: several workers share a study, and each claims a policy before it runs it.

A claim is one row, unique by study and policy. It ends with the policy's evaluation or when its worker releases it; one
that is stale, because its worker's process is gone or its heartbeat is older than the lease, goes to whoever asks next.
The functions are the inside of the `Store` methods, each within the transaction of one.
"""

from __future__ import annotations

import platform
import threading
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil
import sqlalchemy as sa
from sqlalchemy import Connection, Row

from fa_tuner.domain.errors import StoreError
from fa_tuner.store import rows
from fa_tuner.store.schema import UtcDateTime, claims, evaluations

LEASE_SECONDS = 120.0  # how long a claim outlasts its last heartbeat
RETRY_SECONDS = 5.0  # after a heartbeat that failed
_SAME_START_SECONDS = 2.0  # the system's own figure of when it booted may move by one


@dataclass(frozen=True)
class Worker:
    """One that runs policies. `id` is unique; `process_started` is in seconds since the host booted, which no change of
    the clock moves, and tells a process from a later one of the same `pid`."""

    id: str
    host: str
    pid: int
    process_started: float

    @classmethod
    def of_this_process(cls) -> Self:
        """A new worker, each time: two in one process must not share a claim. A fork needs its own."""
        process = psutil.Process()
        return cls(uuid.uuid4().hex, _host(), process.pid, _started(process))

    def is_gone(self) -> bool:
        """Whether its process is known to have ended: True only on the host that it was on."""
        if self.host != _host():
            return False
        try:
            process = psutil.Process(self.pid)
            if process.status() == psutil.STATUS_ZOMBIE:  # ended, and its parent has not noticed
                return True
            return abs(_started(process) - self.process_started) > _SAME_START_SECONDS
        except psutil.NoSuchProcess:
            return True
        except psutil.Error:  # not ours to look at: the lease decides
            return False


class Heartbeat:
    """Says every quarter of the lease while the block runs that a worker lives, from a thread of its own; `beat` says
    it to the store.

    A beat that fails is tried again after `RETRY_SECONDS`; `failure` is what the last one failed of, None where it was
    kept. The block's end waits for a beat under way.
    """

    def __init__(self, beat: Callable[[Worker], object], worker: Worker, seconds: float = LEASE_SECONDS / 4) -> None:
        self.failure: StoreError | None = None
        self._beat, self._worker, self._seconds = beat, worker, seconds
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"heartbeat of {worker.id}", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._ended.wait(min(self._seconds, RETRY_SECONDS) if self.failure else self._seconds):
            try:
                self._beat(self._worker)
                self.failure = None
            except StoreError as error:
                self.failure = error


def take(connection: Connection, study: int, policy_key: str, worker: Worker) -> bool:
    """Whether the claim is now this worker's. The study's row must be locked, so that nobody else takes a claim or adds
    an evaluation between our look and our insert."""
    policy = rows.policy_values(policy_key)
    evaluated = sa.select(evaluations.c.id).where(
        evaluations.c.study_id == study, evaluations.c.policy_digest == policy["policy_digest"]
    )
    if connection.scalar(evaluated) is not None:
        return False
    here = claims.c.study_id == study, claims.c.policy_digest == policy["policy_digest"]
    # The claim's row is locked too: its holder cannot renew it between our look and our delete.
    held = connection.execute(sa.select(claims).where(*here).with_for_update()).one_or_none()
    now = now_of(connection)
    if held is not None:
        if held.worker != worker.id and not is_stale(held, now):
            return False
        connection.execute(claims.delete().where(*here))
    mine = {"host": worker.host, "pid": worker.pid, "process_started": worker.process_started, "heartbeat": now}
    connection.execute(claims.insert().values({"study_id": study, "worker": worker.id, **policy, **mine}))
    return True


def renew(connection: Connection, worker: Worker) -> None:
    """Move the heartbeat of all the worker's claims to now."""
    connection.execute(claims.update().where(claims.c.worker == worker.id).values(heartbeat=now_of(connection)))


def drop(connection: Connection, study: int, policy_key: str | None = None, worker: Worker | None = None) -> None:
    """Delete the study's claims: of one policy, of one worker, or of both."""
    which = [claims.c.study_id == study]
    if policy_key is not None:
        which.append(claims.c.policy_digest == rows.digest(policy_key))
    if worker is not None:
        which.append(claims.c.worker == worker.id)
    connection.execute(claims.delete().where(*which))


def living(connection: Connection, study: int) -> dict[str, Worker]:
    """Who holds which policy, by its key, without the stale claims."""
    now = now_of(connection)
    found = connection.execute(sa.select(claims).where(claims.c.study_id == study).order_by(claims.c.policy_key))
    return {row.policy_key: worker_of(row) for row in found if not is_stale(row, now)}


def is_stale(row: Row[Any], now: datetime) -> bool:
    """Whether what this row says of a worker no longer counts."""
    return now - row.heartbeat > timedelta(seconds=LEASE_SECONDS) or worker_of(row).is_gone()


def worker_of(row: Row[Any]) -> Worker:
    return Worker(row.worker, row.host, row.pid, row.process_started)


def now_of(connection: Connection) -> datetime:
    """By the server's clock where there is a server: those of two hosts may differ by more than a lease."""
    if connection.dialect.name == "postgresql":
        now: datetime = connection.execute(sa.select(sa.func.clock_timestamp(type_=UtcDateTime))).scalar_one()
        return now
    return datetime.now(UTC)


def _host() -> str:
    """What sees the same processes: two containers may share a host's name, and two hosts may be called the same."""
    name = platform.node()
    with suppress(OSError):  # where it is no Linux, the name must do
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{name} {boot} {Path('/proc/self/ns/pid').readlink()}"
    return name


def _started(process: psutil.Process) -> float:
    """In seconds since the host booted."""
    booted = psutil.boot_time()  # asked first: older psutil adds the figure that was asked for last
    return process.create_time() - booted
