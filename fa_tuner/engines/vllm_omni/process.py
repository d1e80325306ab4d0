"""The process that vLLM-Omni lives in: started, talked to, watched, and taken down with all that it started."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from socket import socketpair
from typing import Any

from fa_tuner.domain.errors import EngineError
from fa_tuner.engines.vllm_omni.child import how_it_ended, last_line
from fa_tuner.engines.vllm_omni.worker import HEARTBEAT

MARK = "FA_TUNE_ENGINE_PROCESS"  # in the environment of the process and of everything that it starts
HOST = (sys.executable, "-m", "fa_tuner.engines.vllm_omni.host")
_POLL_SECONDS = 0.5
_SETTLE_SECONDS = 0.1
_LEAVE_SECONDS = 20.0  # after "close", before it is killed


class EngineSaidError(EngineError):
    """vLLM-Omni itself said why it failed, and ended in good order."""


class EngineProcess:
    """A child that answers one request at a time. Once it failed it is gone, and another one must be made.

    `command` starts it; a socket's number is put behind.
    """

    def __init__(self, command: Sequence[str] = HOST) -> None:
        self.mark = uuid.uuid4().hex
        self.folder = Path(tempfile.mkdtemp(prefix="fa-tune-engine-"))
        self.log = self.folder / "log"
        self.heartbeat = self.folder / "heartbeat"
        self.heartbeat.touch()
        ours, theirs = socketpair()
        with self.log.open("wb") as log, theirs:
            self._child = subprocess.Popen(  # noqa: S603 - our own module, in our own interpreter
                [*command, str(theirs.fileno())],
                stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, pass_fds=(theirs.fileno(),),
                start_new_session=True,  # a Ctrl-C at the terminal is the tuner's to handle
                env={"OMP_WAIT_POLICY": "passive", **os.environ, MARK: self.mark, HEARTBEAT: str(self.heartbeat)},
            )  # fmt: skip
        self._pipe = Connection(ours.detach())

    def call(self, request: dict[str, Any], quiet_seconds: float) -> Any:
        """Send a request and wait for its answer, at most `quiet_seconds` without a sign of life.

        Raises:
            EngineSaidError: it said that it failed; EngineError: it died, or showed no sign of life. It is gone then.
        """
        try:
            self.heartbeat.touch()
            self._pipe.send(request)
            while not self._pipe.poll(_POLL_SECONDS):
                if self._child.poll() is not None and not self._pipe.poll(0):
                    raise EOFError
                if (silent := time.time() - self.heartbeat.stat().st_mtime) > quiet_seconds:
                    raise TimeoutError(f"no denoising step for {silent:.0f} seconds")
            kind, answer = self._pipe.recv()
        except (EOFError, OSError) as error:  # TimeoutError is an OSError
            raise self._gone(error) from None
        except BaseException:  # Ctrl-C: the answer that is on its way would be taken for the next one
            self.kill()
            shutil.rmtree(self.folder, ignore_errors=True)
            raise
        if kind == "failed":
            raise self._failed(str(answer))
        return answer

    def close(self) -> None:
        """Let it leave in good order, then make sure of it. Safe to call twice."""
        try:
            with contextlib.suppress(OSError, ValueError, subprocess.TimeoutExpired):
                self._pipe.send({"do": "close"})
                self._child.wait(_LEAVE_SECONDS)
        finally:
            self.kill()
            shutil.rmtree(self.folder, ignore_errors=True)

    def kill(self) -> None:
        """End the process and everything that it started, also what left its process group."""
        import psutil

        if self._pipe.closed:  # it was ended before, and its number may be another's by now
            return
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._child.pid, signal.SIGKILL)
        for pause in (0.0, _SETTLE_SECONDS):  # what was just being started shows its environment a moment later
            time.sleep(pause)
            for process in psutil.process_iter():
                with contextlib.suppress(psutil.Error, OSError):
                    if process.pid != os.getpid() and process.environ().get(MARK) == self.mark:
                        process.kill()
        self._pipe.close()
        self._child.wait()

    @property
    def pid(self) -> int:
        return self._child.pid

    def _gone(self, error: OSError | EOFError) -> EngineError:
        if isinstance(error, TimeoutError):
            self.kill()
            return EngineError(f"engine vllm-omni hangs: {error}; it was ended, its log is {self.log}")
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._child.wait(5)
        code = self._child.poll()
        self.kill()
        memory = "; the system may have run out of memory" if code == -signal.SIGKILL else ""
        return EngineError(
            f"engine vllm-omni {how_it_ended(code)}{memory}: {last_line(self.log)}; its log is {self.log}"
        )

    def _failed(self, message: str) -> EngineSaidError:
        """It said why; vLLM-Omni is of no use after an exception."""
        self.kill()
        return EngineSaidError(f"{message}; its log is {self.log}")
