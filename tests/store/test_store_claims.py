"""Who is gone, and what keeps a claim alive."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psutil
import pytest
import sqlalchemy as sa

from fa_tuner.domain.errors import StoreError
from fa_tuner.domain.measurement import Constraint, Requirement
from fa_tuner.domain.study import StudySpec
from fa_tuner.domain.workload import Workload
from fa_tuner.store.claims import LEASE_SECONDS, Heartbeat, Worker
from fa_tuner.store.repository import Store
from fa_tuner.store.schema import claims

SPEC = StudySpec(
    "s", Workload("m", ("a cat",), 480, 832, 61, 4), ("fp8",), Requirement((Constraint.parse("mae<=3"),)), "ours", 1,
    {"steps": 4, "layers": [0, 1]}, "projected", "a5",
)  # fmt: skip


@pytest.fixture
def worker() -> Worker:
    return Worker.of_this_process()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "fa-tune.db"


@pytest.fixture
def store(path: Path, worker: Worker) -> Iterator[Store]:
    """With one claim, whose last heartbeat is an hour ago. It waits for other writers 50 ms."""
    with Store.open(f"sqlite:///{path}", timeout_seconds=0.05) as opened:
        opened.create_study(SPEC, 4)
        assert opened.claim("s", "native", worker)
        with opened._database.writing() as connection:
            connection.execute(claims.update().values(heartbeat=datetime.now(UTC) - timedelta(hours=1)))
        yield opened


def until(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


# --- who is gone --------------------------------------------------------------------------------------------------


def test_each_worker_is_another_and_lives(worker: Worker) -> None:
    other = Worker.of_this_process()
    assert other.id != worker.id and replace(other, id=worker.id) == worker
    assert worker.pid == os.getpid() and not worker.is_gone()


def test_a_process_is_gone_when_it_has_ended(worker: Worker) -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        started = psutil.Process(child.pid).create_time() - psutil.boot_time()
        theirs = replace(worker, pid=child.pid, process_started=started)
        assert not theirs.is_gone()
        child.kill()
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        assert theirs.is_gone()  # a zombie
    assert theirs.is_gone()


def test_a_process_that_started_at_another_time_is_another(worker: Worker) -> None:
    for seconds in (-60, 60):
        assert replace(worker, process_started=worker.process_started + seconds).is_gone()


def test_of_another_host_nothing_is_known(worker: Worker) -> None:
    assert not replace(worker, host="elsewhere", process_started=0.0).is_gone()


def test_a_process_that_may_not_be_looked_at_is_not_gone(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(_: object) -> float:
        raise psutil.AccessDenied

    monkeypatch.setattr(psutil.Process, "create_time", denied)
    assert not worker.is_gone()


def test_a_change_of_the_clock_makes_nobody_gone(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    """It moves what the system says of when it booted and of when a process started, together."""
    started, booted = psutil.Process.create_time, psutil.boot_time
    monkeypatch.setattr(psutil.Process, "create_time", lambda process: started(process) + 3600)
    monkeypatch.setattr(psutil, "boot_time", lambda: booted() + 3600)
    assert not worker.is_gone()


# --- the heartbeat ------------------------------------------------------------------------------------------------


def test_a_heartbeat_keeps_claims_alive(store: Store, worker: Worker) -> None:
    assert store.claimed("s") == {}
    with Heartbeat(store.beat, worker, 0.01) as heartbeat:
        until(lambda: store.claimed("s") == {"native": worker})
        first = last_beat(store)
        until(lambda: last_beat(store) > first)  # and again
    assert heartbeat.failure is None
    stopped = last_beat(store)
    time.sleep(0.1)
    assert last_beat(store) == stopped


def last_beat(store: Store) -> datetime:
    with store._database.reading() as connection:
        when = connection.scalar(sa.select(claims.c.heartbeat))
        assert when is not None
        return when


def test_a_heartbeat_outlives_a_store_that_fails(store: Store, worker: Worker, path: Path) -> None:
    with (
        closing(sqlite3.connect(path, isolation_level=None)) as other,
        Heartbeat(store.beat, worker, 0.01) as heartbeat,
    ):
        other.execute("BEGIN IMMEDIATE")
        until(lambda: heartbeat.failure is not None)
        assert isinstance(heartbeat.failure, StoreError) and "locked" in str(heartbeat.failure)
        other.execute("ROLLBACK")
        until(lambda: heartbeat.failure is None)
        until(lambda: store.claimed("s") == {"native": worker})


def test_a_heartbeat_ends_at_once_with_its_block(store: Store, worker: Worker) -> None:
    began = time.monotonic()
    with pytest.raises(KeyError), Heartbeat(store.beat, worker) as heartbeat:
        assert heartbeat._thread.is_alive()
        raise KeyError
    assert not heartbeat._thread.is_alive()
    assert time.monotonic() - began < LEASE_SECONDS / 8


def test_a_heartbeat_that_failed_is_tried_sooner(store: Store, worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fa_tuner.store.claims.RETRY_SECONDS", 0.01)
    beats: list[Worker] = []

    def beat(who: Worker) -> None:
        beats.append(who)
        raise StoreError("no")

    monkeypatch.setattr(store, "beat", beat)
    with Heartbeat(store.beat, worker, 0.3) as heartbeat:
        until(lambda: bool(beats))
        first = time.monotonic()
        until(lambda: len(beats) >= 6)
        assert time.monotonic() - first < 5 * 0.3
    assert heartbeat.failure is not None
