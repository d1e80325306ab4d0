"""Jobs over both databases: asked for once, leased to one worker after another, and no late word counts."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import sqlalchemy as sa

from fa_tuner.domain.errors import ConflictError, LeaseLostError, NotFoundError
from fa_tuner.domain.job import ENDED, Job
from fa_tuner.domain.study import study_id
from fa_tuner.store import leases
from fa_tuner.store.claims import LEASE_SECONDS, Worker
from fa_tuner.store.database import Database
from fa_tuner.store.jobs import Jobs
from fa_tuner.store.leases import Lease
from fa_tuner.store.repository import Store
from fa_tuner.store.schema import jobs as jobs_table
from fa_tuner.store.schema import workers as workers_table
from tests.contract import test_store_contract as contract
from tests.contract.test_store_contract import ROOT, a_spec, an_evaluation

postgres, url = contract.postgres, contract.url  # the store's own fixtures

REQUEST = {"model": "wan", "min_psnr": 30.5, "prompts": ["a cat", "ä\N{SNOWMAN}"], "trials": 4}


@pytest.fixture
def database(url: str) -> Iterator[Database]:
    opened = Database.open(url)
    yield opened
    opened.close()


@pytest.fixture
def jobs(database: Database) -> Jobs:
    return Jobs(database)


def a_worker() -> Worker:
    """Alive as long as this process is."""
    return Worker.of_this_process()


def elsewhere() -> Worker:
    """On another host: only its heartbeat says that it lives."""
    return replace(Worker.of_this_process(), host="another")


def gone() -> Worker:
    """Of a process that has ended."""
    return replace(Worker.of_this_process(), process_started=-10.0)


def silent(database: Database, worker: Worker, seconds: float = LEASE_SECONDS + 1) -> None:
    """Its last heartbeat was so long ago."""
    moved = datetime.now(UTC) - timedelta(seconds=seconds)
    with database.writing() as connection:
        connection.execute(workers_table.update().where(workers_table.c.id == worker.id).values(heartbeat=moved))


def overdue(database: Database) -> None:
    """What waits for another attempt need not wait any longer."""
    with database.writing() as connection:
        connection.execute(jobs_table.update().values(due=datetime.now(UTC) - timedelta(seconds=1)))


def taken(jobs: Jobs, worker: Worker | None = None, refused: frozenset[str] = frozenset()) -> Lease:
    lease = jobs.take(worker or a_worker(), "here", refused)
    assert lease is not None
    return lease


def standing_of(jobs: Jobs, name: str = "s") -> tuple[str, int]:
    job = jobs.job(study_id(name))
    return job.state, job.attempts


# --- asking -------------------------------------------------------------------------------------------------------


def test_what_was_asked_for_comes_back(jobs: Jobs) -> None:
    job, new = jobs.submit("s", REQUEST, 3)
    assert new and jobs.job(job.id) == jobs.find(job.id) == job
    assert (job.study, job.request, job.workers, job.state, job.attempts) == ("s", REQUEST, 3, "queued", 0)
    assert (job.reason, job.problem, job.id) == ("", "", study_id("s"))
    assert abs(datetime.now(UTC) - job.created) < timedelta(minutes=1) and job.updated == job.created


def test_a_name_is_taken_by_a_job_or_a_study(jobs: Jobs, database: Database) -> None:
    jobs.submit("s", REQUEST)
    Store(database).create_study(a_spec("t"), 4)
    for name, what in (("s", "job"), ("t", "study")):
        with pytest.raises(ConflictError, match=f"{what} named '{name}'.*{study_id(name)}"):
            jobs.submit(name, REQUEST)
    assert [job.study for job in jobs.page(10).jobs] == ["s"]


def test_what_failed_before_there_was_a_study_may_be_asked_anew(jobs: Jobs, database: Database) -> None:
    jobs.submit("s", REQUEST, 1, "k")
    with pytest.raises(ConflictError, match="job named 's'"):
        jobs.submit("s", REQUEST, 1)
    jobs.fail(taken(jobs), "no such model", "not-found", False)
    job, new = jobs.submit("s", {**REQUEST, "trials": 5})
    assert new and (job.state, job.request["trials"]) == ("queued", 5)
    Store(database).create_study(a_spec("s"), 4)
    jobs.fail(taken(jobs), "why", "internal", False)
    with pytest.raises(ConflictError, match="study named 's'"):
        jobs.submit("s", REQUEST)


def test_the_same_idempotency_key_makes_one_job(jobs: Jobs) -> None:
    job, _ = jobs.submit("s", REQUEST, 1, "k")
    assert jobs.submit("s", REQUEST, 1, "k") == (job, False)
    for name, request, workers in (("t", REQUEST, 1), ("s", {**REQUEST, "trials": 5}, 1), ("s", REQUEST, 2)):
        with pytest.raises(ConflictError, match="Idempotency-Key"):
            jobs.submit(name, request, workers, "k")
    jobs.submit("t", REQUEST, 1, "another")
    assert len(jobs.page(10).jobs) == 2


def test_many_that_ask_at_once_with_one_key_get_one_job(jobs: Jobs) -> None:
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda _: jobs.submit("s", REQUEST, 1, "k"), range(16)))
    assert len({job.id for job, _ in made}) == 1 and sum(new for _, new in made) == 1


def test_one_that_is_not_there(jobs: Jobs) -> None:
    for id in (study_id("s"), "x" * 10_000, "\0", "\ud800", ""):
        assert jobs.find(id) is None
        asking: tuple[Callable[[str], object], ...] = (jobs.job, jobs.cancel, lambda id: jobs.resume(id, {}))
        for ask in asking:
            with pytest.raises(NotFoundError, match="nobody asked"):
                ask(id)


def test_pages_are_newest_first_and_stay(jobs: Jobs) -> None:
    for name in "abcde":
        jobs.submit(name, REQUEST)
    jobs.cancel(study_id("c"))
    first = jobs.page(2)
    jobs.submit("f", REQUEST)
    second = jobs.page(2, first.last)
    third = jobs.page(2, second.last)
    assert ["".join(job.study for job in page.jobs) for page in (first, second, third)] == ["ed", "cb", "a"]
    assert third.last is None
    assert [job.study for job in jobs.page(10, state="cancelled").jobs] == ["c"]
    assert "".join(job.study for job in jobs.page(10, state="queued").jobs) == "fedba"


def test_infinity_is_not_kept(jobs: Jobs) -> None:
    with pytest.raises(ValueError):
        jobs.submit("s", {**REQUEST, "min_psnr": float("inf")})
    assert jobs.page(10).jobs == ()


# --- leases -------------------------------------------------------------------------------------------------------


def test_each_job_goes_to_one_worker_oldest_first(jobs: Jobs) -> None:
    for name in "abc":
        jobs.submit(name, REQUEST)
    found = [taken(jobs) for _ in "abc"]
    assert [lease.job.study for lease in found] == ["a", "b", "c"]
    assert {lease.job.state for lease in found} == {"running"}
    assert jobs.take(a_worker(), "here") is None
    assert [jobs.standing(lease) for lease in found] == ["held"] * 3


def test_many_workers_at_once_share_the_jobs_out(jobs: Jobs) -> None:
    names = {f"job {i}" for i in range(12)}
    for name in sorted(names):
        jobs.submit(name, REQUEST)
    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(lambda _: jobs.take(a_worker(), "here"), range(16)))
    studies = [lease.job.study for lease in found if lease is not None]
    assert len(studies) == 12 and set(studies) == names


def test_as_many_workers_as_were_asked_for_share_a_job(jobs: Jobs) -> None:
    jobs.submit("s", REQUEST, 2)
    jobs.submit("t", REQUEST)
    found = [taken(jobs) for _ in range(3)]
    assert [lease.job.study for lease in found] == ["s", "t", "s"]  # what waits goes first
    assert [lease.token for lease in found] == [1, 1, 2]
    assert jobs.take(a_worker(), "here") is None
    jobs.give_back(found[0], "stopped")
    assert standing_of(jobs)[0] == "running"  # the other one is still at it
    assert taken(jobs).token == 3


def test_what_a_worker_refused_is_left_to_others(jobs: Jobs) -> None:
    jobs.submit("s", REQUEST)
    assert jobs.take(a_worker(), "here", frozenset({"s", "unknown"})) is None
    assert taken(jobs, refused=frozenset({"t"})).job.study == "s"


def test_a_worker_that_is_gone_or_silent_loses_its_job(jobs: Jobs, database: Database) -> None:
    jobs.submit("s", REQUEST)
    late = []
    for number, worker in enumerate((gone(), elsewhere(), a_worker()), 1):
        lease = taken(jobs, worker)
        assert lease.token == number
        late.append(lease)
        if not worker.is_gone():
            assert jobs.take(a_worker(), "there") is None
            silent(database, worker, LEASE_SECONDS - 30)
            assert jobs.take(a_worker(), "there") is None
            silent(database, worker)
        with database.writing() as connection:  # or it has failed after so many
            connection.execute(jobs_table.update().values(attempts=0))
    last = taken(jobs)
    assert [jobs.standing(lease) for lease in (*late, last)] == ["lost"] * 3 + ["held"]
    assert not jobs.beat(late[-1].worker, "x")


def test_the_late_word_of_who_lost_the_lease_is_refused(jobs: Jobs, database: Database) -> None:
    """Paused past the lease's end, then awake: nothing that it writes is kept."""
    jobs.submit("s", REQUEST)
    store, late = Store(database), taken(jobs, elsewhere())
    fenced = Store(jobs.fenced(late))
    fenced.create_study(a_spec("s"), 4)
    fenced.add_evaluation("s", an_evaluation(0))
    silent(database, late.worker)
    now = taken(jobs)
    before = store.study("s"), store.evaluations("s"), jobs.job(now.job.id)
    writes: tuple[Callable[[], object], ...] = (
        lambda: fenced.add_evaluation("s", an_evaluation(1)), lambda: fenced.set_state("s", "finished"),
        lambda: fenced.set_target("s", 9), lambda: fenced.delete_study("s"), lambda: fenced.add_front("s", [], 0.0),
        lambda: fenced.create_study(a_spec("t"), 1), lambda: fenced.claim("s", "fp8:0/", late.worker),
        lambda: jobs.finish(late, "budget"), lambda: jobs.fail(late, "x", "internal", True),
        lambda: jobs.fail(late, "x", "internal", False), lambda: jobs.give_back(late, "stopped"),
    )  # fmt: skip
    for write in writes:
        with pytest.raises(LeaseLostError):
            write()
    assert (store.study("s"), store.evaluations("s"), jobs.job(now.job.id)) == before
    fenced.release("s", late.worker)  # its own presence it may take away
    fenced.beat(late.worker)
    Store(jobs.fenced(now)).add_evaluation("s", an_evaluation(1))
    assert store.count("s") == 2


