"""A worker and its jobs: how each ends, and what is left of it."""

from __future__ import annotations

import os
import signal
import threading
import time
from dataclasses import replace
from functools import partial
from typing import Any

import pytest

from fa_tuner.domain.errors import EngineError, StoreError
from fa_tuner.domain.study import study_id
from fa_tuner.engines.replay import ReplayEngine
from fa_tuner.settings import load_run_settings
from fa_tuner.store import leases
from fa_tuner.store.artifacts import Artifacts
from fa_tuner.store.claims import Heartbeat, Worker
from fa_tuner.store.jobs import Jobs
from fa_tuner.store.repository import Store
from fa_tuner.tuning import tune
from fa_tuner.worker import loop
from tests.support.measured import unchecked
from tests.support.observers import Silent
from tests.support.tables import noisy_landscape
from tests.support.worked import TRIALS, Yard


def test_it_finds_what_run_finds(yard: Yard) -> None:
    yard.ask("s")
    yard.work()
    yard.assert_whole()
    settings = {"engine": "replay", "model": yard.landscape(), "trials": TRIALS, "min_psnr": 20.0, "study": "t"}
    with Store.open(yard.url) as store:
        tune(load_run_settings(settings).request(), store, Artifacts(str(yard.folder / "a"), 0), Silent(), yard.url)
        assert [e.policy for e in store.evaluations("t")] == [e.policy for e in store.evaluations("s")]
        assert replace(store.study("t").spec, name="s") == store.study("s").spec
    assert any("finished (budget)" in line for line in yard.said)


def test_one_after_the_other_and_then_it_is_gone(yard: Yard) -> None:
    for name in "abc":
        yard.ask(name)
    yard.work()
    for name in "abc":
        yard.assert_whole(name)
    with yard.opened() as (jobs, _):
        assert jobs.workers() == []


def test_what_can_never_work_fails_at_once(yard: Yard) -> None:
    yard.ask("no landscape", model=str(yard.folder / "none.json"))
    yard.ask("no picture", image="0" * 64)
    yard.ask("no such policy", tries=["99/"])
    yard.ask("s")
    yard.work()
    found = {name: yard.job(name) for name in ("no landscape", "no picture", "no such policy")}
    assert {job.state for job in found.values()} == {"failed"} and {job.attempts for job in found.values()} == {0}
    assert found["no landscape"].problem == "not-found" and "none.json" in found["no landscape"].reason
    assert found["no picture"].problem == "not-found" and "send it again" in found["no picture"].reason
    assert found["no such policy"].problem == "invalid-selector"
    yard.assert_whole("s")


def test_a_bound_above_the_noise_floor_fails_and_a_lower_one_goes_on(yard: Yard) -> None:
    yard.ask("s", model=str(noisy_landscape(yard.folder / "noisy.json", 34.0)), min_psnr=40.0, trials=5)
    yard.work()
    job = yard.job()
    assert (job.state, job.problem) == ("failed", "threshold-above-noise-floor")
    with yard.opened() as (jobs, store):
        assert store.study("s").state == "failed"
        jobs.resume(job.id, {"min_psnr": 20.0})
    yard.work()
    yard.assert_whole(target=5)


def dying(monkeypatch: pytest.MonkeyPatch, error: Exception, times: int) -> list[int]:
    """The engine fails to open so many times."""
    opened, original = [0], ReplayEngine.open.__func__  # type: ignore[attr-defined]

    def open_(cls: type[ReplayEngine], *arguments: Any) -> Any:
        opened[0] += 1
        if opened[0] <= times:
            raise error
        return original(cls, *arguments)

    monkeypatch.setattr(ReplayEngine, "open", classmethod(open_))
    return opened


@pytest.mark.parametrize(
    ("error", "problem", "words"),
    [
        (EngineError("the device is busy"), "engine-unavailable", "the device is busy"),
        (StoreError("the store failed"), "store-unavailable", "the store failed"),
        (ZeroDivisionError("secret"), "internal", "ZeroDivisionError"),
    ],
)
def test_what_may_pass_is_tried_again(
    yard: Yard, monkeypatch: pytest.MonkeyPatch, error: Exception, problem: str, words: str
) -> None:
    monkeypatch.setattr(leases, "RETRY_SECONDS", 0.0)
    opened = dying(monkeypatch, error, 2)
    yard.ask("s")
    yard.work()
    assert opened == [3]
    yard.assert_whole()
    opened[0] = 0
    yard.ask("t")
    yard.work(max_attempts=2)
    job = yard.job("t")
    assert (job.state, job.attempts, job.problem) == ("failed", 2, problem)
    assert words in job.reason and "secret" not in job.reason


def test_cancelled_in_the_middle_and_resumed(yard: Yard) -> None:
    def cancel(_study: str, done: int) -> None:
        if done == 3:
            with yard.opened() as (jobs, _):
                jobs.cancel(study_id("s"))
            time.sleep(loop.POLL_SECONDS)

    yard.ask("s")
    yard.work(cancel)
    before = yard.evaluations()
    assert (yard.job().state, len(before)) == ("cancelled", 4)
    with yard.opened() as (jobs, store):
        assert store.study("s").state == "interrupted"
        jobs.resume(study_id("s"), {"trials": TRIALS + 2})
    yard.work()
    assert unchecked(yard.evaluations())[:4] == before
    yard.assert_whole(target=TRIALS + 2)


