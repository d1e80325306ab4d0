"""Claims over both databases: of all workers that ask for a policy, one runs it."""

from __future__ import annotations

import json
import os
import pickle
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import sqlalchemy as sa

from fa_tuner.domain.errors import ConflictError, NotFoundError, StoreError
from fa_tuner.domain.policy import SkipPolicy
from fa_tuner.domain.study import Evaluation
from fa_tuner.store.claims import LEASE_SECONDS, Worker
from fa_tuner.store.repository import Store
from fa_tuner.store.schema import claims
from tests.contract import test_store_contract as contract
from tests.contract.test_store_contract import ROOT, a_spec, an_evaluation

postgres, url = contract.postgres, contract.url  # the store's own fixtures

KEY = an_evaluation().policy.key
OTHER_KEY = "fp8:0/1"


@pytest.fixture
def store(url: str) -> Iterator[Store]:
    """With one study, "first"."""
    with Store.open(url) as opened:
        opened.create_study(a_spec(), 200)
        yield opened


@pytest.fixture
def ann() -> Worker:
    return Worker.of_this_process()


@pytest.fixture
def bob() -> Worker:
    return Worker.of_this_process()


def elsewhere(worker: Worker) -> Worker:
    """One on another host, of whose process nothing can be known here."""
    return replace(worker, host="elsewhere", pid=1)


def age(store: Store, seconds: float, worker: Worker | None = None) -> None:
    """Make it so long ago that the worker (all of them where None) beat last."""
    with store._database.writing() as connection:
        change = claims.update().values(heartbeat=datetime.now(UTC) - timedelta(seconds=seconds))
        connection.execute(change if worker is None else change.where(claims.c.worker == worker.id))


def rows_of(store: Store) -> dict[str, str]:
    """Worker by policy key, stale or not."""
    with store._database.reading() as connection:
        return {row.policy_key: row.worker for row in connection.execute(sa.select(claims))}


# --- one and another ----------------------------------------------------------------------------------------------


def test_a_policy_is_claimed_by_one_worker(store: Store, ann: Worker, bob: Worker) -> None:
    for key in (KEY, "native"):
        assert store.claim("first", key, ann)
        assert store.claim("first", key, ann)  # it has it
        assert not store.claim("first", key, bob)
    assert store.claim("first", OTHER_KEY, bob)
    assert store.claimed("first") == {KEY: ann, "native": ann, OTHER_KEY: bob}


def test_each_study_has_claims_of_its_own(store: Store, ann: Worker, bob: Worker) -> None:
    store.create_study(a_spec("second"), 1)
    assert store.claim("first", KEY, ann) and store.claim("second", KEY, bob)
    store.release("second", bob)
    assert (store.claimed("first"), store.claimed("second")) == ({KEY: ann}, {})


def test_what_is_released_is_anybodys(store: Store, ann: Worker, bob: Worker) -> None:
    for key, worker in ((KEY, ann), ("native", ann), (OTHER_KEY, bob)):
        assert store.claim("first", key, worker)
    store.release("first", bob, KEY)  # not his
    assert store.claimed("first") == {KEY: ann, "native": ann, OTHER_KEY: bob}
    store.release("first", ann, KEY)
    assert store.claimed("first") == {"native": ann, OTHER_KEY: bob}
    store.release("first", ann)
    assert store.claimed("first") == {OTHER_KEY: bob}
    assert store.claim("first", KEY, bob)


def test_a_claim_ends_with_its_evaluation(store: Store, ann: Worker, bob: Worker) -> None:
    assert store.claim("first", KEY, ann) and store.claim("first", OTHER_KEY, ann)
    store.add_evaluation("first", an_evaluation())
    assert store.claimed("first") == {OTHER_KEY: ann}
    assert not store.claim("first", KEY, ann) and not store.claim("first", KEY, bob)
    failed = Evaluation(SkipPolicy(), "baseline", 1, None, "out of memory")
    assert store.claim("first", "native", bob)
    store.add_evaluation("first", failed)
    assert not store.claim("first", "native", bob)  # a failed policy is not run again either
    assert rows_of(store) == {OTHER_KEY: ann.id}


def test_an_evaluation_that_is_refused_leaves_the_claim(store: Store, ann: Worker) -> None:
    store.add_evaluation("first", an_evaluation())
    assert store.claim("first", OTHER_KEY, ann)
    with pytest.raises(ConflictError, match="number 0"):
        store.add_evaluation("first", Evaluation(policy_of(OTHER_KEY), "try", 0, None, "died"))
    assert store.claimed("first") == {OTHER_KEY: ann}