def test_a_lease_is_not_taken_in_the_middle_of_a_writing(jobs: Jobs, database: Database, url: str) -> None:
    jobs.submit("s", REQUEST)
    late = taken(jobs, elsewhere())
    silent(database, late.worker)
    begun, go_on = threading.Event(), threading.Event()

    def write() -> None:
        with jobs.fenced(late).writing():
            begun.set()
            assert go_on.wait(30)

    with ThreadPoolExecutor(2) as pool:
        writing = pool.submit(write)
        assert begun.wait(30)
        taking = pool.submit(jobs.take, a_worker(), "there")
        with pytest.raises(TimeoutError):
            taking.result(0.5)
        go_on.set()
        writing.result(30)
        lease = taking.result(30)
    assert lease is not None and lease.token == 2


@pytest.mark.parametrize("url", ["postgresql"], indirect=True)  # SQLite has one writer at a time
def test_heartbeats_do_not_wait_for_a_writing(jobs: Jobs) -> None:
    jobs.submit("s", REQUEST)
    lease = taken(jobs)
    with jobs.fenced(lease).writing(), ThreadPoolExecutor(1) as pool:
        assert pool.submit(jobs.beat, lease.worker, "x").result(10)


def test_a_worker_with_a_new_job_has_left_the_old_one(jobs: Jobs, database: Database) -> None:
    """It could not say how the old one ended, the store being away: the job is open to others."""
    jobs.submit("s", REQUEST)
    jobs.submit("t", REQUEST)
    worker = a_worker()
    first, second = taken(jobs, worker), taken(jobs, worker)
    assert (first.job.study, second.job.study) == ("s", "t")
    assert jobs.standing(first) == "lost"
    assert taken(jobs).job.study == "s"


