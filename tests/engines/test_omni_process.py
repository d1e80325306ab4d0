"""The process that vLLM-Omni lives in: whatever becomes of it, one error says so and nothing of it stays."""

from __future__ import annotations

import contextlib
import gc
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from fa_tuner.domain.errors import EngineError
from fa_tuner.engines.vllm_omni import process as process_module
from fa_tuner.engines.vllm_omni.process import MARK, EngineProcess, EngineSaidError
from fa_tuner.engines.vllm_omni.worker import HEARTBEAT
from tests.support.stand_in_host import COMMAND

LONG = 30.0  # seconds of silence that no test waits for


@pytest.fixture(autouse=True)
def nothing_left_open(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No descriptor, and no ResourceWarning, which is an error here."""
    monkeypatch.setattr(process_module, "_POLL_SECONDS", 0.02)
    monkeypatch.setattr(process_module, "_SETTLE_SECONDS", 0.01)
    gc.collect()
    before = psutil.Process().num_fds()
    yield
    gc.collect()
    assert psutil.Process().num_fds() == before


@pytest.fixture
def child(nothing_left_open: None) -> Iterator[EngineProcess]:
    made = EngineProcess(COMMAND)
    yield made
    made.close()
    shutil.rmtree(made.folder, ignore_errors=True)


def ask(child: EngineProcess, command: str, quiet_seconds: float = LONG, **arguments: Any) -> Any:
    return child.call({"do": command, **arguments}, quiet_seconds)


def alive(pid: int) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE  # which only waits to be noticed by its parent
    return False


def marked(pid: int) -> bool:
    """Whether it shows whose it is; only a process does that is not just being started."""
    with contextlib.suppress(psutil.Error):
        return MARK in psutil.Process(pid).environ()
    return False


def soon(what: Callable[[], bool], seconds: float = 10) -> bool:
    """Whether it comes true: a kill takes effect a moment after the call."""
    ends = time.monotonic() + seconds
    while not (found := what()) and time.monotonic() < ends:
        time.sleep(0.02)
    return found


def failure(child: EngineProcess, command: str, quiet_seconds: float = LONG, **arguments: Any) -> str:
    """What is said of a call that fails; the process is gone then, and its log where the message says."""
    with pytest.raises(EngineError) as caught:
        ask(child, command, quiet_seconds, **arguments)
    assert not psutil.pid_exists(child.pid)
    assert str(child.log) in str(caught.value) and child.log.is_file()
    return str(caught.value)


# --- answers --------------------------------------------------------------------------------------------------------


def test_it_answers_one_request_after_the_other(child: EngineProcess) -> None:
    for value in (1, "text", {"nested": [1, (2, 3)]}, None, b"x" * 5_000_000):
        assert ask(child, "echo", value=value) == value


def test_it_is_marked_and_its_environment_is_ours(child: EngineProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    found = ask(child, "environment")
    assert (found[MARK], found[HEARTBEAT]) == (child.mark, str(child.heartbeat))
    assert found["PATH"] == os.environ["PATH"]
    assert MARK not in os.environ and HEARTBEAT not in os.environ


@pytest.mark.parametrize(("ours", "theirs"), [(None, "passive"), ("active", "active")])
def test_openmp_does_not_spin_unless_asked_to(monkeypatch: pytest.MonkeyPatch, ours: str | None, theirs: str) -> None:
    if ours is None:
        monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    else:
        monkeypatch.setenv("OMP_WAIT_POLICY", ours)
    made = EngineProcess(COMMAND)
    try:
        assert ask(made, "environment")["OMP_WAIT_POLICY"] == theirs
    finally:
        made.close()


def test_two_do_not_know_each_other(child: EngineProcess) -> None:
    other = EngineProcess(COMMAND)
    assert other.mark != child.mark and other.folder != child.folder
    other.close()
    assert ask(child, "echo", value="still here") == "still here"


def test_the_real_host_is_what_is_started_by_default() -> None:
    made = EngineProcess()
    try:
        with pytest.raises(EngineError, match="'Host' object has no attribute 'no_such_command'"):
            ask(made, "no_such_command")
    finally:
        made.close()


# --- failures -------------------------------------------------------------------------------------------------------


def test_it_says_that_it_failed(child: EngineProcess) -> None:
    with pytest.raises(EngineSaidError, match=r"^ValueError: EZ9999: inner error; its log is "):
        ask(child, "fail", text="EZ9999:\n  inner error")
    assert "Traceback" in child.log.read_text()


def test_a_long_reason_is_cut(child: EngineProcess) -> None:
    assert len(failure(child, "fail", text="x" * 100_000)) < 1500


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (signal.SIGKILL, "was killed by SIGKILL; the system may have run out of memory: it wrote nothing"),
        (signal.SIGSEGV, "was killed by SIGSEGV: it wrote nothing"),
    ],
)
def test_it_is_killed(child: EngineProcess, number: signal.Signals, said: str) -> None:
    assert failure(child, "die", number=int(number)).startswith(f"engine vllm-omni {said}; its log is ")


def test_what_it_last_said_of_an_error_is_told(child: EngineProcess) -> None:
    said = failure(child, "die", number=9, text="INFO up\nRuntimeError: out of blocks\nINFO leaving\n")
    assert "the system may have run out of memory: RuntimeError: out of blocks;" in said


def test_what_it_wrote_is_not_what_it_said(child: EngineProcess) -> None:
    """Its log may hold anything; only what it said itself is taken at its word."""
    with pytest.raises(EngineError) as caught:
        ask(child, "leave", code=1, text="ValueError: does not support kv_cache_dtype")
    assert caught.type is EngineError


def test_without_an_error_its_last_line_is_told(child: EngineProcess) -> None:
    assert "ended with 3: bye; its log is" in failure(child, "leave", code=3, text="hello\nbye\n\n")


def test_it_leaves_of_its_own_accord(child: EngineProcess) -> None:
    assert failure(child, "leave", code=0, text="").startswith("engine vllm-omni ended with 0: it wrote nothing;")


def test_it_is_gone_before_it_is_asked(child: EngineProcess) -> None:
    ask(child, "echo", value=1)
    os.kill(child.pid, signal.SIGKILL)
    assert "was killed by SIGKILL" in failure(child, "echo", value=2)


def test_its_end_is_noticed_though_another_process_holds_the_socket(child: EngineProcess) -> None:
    """A worker inherits it where it is forked, so the socket does not say that the engine is gone."""
    started = time.monotonic()
    ask(child, "start", apart=True)
    assert "ended with 4" in failure(child, "leave", code=4, text="")
    assert time.monotonic() - started < LONG / 2


def test_after_a_failure_it_cannot_be_asked_again(child: EngineProcess) -> None:
    failure(child, "fail", text="x")
    with pytest.raises(EngineError):
        ask(child, "echo", value=1)


# --- silence --------------------------------------------------------------------------------------------------------


def test_it_hangs(child: EngineProcess) -> None:
    ask(child, "echo", value="up")
    assert "engine vllm-omni hangs: no denoising step for 1 seconds; it was ended" in failure(
        child, "work", quiet_seconds=1, seconds=LONG, beats=False
    )


def test_its_heartbeat_keeps_it_alive(child: EngineProcess) -> None:
    ask(child, "echo", value="up")
    assert ask(child, "work", quiet_seconds=1, seconds=2, beats=True) == "worked"


def test_silence_counts_from_the_request(child: EngineProcess) -> None:
    ask(child, "echo", value="up")
    os.utime(child.heartbeat, (0, 0))
    assert ask(child, "work", quiet_seconds=5, seconds=0.2, beats=False) == "worked"


# --- its end --------------------------------------------------------------------------------------------------------


def test_close_leaves_no_process_and_no_folder_and_may_be_called_twice() -> None:
    made = EngineProcess(COMMAND)
    ask(made, "echo", value=1)
    assert alive(made.pid) and made.folder.is_dir()
    for _ in range(2):
        made.close()
        assert not psutil.pid_exists(made.pid) and not made.folder.exists()


def test_it_leaves_in_good_order_when_told_to(child: EngineProcess) -> None:
    ask(child, "echo", value=1)
    child.close()
    assert child._child.returncode == 0, "a killed engine could not give its devices back"


def test_one_that_does_not_leave_is_killed(child: EngineProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process_module, "_LEAVE_SECONDS", 0.3)
    ask(child, "stay")
    child.close()
    assert not psutil.pid_exists(child.pid) and not child.folder.exists()


def test_it_is_ended_once(child: EngineProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its number may be another's by then."""
    child.kill()
    monkeypatch.setattr(os, "killpg", lambda *_: pytest.fail("it was gone"))
    child.kill()
    child.close()


def test_close_after_a_failure_takes_the_log_too(child: EngineProcess) -> None:
    failure(child, "fail", text="x")
    child.close()
    assert not child.folder.exists()


@pytest.mark.parametrize("apart", [False, True], ids=["in its group", "apart"])
@pytest.mark.parametrize("end", ["close", "kill", "fail", "die"])
def test_what_it_started_goes_with_it(child: EngineProcess, apart: bool, end: str) -> None:
    """Also what left its process group."""
    started = ask(child, "start", apart=apart)
    assert soon(lambda: marked(started)) and os.getpgid(started) == (started if apart else child.pid)
    if end in ("close", "kill"):
        getattr(child, end)()
    else:
        failure(child, end, **{"text": "x"} if end == "fail" else {"number": 9})
    assert soon(lambda: not alive(started))


def test_what_was_just_being_started_goes_too(child: EngineProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    """For a moment the system shows no environment of it."""
    started = ask(child, "start", apart=True)
    assert soon(lambda: marked(started))
    original, looks = psutil.Process.environ, [0]

    def environ(self: psutil.Process) -> dict[str, str]:
        looks[0] += self.pid == started
        return {} if self.pid == started and looks[0] == 1 else original(self)

    monkeypatch.setattr(psutil.Process, "environ", environ)
    child.kill()
    assert soon(lambda: not alive(started))


def test_the_engine_of_another_is_left_alone(child: EngineProcess) -> None:
    other = EngineProcess(COMMAND)
    started = ask(other, "start", apart=True)
    assert soon(lambda: marked(started))
    child.close()
    try:
        time.sleep(0.2)
        assert alive(started) and alive(other.pid)
    finally:
        other.close()


def test_ctrl_c_during_a_call_ends_it(child: EngineProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its answer would else be taken for that to the next request."""
    ask(child, "echo", value="up")
    monkeypatch.setattr(child._pipe, "poll", lambda _: signal.raise_signal(signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        ask(child, "work", seconds=LONG, beats=False)
    assert not psutil.pid_exists(child.pid) and not child.folder.exists()


def test_ctrl_c_while_it_closes_ends_it_too(child: EngineProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    ask(child, "stay")
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        # the first wait is for it to leave, the second, in `kill`, for its end
        wait, waits = child._child.wait, iter([True, False])
        patched.setattr(
            child._child, "wait", lambda *a: signal.raise_signal(signal.SIGINT) if next(waits) else wait(*a)
        )
        child.close()
    assert not psutil.pid_exists(child.pid) and not child.folder.exists()


def test_ctrl_c_at_the_terminal_does_not_reach_it(child: EngineProcess) -> None:
    assert os.getsid(child.pid) == child.pid != os.getsid(0)


PARENT = """
import sys
import time

from fa_tuner.engines.vllm_omni.process import EngineProcess

child = EngineProcess(sys.argv[2:])
print(child.pid, child.call({"do": "start", "apart": False}, 30), flush=True)
if sys.argv[1] == "busy":
    child.call({"do": "work", "seconds": 60, "beats": False}, 60)
time.sleep(60)
"""


@pytest.mark.parametrize("state", ["busy", "idle"])
def test_a_killed_tuner_takes_it_along(tmp_path: Path, state: str) -> None:
    """While it works, and while it waits to be asked; with what it started in its group."""
    with subprocess.Popen(
        [sys.executable, "-c", PARENT, state, *COMMAND], stdout=subprocess.PIPE, text=True,
        env={**os.environ, "TMPDIR": str(tmp_path)},
    ) as parent:  # fmt: skip
        assert parent.stdout is not None
        pids = [int(pid) for pid in parent.stdout.readline().split()]
        assert len(pids) == 2 and all(map(alive, pids))
        time.sleep(0.2)
        parent.kill()
    try:
        assert soon(lambda: not any(map(alive, pids)))
        assert not list(tmp_path.iterdir()), "nobody else would remove its folder"
    finally:
        for pid in filter(alive, pids):
            os.kill(pid, signal.SIGKILL)
