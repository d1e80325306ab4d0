"""Workers in processes of their own: one a device, started again, and ended with who started them."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from fa_tuner.domain.errors import UsageError
from fa_tuner.worker import processes
from fa_tuner.worker.processes import Device, Processes, parse_devices
from tests.contract.test_store_contract import ROOT
from tests.support.worked import Yard


def wait_for(what: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.05)


def living(yard: Yard) -> list[str]:
    with yard.opened() as (jobs, _):
        return jobs.workers()


def test_what_a_worker_sees_of_the_machine() -> None:
    assert Device.parse("npu:3").environment["ASCEND_RT_VISIBLE_DEVICES"] == "3"
    assert Device.parse("npu:0+1").environment["ASCEND_RT_VISIBLE_DEVICES"] == "0,1"
    assert Device.parse("cuda:12").environment["CUDA_VISIBLE_DEVICES"] == "12"
    cpu = Device.parse("cpu").environment
    assert cpu == {"FA_TUNE_WORKER_DEVICE": "cpu", "ASCEND_RT_VISIBLE_DEVICES": "", "CUDA_VISIBLE_DEVICES": ""}


@pytest.mark.parametrize(
    "text", ["", "npu", "npu:", "npu:a", "npu:0-3", "npu:0,1", "npu:0++1", "npu:٣", "gpu:0", "cpu:0", "0"]
)
def test_other_forms_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="npu:0"):
        Device.parse(text)


def test_no_chip_is_given_twice() -> None:
    assert [device.name for device in parse_devices(["npu:0+1", "npu:2", "cuda:0", "cpu", "cpu"])][:2] == [
        "npu:0+1",
        "npu:2",
    ]
    for twice in (["npu:0", "npu:0"], ["npu:0+1", "npu:1"], ["npu:2+2"]):
        with pytest.raises(UsageError, match="two workers"):
            parse_devices(twice)


@pytest.fixture
def command(yard: Yard, tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start `fa-tune` with these arguments, on the yard's store."""
    started: list[subprocess.Popen[str]] = []

    def start(*arguments: str, **environment: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-m", "fa_tuner.cli", *arguments], text=True, cwd=tmp_path,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            env={
                **os.environ, "FA_TUNE_STORAGE": yard.url, "FA_TUNE_ARTIFACTS": str(tmp_path / "artifacts"),
                "PYTHONPATH": ROOT, "OMP_NUM_THREADS": "1", **environment,
            },
        )  # fmt: skip
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate()


Command = Callable[..., subprocess.Popen[str]]


def test_two_workers_share_the_jobs_and_end_with_their_parent(yard: Yard, command: Command) -> None:
    for name in "abcd":
        yard.ask(name)
    parent = command("worker", "--devices", "cpu,cpu")
    wait_for(lambda: len(living(yard)) == 2)
    assert all(device.startswith("cpu of ") for device in living(yard))
    wait_for(lambda: all(yard.job(name).ended for name in "abcd"))
    for name in "abcd":
        yard.assert_whole(name)
    children = psutil.Process(parent.pid).children()
    parent.send_signal(signal.SIGTERM)
    _, said = parent.communicate(timeout=30)
    assert parent.returncode == 0 and "Traceback" not in said
    assert not any(child.is_running() for child in children) and living(yard) == []