# --- how jobs end -------------------------------------------------------------------------------------------------


def test_a_finished_job_is_not_taken_again(jobs: Jobs) -> None:
    jobs.submit("s", REQUEST, 2)
    one, other = taken(jobs), taken(jobs)
    jobs.finish(one, "budget")
    job = jobs.job(one.job.id)
    assert (job.state, job.reason, job.ended) == ("finished", "budget", True)
    assert jobs.take(a_worker(), "here") is None
    jobs.fail(other, "the engine died", "engine-unavailable", True)  # who comes later changes nothing
    assert jobs.job(one.job.id).state == "finished"


def test_an_error_that_stays_ends_it_at_once(jobs: Jobs) -> None:
    jobs.submit("s", REQUEST)
    jobs.fail(taken(jobs), "no such model", "not-found", False)
    job = jobs.job(study_id("s"))
    assert (job.state, job.reason, job.problem) == ("failed", "no such model", "not-found")
    assert jobs.take(a_worker(), "here") is None


def test_another_attempt_comes_after_a_pause_and_they_are_limited(jobs: Jobs, database: Database) -> None:
    jobs.submit("s", REQUEST)
    for attempt in (1, 2):
        jobs.fail(taken(jobs), "the engine died", "engine-unavailable", True)
        assert standing_of(jobs) == ("queued", attempt)
        assert jobs.take(a_worker(), "here") is None
        overdue(database)
    jobs.fail(taken(jobs), "the engine died", "engine-unavailable", True)
    job = jobs.job(study_id("s"))
    assert (job.state, job.attempts, job.problem) == ("failed", 3, "engine-unavailable")
    assert job.reason == "the engine died; given up after 3 attempts"