def policy_of(key: str) -> SkipPolicy:
    return SkipPolicy.parse(key.partition(":")[2], ("fp8",), a_spec().grid)


def test_a_claim_is_no_figure(store: Store, ann: Worker) -> None:
    before = store.study("first")
    assert store.claim("first", KEY, ann)
    store.beat(ann)
    assert store.study("first") == before and store.count("first") == 0


def test_a_key_that_cannot_be_kept_is_refused(store: Store, ann: Worker) -> None:
    for key in ("a\0b", "\ud800"):
        with pytest.raises(ValueError, match="policy key"):
            store.claim("first", key, ann)
        store.release("first", ann, key)
    long = "fp8:" + ",".join(map(str, range(0, 9999, 2))) + "/"
    assert store.claim("first", long, ann)
    assert store.claimed("first") == {long: ann}


# --- the stale ----------------------------------------------------------------------------------------------------

CHILD = """
import sys
from fa_tuner.store.claims import Worker
from fa_tuner.store.repository import Store

store = Store.open(sys.argv[1])
worker = Worker.of_this_process()
print(worker.id, store.claim("first", sys.argv[2], worker), flush=True)
sys.stdin.read()
"""


@contextmanager
def process(code: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """A child that is gone afterwards."""
    with subprocess.Popen(
        [sys.executable, "-c", code, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": ROOT},
    ) as child:  # fmt: skip
        try:
            yield child
        finally:
            child.kill()


def test_a_claim_whose_process_was_killed_goes_to_the_next(store: Store, url: str, ann: Worker, bob: Worker) -> None:
    with process(CHILD, url, KEY) as child:
        assert child.stdout is not None
        holder, claimed = child.stdout.readline().split()
        assert claimed == "True"
        assert not store.claim("first", KEY, ann)
        assert store.claimed("first")[KEY].id == holder
        child.kill()
        # ended, but not yet reaped by us, its parent: that is gone, too
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        assert store.claimed("first") == {}
        assert rows_of(store) == {KEY: holder}
        assert store.claim("first", KEY, ann)
    assert not store.claim("first", KEY, bob)
    assert store.claimed("first") == {KEY: ann}


def test_a_reused_pid_is_not_mistaken(store: Store, ann: Worker, bob: Worker) -> None:
    assert store.claim("first", KEY, replace(ann, process_started=ann.process_started - 60))
    assert store.claim("first", KEY, bob)


def test_a_claim_outlasts_its_heartbeat_by_a_lease(store: Store, ann: Worker, bob: Worker) -> None:
    ann = elsewhere(ann)
    assert store.claim("first", KEY, ann)
    age(store, LEASE_SECONDS - 20)
    assert not store.claim("first", KEY, bob)
    assert store.claimed("first") == {KEY: ann}
    age(store, LEASE_SECONDS + 1)
    assert store.claimed("first") == {}
    assert store.claim("first", KEY, bob)
    assert store.claimed("first") == {KEY: bob}
    store.beat(ann)  # it comes back, and has nothing
    store.release("first", ann)
    assert not store.claim("first", KEY, ann)
    assert store.claimed("first") == {KEY: bob}


def test_a_beat_renews_all_claims_of_one_worker(store: Store, ann: Worker, bob: Worker) -> None:
    store.create_study(a_spec("second"), 1)
    for name, key, worker in (("first", KEY, ann), ("second", KEY, ann), ("first", OTHER_KEY, bob)):
        assert store.claim(name, key, worker)
    age(store, LEASE_SECONDS + 1)
    assert store.claimed("first") == {} == store.claimed("second")
    store.beat(ann)
    assert store.claimed("first") == {KEY: ann} == store.claimed("second")


def test_claiming_again_renews(store: Store, ann: Worker, bob: Worker) -> None:
    assert store.claim("first", KEY, ann)
    age(store, LEASE_SECONDS + 1)
    assert store.claim("first", KEY, ann)
    assert not store.claim("first", KEY, bob)


def test_the_hosts_clock_counts_only_where_there_is_no_server(
    store: Store, ann: Worker, bob: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Late(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Any:
            return datetime.now(tz) - timedelta(hours=1)

    monkeypatch.setattr("fa_tuner.store.claims.datetime", Late)
    assert store.claim("first", KEY, elsewhere(ann))
    monkeypatch.undo()
    assert store.claim("first", KEY, bob) == store.url.startswith("sqlite")


# --- several at once ----------------------------------------------------------------------------------------------


def test_of_several_that_want_a_stale_claim_one_gets_it(store: Store, url: str, ann: Worker) -> None:
    """Round after round, four takers with connections of their own."""
    takers, rounds = 4, 40
    barrier = threading.Barrier(takers, lambda: age(store, LEASE_SECONDS + 1), timeout=20)
    assert store.claim("first", KEY, elsewhere(ann))

    def take(_: int) -> list[bool]:
        with Store.open(url) as mine:
            granted = []
            for _round in range(rounds):
                barrier.wait()
                granted.append(mine.claim("first", KEY, Worker.of_this_process()))
            return granted

    with ThreadPoolExecutor(takers) as pool:
        granted = list(pool.map(take, range(takers)))
    assert [sum(each) for each in zip(*granted, strict=True)] == [1] * rounds


def test_of_several_that_want_a_new_claim_one_gets_it(store: Store, url: str) -> None:
    takers, rounds = 4, 40
    barrier = threading.Barrier(takers, timeout=20)

    def take(_: int) -> list[bool]:
        with Store.open(url) as mine:
            worker, granted = Worker.of_this_process(), []
            for number in range(rounds):
                barrier.wait()
                granted.append(mine.claim("first", f"fp8:{number}/", worker))
            return granted

    with ThreadPoolExecutor(takers) as pool:
        granted = list(pool.map(take, range(takers)))
    assert [sum(each) for each in zip(*granted, strict=True)] == [1] * rounds


@contextmanager
def between(store: Store, sign: str, act: Callable[[], object]) -> Iterator[threading.Thread]:
    """Let `act` run in a thread right before the store's next statement with `sign` in it. It must have to wait for the
    store's transaction, and is over at the end."""
    thread = threading.Thread(target=act)
    waited = []

    def before(*arguments: Any) -> None:
        if sign in arguments[2] and thread.ident is None:
            thread.start()
            thread.join(0.5)
            waited.append(thread.is_alive())

    sa.event.listen(store._database.engine, "before_cursor_execute", before)
    yield thread
    thread.join()
    assert waited == [True]


def test_a_holder_that_beats_while_its_claim_is_taken_has_lost_it(
    store: Store, url: str, ann: Worker, bob: Worker
) -> None:
    ann = elsewhere(ann)
    assert store.claim("first", KEY, ann)
    age(store, LEASE_SECONDS + 1)
    with Store.open(url) as anns, between(store, "DELETE FROM fa_tune_claims", lambda: anns.beat(ann)):
        assert store.claim("first", KEY, bob)
    assert store.claimed("first") == {KEY: bob}


def test_nothing_is_evaluated_between_a_look_and_a_claim(store: Store, url: str, ann: Worker) -> None:
    """Either the claim comes first, and the evaluation ends it; or there is no claim."""
    with (
        Store.open(url) as bobs,
        between(store, "INSERT INTO fa_tune_claims", lambda: bobs.add_evaluation("first", an_evaluation())) as adding,
    ):
        granted = store.claim("first", KEY, ann)
        adding.join()
        assert granted and rows_of(store) == {}
    assert store.count("first") == 1


def test_who_locks_many_claims_comes_one_after_another(store: Store, url: str, ann: Worker) -> None:
    """Else a beat, a release and a deletion could each hold a row that another waits for."""
    assert store.claim("first", KEY, ann)
    with Store.open(url, timeout_seconds=0.1) as impatient, store._database.writing(serial=True):
        for act in (
            lambda: impatient.beat(ann),
            lambda: impatient.release("first", ann),
            lambda: impatient.delete_study("first"),
        ):
            with pytest.raises(StoreError, match="another process is writing"):
                act()
    assert store.claimed("first") == {KEY: ann}


def test_a_study_may_be_deleted_under_its_workers(store: Store, url: str) -> None:
    """None of what they do meanwhile may make another fail."""
    workers = [Worker.of_this_process() for _ in range(2)]
    keys = [f"fp8:{number}/" for number in range(30)]

    def until_deleted(act: Callable[[Store, Worker], object], worker: Worker) -> None:
        with Store.open(url) as mine, suppress(NotFoundError):
            while not over.is_set():
                act(mine, worker)
                mine.claimed("first")

    def claim_all(mine: Store, worker: Worker) -> None:
        for key in random.sample(keys, len(keys)):
            mine.claim("first", key, worker)
        mine.release("first", worker)

    over = threading.Event()
    with ThreadPoolExecutor(4) as pool:
        acts: list[Callable[[Store, Worker], object]] = [claim_all, lambda mine, worker: mine.beat(worker)]
        running = [pool.submit(until_deleted, act, worker) for worker in workers for act in acts]
        try:
            time.sleep(1)
            store.delete_study("first")
        finally:
            over.set()
        assert [each.result() for each in running] == [None] * 4
    assert rows_of(store) == {}


MANY = """
import json, random, sys, time
from fa_tuner.domain.policy import SkipPolicy
from fa_tuner.domain.selector import SkipSelector
from fa_tuner.domain.study import Evaluation
from fa_tuner.store.claims import Worker
from fa_tuner.store.repository import Store

store, worker = Store.open(sys.argv[1]), Worker.of_this_process()
policies = [SkipPolicy("fp8", SkipSelector((number,))) for number in range(200)]
order = random.Random(int(sys.argv[2])).sample(range(200), 200)
print("ready", flush=True)
sys.stdin.readline()
granted = []
for number in order:
    if store.claim("first", policies[number].key, worker):
        granted.append(number)
        time.sleep(0.005)  # it runs; SQLite would give a process that never pauses the lock again and again
        if number % 2:  # the others stay claims
            store.add_evaluation("first", Evaluation(policies[number], "sampler", number, None, worker.id))
print(json.dumps([worker.id, granted]), flush=True)
sys.stdin.read()
"""


def test_four_processes_share_two_hundred_policies(store: Store, url: str) -> None:
    with ExitStack() as stack:
        children = [stack.enter_context(process(MANY, url, str(seed))) for seed in range(4)]
        for child in children:
            assert child.stdout is not None and child.stdout.readline() == "ready\n"
        for child in children:
            assert child.stdin is not None
            child.stdin.write("go\n")
            child.stdin.flush()
        said = [json.loads(child.stdout.readline()) for child in children if child.stdout is not None]
        held = {key: worker.id for key, worker in store.claimed("first").items()}
    assert Counter(number for _, granted in said for number in granted) == Counter(range(200))
    assert sum(bool(granted) for _, granted in said) > 1  # they did work side by side
    runner = {number: worker for worker, granted in said for number in granted}
    assert held == {f"fp8:{number}/": runner[number] for number in range(0, 200, 2)}
    assert {e.number: e.reason for e in store.evaluations("first")} == {n: runner[n] for n in range(1, 200, 2)}


# --- killed -------------------------------------------------------------------------------------------------------

KILLED = """
import os, pickle, signal, sys
import sqlalchemy as sa
from fa_tuner.store.claims import Worker
from fa_tuner.store.repository import Store

def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)

url, stage = sys.argv[1:]
evaluation = pickle.load(sys.stdin.buffer)
store = Store.open(url)
engine = store._database.engine
def watch():
    if stage == "commit":
        sa.event.listen(engine, "commit", die)
    else:
        sa.event.listen(engine, "before_cursor_execute", lambda c, cursor, sql, *_: sql.startswith(stage) and die())
if stage.startswith("INSERT INTO fa_tune_claims"):
    watch()
assert store.claim("first", evaluation.policy.key, Worker.of_this_process())
if stage == "claimed":
    die()
watch()
store.add_evaluation("first", evaluation)
"""


@pytest.mark.parametrize(
    ("stage", "left"),
    [("INSERT INTO fa_tune_claims", 0), ("claimed", 1), ("INSERT INTO fa_tune_evaluations", 1),
     ("DELETE FROM fa_tune_claims", 1), ("commit", 1)],
)  # fmt: skip
def test_a_worker_killed_before_its_evaluation_is_kept_loses_nothing(
    store: Store, url: str, ann: Worker, stage: str, left: int
) -> None:
    child = contract.child(KILLED, url, stage, stdin=pickle.dumps(an_evaluation()))
    _, said = child.communicate(timeout=60)
    assert child.returncode == -signal.SIGKILL, said
    assert store.evaluations("first") == []
    assert len(rows_of(store)) == left
    assert store.claim("first", KEY, ann)  # at once, not after a lease
    store.add_evaluation("first", an_evaluation())
    assert store.evaluations("first") == [an_evaluation()] and rows_of(store) == {}