def test_one_that_is_killed_is_started_again(
    yard: Yard, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(processes, "RESTART_SECONDS", 0.1)
    said: list[str] = []
    with Processes([None], yard.settings, said.append):
        wait_for(lambda: len(living(yard)) == 1)
        (child,) = psutil.Process().children()
        child.send_signal(signal.SIGKILL)
        wait_for(lambda: len(said) == 1 and len(living(yard)) == 1)
        (another,) = psutil.Process().children()
        assert another.pid != child.pid
    assert said == ["worker ended with -9; starting another"]
    assert living(yard) == [] and "Traceback" not in capfd.readouterr().err


def test_one_that_cannot_be_started_is_tried_again(yard: Yard, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "RESTART_SECONDS", 0.1)
    said: list[str] = []
    original, failures = subprocess.Popen, [OSError("too many processes")]

    def popen(*arguments: Any, **named: Any) -> Any:
        if len(said) == 1 and failures:
            raise failures.pop()
        return original(*arguments, **named)

    monkeypatch.setattr(processes.subprocess, "Popen", popen)
    with Processes([None], yard.settings, said.append):
        wait_for(lambda: len(living(yard)) == 1)
        psutil.Process().children()[0].send_signal(signal.SIGKILL)
        wait_for(lambda: len(said) == 2 and len(living(yard)) == 1)
    assert said[1] == "a worker cannot be started: too many processes; trying again"


@pytest.mark.parametrize("arguments", [("worker", "--devices", "cpu"), ("serve", "--port", "0", "--with-worker")])
def test_without_who_started_it_a_worker_ends(yard: Yard, command: Command, arguments: tuple[str, ...]) -> None:
    parent = command(*arguments)
    wait_for(lambda: len(living(yard)) == 1)
    children = psutil.Process(parent.pid).children()
    parent.kill()
    parent.wait()
    wait_for(lambda: not any(child.is_running() and child.status() != "zombie" for child in children), 20)
    assert living(yard) == []


SLOW = """
import sys, time
from pathlib import Path
from typing import Any
from fa_tuner.cli import main
from fa_tuner.engines.replay import ReplayEngine
from fa_tuner.store import claims

claims.LEASE_SECONDS, seconds = float(sys.argv.pop(1)), float(sys.argv.pop(1))
original = ReplayEngine.generate

def generate(*arguments, **named):
    generating = Path("generating")  # and so in no transaction, whose locks would stay
    generating.touch()
    time.sleep(seconds)
    generating.unlink(missing_ok=True)
    return original(*arguments, **named)

ReplayEngine.generate = generate
main()
"""


def slow_worker(yard: Yard, lease: float, seconds: float, *arguments: str) -> subprocess.Popen[str]:
    """A generation takes it so many seconds; to it a worker is gone after `lease` seconds of silence."""
    return subprocess.Popen(
        [sys.executable, "-c", SLOW, str(lease), str(seconds), "worker", *arguments],
        text=True, stderr=subprocess.PIPE, cwd=yard.folder,
        env={
            **os.environ, "FA_TUNE_STORAGE": yard.url, "FA_TUNE_ARTIFACTS": str(yard.folder / "artifacts"),
            "PYTHONPATH": ROOT, "OMP_NUM_THREADS": "1",
        },
    )  # fmt: skip


def test_two_workers_share_one_study(yard: Yard) -> None:
    yard.ask("s", workers=2, trials=16)
    yard.ask("alone", trials=2)
    both = [slow_worker(yard, 120.0, 0.1, "--until-idle") for _ in range(2)]
    said = [worker.communicate(timeout=100)[1] for worker in both]
    assert [worker.returncode for worker in both] == [0, 0] and "Traceback" not in "".join(said)
    measured = [len(re.findall(r"^ *\d+ .* dB, gain", text.split("study s: taken")[1], re.MULTILINE)) for text in said]
    with yard.opened() as (_, store):
        count = store.count("s")
    assert min(measured) > 1, said
    yard.assert_whole("s", count - 1)  # what both were at when the target was reached is kept
    yard.assert_whole("alone", 2)
    assert 16 <= count - 1 <= 17


def test_a_paused_worker_that_wakes_up_too_late_changes_nothing(yard: Yard) -> None:
    """Another worker has finished the study meanwhile: what it writes is refused, and it goes on with other jobs."""
    lease = 2.0
    yard.ask("s")
    paused = slow_worker(yard, lease, 0.3)
    try:
        wait_for(lambda: yard.job().state == "running" and _count(yard) >= 3)
        generating = yard.folder / "generating"
        wait_for(lambda: not generating.exists())
        wait_for(generating.exists)
        paused.send_signal(signal.SIGSTOP)
        stored = _count(yard)
        time.sleep(lease + 0.5)
        other = slow_worker(yard, lease, 0.0, "--until-idle")
        assert "Traceback" not in other.communicate(timeout=60)[1] and other.returncode == 0
        assert yard.job().state == "finished"
        before = yard.evaluations()
        yard.ask("t", trials=2)
        paused.send_signal(signal.SIGCONT)
        wait_for(lambda: yard.job("t").ended)
        assert yard.evaluations() == before and stored < len(before)
        yard.assert_whole("t", 2)
        yard.assert_whole("s")
    finally:
        paused.send_signal(signal.SIGCONT)
        paused.terminate()
        said = paused.communicate(timeout=30)[1]
    assert "Traceback" not in said and paused.returncode == 0


def _count(yard: Yard) -> int:
    with yard.opened() as (_, store):
        return store.count("s") if store.studies() else 0