def test_one_that_gets_on_is_tried_again_however_often_it_fails(jobs: Jobs, database: Database) -> None:
    jobs.submit("s", REQUEST)
    Store(database).create_study(a_spec("s"), 100)
    for number in range(8):
        lease = taken(jobs, gone())
        Store(jobs.fenced(lease)).add_evaluation("s", an_evaluation(number))
    assert standing_of(jobs) == ("running", 0)
    for _ in range(3):  # in a row that bring nothing new are too many
        taken(jobs, gone())
        assert standing_of(jobs)[0] == "running"
    assert jobs.take(a_worker(), "here") is None
    assert standing_of(jobs) == ("failed", 3)


def test_one_that_fails_beside_others_leaves_the_job_to_them(jobs: Jobs) -> None:
    jobs.submit("s", REQUEST, 2)
    one, other = taken(jobs), taken(jobs)
    assert not jobs.fail(other, "no memory left", "engine-unavailable", True)
    job = jobs.job(one.job.id)
    assert (job.state, job.attempts) == ("running", 0)
    assert job.reason == "one of its workers failed: no memory left"
    jobs.finish(one, "budget")
    assert (jobs.job(one.job.id).reason, jobs.job(one.job.id).problem) == ("budget", "")


def test_what_no_database_keeps_may_be_the_reason(jobs: Jobs, database: Database) -> None:
    jobs.submit("s", REQUEST)
    lease = taken(jobs)
    Store(database).create_study(a_spec("s"), 4)
    jobs.fail(lease, "bad \0 and \ud800", "internal", False)
    assert jobs.job(lease.job.id).reason.startswith("bad ") and Store(database).study("s").state == "failed"


def test_a_taking_whose_answer_was_lost_is_taken_again(jobs: Jobs) -> None:
    jobs.submit("s", REQUEST)
    worker = a_worker()
    taken(jobs, worker)  # as if the connection had broken just after the commit
    assert jobs.take(a_worker(), "there") is None
    assert taken(jobs, worker).token == 2


@pytest.mark.parametrize("how", ["cancel", "resume", "submit"])
def test_who_comes_back_after_a_cancellation_ends_nothing(jobs: Jobs, database: Database, how: str) -> None:
    jobs.submit("s", REQUEST)
    late = taken(jobs, elsewhere())
    silent(database, late.worker)
    assert jobs.cancel(late.job.id).state == "cancelled"
    if how == "resume":
        jobs.resume(late.job.id, {"trials": 50})
    elif how == "submit":
        jobs.submit("s", REQUEST)
    assert not jobs.beat(late.worker, "x")
    assert jobs.standing(late) == "lost"
    with pytest.raises(LeaseLostError):
        jobs.finish(late, "budget")
    assert standing_of(jobs)[0] == ("cancelled" if how == "cancel" else "queued")


def test_an_idempotency_key_outlives_the_job_that_it_made(jobs: Jobs) -> None:
    jobs.submit("s", REQUEST, 1, "k")
    jobs.cancel(study_id("s"))
    other = {**REQUEST, "trials": 5}
    jobs.submit("s", other, 1, "another")
    job, new = jobs.submit("s", REQUEST, 1, "k")  # a late repetition: what there is now, and nothing begins
    assert not new and job.request == other
    jobs.cancel(study_id("s"))
    assert jobs.submit("s", REQUEST, 1, "k")[0].state == "cancelled"