def test_a_signal_lets_the_policy_end_and_the_job_wait(yard: Yard) -> None:
    yard.ask("s")
    yard.work(lambda _study, done: os.kill(os.getpid(), signal.SIGTERM) if done == 2 else None)
    job = yard.job()
    assert (job.state, job.attempts, len(yard.evaluations())) == ("queued", 0, 3)
    assert "goes on elsewhere" in job.reason
    yard.work()
    yard.assert_whole()


def test_a_second_signal_stops_at_once(yard: Yard, monkeypatch: pytest.MonkeyPatch) -> None:
    original = ReplayEngine.generate

    def twice(self: ReplayEngine, *arguments: Any, **named: Any) -> Any:
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)
        return original(self, *arguments, **named)

    yard.ask("s")
    monkeypatch.setattr(ReplayEngine, "generate", twice)
    yard.work()
    assert (yard.job().state, yard.job().attempts) == ("queued", 0)
    monkeypatch.setattr(ReplayEngine, "generate", original)
    yard.work()
    yard.assert_whole()


def test_a_worker_in_another_environment_leaves_the_study_to_others(
    yard: Yard, monkeypatch: pytest.MonkeyPatch
) -> None:
    yard.ask("s")
    yard.work(lambda _study, done: os.kill(os.getpid(), signal.SIGTERM) if done == 2 else None)
    before, original = yard.evaluations(), ReplayEngine.describe
    monkeypatch.setattr(ReplayEngine, "describe", lambda self: replace(original(self), device="another"))
    yard.ask("t")
    yard.work()
    job = yard.job("s")
    assert (job.state, job.attempts) == ("queued", 0)
    assert "environment device" in job.reason and yard.evaluations("s") == before
    yard.assert_whole("t")  # which it may begin
    monkeypatch.setattr(ReplayEngine, "describe", original)
    yard.work()
    yard.assert_whole("s")


def test_it_waits_for_a_store_that_is_away(yard: Yard, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "STORE_SECONDS", 0.01)
    fails = {"take": 2, "finish": 2}

    def failing(name: str, original: Any) -> Any:
        def act(self: Jobs, *arguments: Any) -> Any:
            fails[name] -= 1
            if fails[name] >= 0:
                raise StoreError("the store failed: away")
            return original(self, *arguments)

        return act

    for name in fails:
        monkeypatch.setattr(Jobs, name, failing(name, getattr(Jobs, name)))
    yard.ask("s")
    yard.work()
    yard.assert_whole()
    assert sum("trying again" in line for line in yard.said) == 4


def test_who_lost_the_lease_writes_nothing_more(yard: Yard) -> None:
    """Another worker takes over in the middle, as after a pause past the lease's end, and finishes first."""
    counted = []

    def overtaken(_study: str, done: int) -> None:
        if done != 3 or counted:
            return
        with yard.opened() as (jobs, store):
            (row,) = _rows(jobs)
            with jobs._database.writing() as connection:
                connection.execute(leases.workers.delete().where(leases.workers.c.id == row.id))
            assert jobs.take(Worker.of_this_process(), "another") is not None
            counted.append(store.count("s"))

    yard.ask("s")
    yard.work(overtaken)
    assert len(yard.evaluations()) == counted[0] == 4
    assert any("given to another" in line for line in yard.said)
    assert yard.job().state == "running"
    with yard.opened() as (jobs, store):
        assert store.claimed("s") == {}  # nothing is kept from the other one
        (row,) = _rows(jobs)
        with jobs._database.writing() as connection:
            leases.bury(connection, [row], 3)
    yard.work()
    yard.assert_whole()


def _rows(jobs: Jobs) -> list[Any]:
    with jobs._database.reading() as connection:
        return leases.living(connection)


def test_without_its_parent_it_ends(yard: Yard) -> None:
    yard.ask("s")
    yard.work(worker_parent=1 if os.getppid() != 1 else 2)
    assert yard.job().state == "queued"
    with yard.opened() as (_, store):
        assert store.studies() == []


def test_its_environment_chooses_what_was_not_asked_for(yard: Yard, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FA_TUNE_SAMPLER", "random")
    monkeypatch.setenv("FA_TUNE_TRIALS", "3")
    monkeypatch.setenv("FA_TUNE_STUDY", "mine")
    yard.ask("s", trials=5)
    yard.work()
    with yard.opened() as (_, store):
        assert [study.spec.name for study in store.studies()] == ["s"]
        assert store.study("s").spec.sampler == "random"
    yard.assert_whole("s", 5)


def test_heartbeats_go_on_beside_the_work(yard: Yard, monkeypatch: pytest.MonkeyPatch) -> None:
    beats: list[str] = []
    original = Jobs.beat

    def beat(self: Jobs, worker: Worker, device: str) -> bool:
        beats.append(threading.current_thread().name)
        return original(self, worker, device)

    monkeypatch.setattr(Jobs, "beat", beat)
    monkeypatch.setattr(loop, "Heartbeat", partial(Heartbeat, seconds=0.05))
    yard.ask("s")
    yard.work(lambda _study, _done: time.sleep(0.05))
    assert len(beats) > 2 and all("heartbeat" in name for name in beats)