def test_several_that_are_gone_at_once_are_one_attempt_in_vain(jobs: Jobs, database: Database) -> None:
    jobs.submit("s", REQUEST, 3)
    dead = [elsewhere() for _ in range(3)]
    for worker in dead:
        taken(jobs, worker)
    for worker in dead:
        silent(database, worker)
    assert taken(jobs).token == 4
    assert standing_of(jobs) == ("running", 1)


def test_what_is_given_back_is_no_attempt(jobs: Jobs) -> None:
    jobs.submit("s", REQUEST)
    for _ in range(5):
        jobs.give_back(taken(jobs), "stopped")
        assert standing_of(jobs) == ("queued", 0)


def test_a_waiting_job_is_cancelled_at_once_and_resumed(jobs: Jobs) -> None:
    jobs.submit("s", REQUEST)
    assert jobs.cancel(study_id("s")).state == "cancelled"
    assert jobs.take(a_worker(), "here") is None
    with pytest.raises(ConflictError, match="is cancelled"):
        jobs.cancel(study_id("s"))
    again = jobs.resume(study_id("s"), {"trials": 9})
    assert (again.state, again.request) == ("queued", {**REQUEST, "trials": 9})
    with pytest.raises(ConflictError, match="is queued"):
        jobs.resume(study_id("s"), {})
    lease = taken(jobs)
    assert lease.job.request["trials"] == 9
    jobs.finish(lease, "budget")
    assert "trials" not in jobs.resume(study_id("s"), {"trials": None}).request


def test_a_running_job_is_cancelled_by_its_worker(jobs: Jobs) -> None:
    jobs.submit("s", REQUEST)
    lease = taken(jobs)
    for _ in range(2):
        assert jobs.cancel(study_id("s")).state == "cancelling"
    assert jobs.standing(lease) == "cancelled"
    assert jobs.take(a_worker(), "here") is None
    jobs.give_back(lease, "stopped")
    assert standing_of(jobs)[0] == "cancelled"


@pytest.mark.parametrize("how", ["failed", "gone", "left"])
def test_a_cancelled_job_stays_that_however_its_worker_ends(jobs: Jobs, how: str) -> None:
    jobs.submit("s", REQUEST)
    worker = gone() if how == "gone" else a_worker()
    lease = taken(jobs, worker)
    with jobs.fenced(lease).writing() as connection:  # as `cancel` does while it lives
        leases.settle(connection, lease.key, "cancelling")
    if how == "failed":
        jobs.fail(lease, "the engine died", "engine-unavailable", True)
    elif how == "left":
        jobs.submit("t", REQUEST)
        taken(jobs, worker)
    assert jobs.take(a_worker(), "here") is None
    assert standing_of(jobs)[0] == "cancelled"


def test_one_that_finishes_while_it_is_cancelled_is_finished(jobs: Jobs) -> None:
    jobs.submit("s", REQUEST)
    lease = taken(jobs)
    jobs.cancel(study_id("s"))
    jobs.finish(lease, "budget")
    assert standing_of(jobs)[0] == "finished"


def test_a_job_that_a_worker_is_leaving_is_not_resumed(jobs: Jobs) -> None:
    jobs.submit("s", REQUEST, 2)
    one, other = taken(jobs), taken(jobs)
    jobs.finish(one, "budget")
    with pytest.raises(ConflictError, match="still leaving"):
        jobs.resume(one.job.id, {})
    jobs.finish(other, "budget")
    assert jobs.resume(one.job.id, {}).state == "queued"


@pytest.mark.parametrize(
    ("end", "state"), [("queued", "interrupted"), ("cancelled", "interrupted"), ("failed", "failed")]
)
def test_a_study_that_nobody_is_at_is_not_left_running(jobs: Jobs, database: Database, end: str, state: str) -> None:
    jobs.submit("s", REQUEST)
    store = Store(database)
    lease = taken(jobs)
    store.create_study(a_spec("s"), 4)
    store.create_study(a_spec("t"), 4)
    if end == "queued":
        jobs.give_back(lease, "why")
    elif end == "cancelled":
        jobs.cancel(lease.job.id)
        jobs.give_back(lease, "why")
    else:
        jobs.fail(lease, "why", "internal", False)
    assert standing_of(jobs)[0] == end
    assert store.study("s").state == state and store.study("s").reason in ("why", "cancelled")
    assert store.study("t").state == "running"  # which is nobody's job


def test_a_study_that_says_how_it_ended_keeps_that(jobs: Jobs, database: Database) -> None:
    jobs.submit("s", REQUEST)
    store, lease = Store(database), taken(jobs)
    store.create_study(a_spec("s"), 4)
    store.set_state("s", "unproven", "nothing was quantized")
    jobs.fail(lease, "nothing was quantized", "not-quantized", False)
    assert store.study("s").state == "unproven"


# --- workers ------------------------------------------------------------------------------------------------------


def test_who_lives(jobs: Jobs, database: Database) -> None:
    assert jobs.workers() == []
    here, there = a_worker(), elsewhere()
    jobs.enlist(here, "npu:0 of a")
    jobs.enlist(there, "npu:1 of b")
    jobs.enlist(gone(), "npu:2 of a")
    assert sorted(jobs.workers()) == ["npu:0 of a", "npu:1 of b"]
    silent(database, there)
    assert jobs.workers() == ["npu:0 of a"]
    assert jobs.beat(there, "x") and len(jobs.workers()) == 2
    jobs.retire(here)
    jobs.retire(here)
    assert jobs.workers() == ["npu:1 of b"]


def test_one_that_retires_with_a_job_leaves_it_to_others(jobs: Jobs) -> None:
    jobs.submit("s", REQUEST)
    lease = taken(jobs)
    jobs.retire(lease.worker)
    assert standing_of(jobs) == ("queued", 0)
    assert taken(jobs).token == 2


def test_whose_row_was_taken_comes_back(jobs: Jobs, database: Database) -> None:
    worker = elsewhere()
    jobs.enlist(worker, "x")
    silent(database, worker)
    jobs.submit("s", REQUEST)
    taken(jobs)  # which buries the silent one
    assert jobs.workers() == ["here"]
    assert not jobs.beat(worker, "x")
    assert sorted(jobs.workers()) == ["here", "x"]
    jobs.submit("t", REQUEST)
    lease = taken(jobs, worker)
    assert lease.job.study == "t" and jobs.beat(worker, "x")
    jobs.enlist(worker, "x")  # as a heartbeat does that had found no row
    assert jobs.standing(lease) == "held"


def test_looking_for_a_job_writes_nothing(jobs: Jobs, database: Database) -> None:
    worker = a_worker()
    jobs.enlist(worker, "x")
    written: list[str] = []

    @sa.event.listens_for(database.engine, "before_cursor_execute")
    def seen(_c: Any, _cursor: Any, statement: str, *_: Any) -> None:
        written.append(statement.split()[0].upper())

    assert jobs.take(worker, "x") is None
    assert set(written) <= {"SELECT", "BEGIN"}


KILLED = """
import os, signal, sys
import sqlalchemy as sa
from fa_tuner.store.claims import Worker
from fa_tuner.store.database import Database
from fa_tuner.store.jobs import Jobs

url, act, statement = sys.argv[1], sys.argv[2], int(sys.argv[3])
database = Database.open(url)
jobs, count = Jobs(database), 0
lease = None if act == "take" else jobs.take(Worker.of_this_process(), "x")

@sa.event.listens_for(database.engine, "before_cursor_execute")
def dying(*_):
    global count
    count += 1
    if count == statement:
        os.kill(os.getpid(), signal.SIGKILL)

@sa.event.listens_for(database.engine, "commit")
def dying_at_the_commit(_connection):
    if statement == 0:
        os.kill(os.getpid(), signal.SIGKILL)

if act == "take":
    jobs.take(Worker.of_this_process(), "x")
elif act == "finish":
    jobs.finish(lease, "budget")
else:
    jobs.fail(lease, "x", "internal", True)
"""


@pytest.mark.parametrize("act", ["take", "finish", "fail"])
def test_killed_at_any_statement_a_job_is_open_or_settled(jobs: Jobs, database: Database, url: str, act: str) -> None:
    """Never held by nobody, never lost."""
    for statement in range(0, 12, 3 if url.startswith("postgres") else 2):
        name = f"{act} {statement}"
        jobs.submit(name, REQUEST)
        done = subprocess.run(
            [sys.executable, "-c", KILLED, url, act, str(statement)],
            env={**os.environ, "PYTHONPATH": ROOT}, capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        assert done.returncode in (0, -signal.SIGKILL), done.stderr
        overdue(database)
        job: Job = jobs.job(study_id(name))
        if job.state not in ENDED:
            lease = taken(jobs)
            assert lease.job.study == name
            jobs.finish(lease, "budget")
        assert standing_of(jobs, name)[0] == "finished"
        assert jobs.take(a_worker(), "here") is None
