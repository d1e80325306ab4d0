"""Workers in processes of their own: one a device, started again where one ends by itself."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from fa_tuner.domain.errors import UsageError
from fa_tuner.settings import StoreSettings

PARENT = "FA_TUNE_WORKER_PARENT"  # the process that started the worker, and without which it ends
DEVICE = "FA_TUNE_WORKER_DEVICE"
RESTART_SECONDS = 5.0
POLL_SECONDS = 0.2
_VISIBLE = {"npu": "ASCEND_RT_VISIBLE_DEVICES", "cuda": "CUDA_VISIBLE_DEVICES"}
_FORM = re.compile(r"(npu|cuda):(\d{1,3}(?:\+\d{1,3})*)|cpu", re.ASCII)


@dataclass(frozen=True)
class Device:
    """What one worker has for itself: `npu:0`, several that belong together as `npu:0+1`, or `cpu`."""

    name: str

    @classmethod
    def parse(cls, text: str) -> Device:
        """
        Raises:
            UsageError: it is written in another form.
        """
        if _FORM.fullmatch(text) is None:
            raise UsageError(
                f"device {text[:40]!r} is not of the form npu:0, cuda:1, npu:0+1 (both for one worker) or cpu"
            )
        return cls(text)

    @property
    def environment(self) -> dict[str, str]:
        """What a worker needs in its environment to see this device alone."""
        kind, _, numbers = self.name.partition(":")
        visible = {_VISIBLE[kind]: numbers.replace("+", ",")} if numbers else dict.fromkeys(_VISIBLE.values(), "")
        return {DEVICE: self.name, **visible}


def parse_devices(texts: Sequence[str]) -> list[Device]:
    """
    Raises:
        UsageError: one in another form, or one chip given to two workers.
    """
    devices = [Device.parse(text) for text in texts]
    chips = [
        f"{kind}:{chip}" for kind, _, chips in (d.name.partition(":") for d in devices) for chip in chips.split("+")
    ]
    if twice := sorted({chip for chip in chips if chips.count(chip) > 1 and chip != "cpu:"}):
        raise UsageError(f"device {twice[0]} is given to two workers")
    return devices


class Processes:
    """`fa-tune worker` in a process for each device, for as long as the block runs, on the store of the `settings`; a
    device of None is whatever the process sees. One that ends by itself is started again after `RESTART_SECONDS`. At
    the block's end each is asked to stop after its running policy, and waited for."""

    def __init__(self, devices: Sequence[Device | None], settings: StoreSettings, say: Callable[[str], None]) -> None:
        self._devices, self._say = devices, say
        self._environment = {"FA_TUNE_STORAGE": settings.url, "FA_TUNE_ARTIFACTS": settings.artifact_root}
        self._running: dict[int, subprocess.Popen[bytes]] = {}
        self._asked: set[int] = set()  # the process ids of those that know that they are to stop
        self._ending = False  # no Event: a signal may come while its lock is held
        self._watching = threading.Thread(target=self._watch, name="watches workers", daemon=True)

    def __enter__(self) -> Processes:
        for index in range(len(self._devices)):
            self._start(index)
        self._watching.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ending = True
        self._watching.join()  # who might be starting one
        self._ask([process for process in self._running.values() if process.pid not in self._asked])
        for process in self._running.values():
            process.wait()

    def stop(self) -> None:
        """Ask them to stop; asked once more, they stop at once."""
        self._ending = True
        self._ask(list(self._running.values()))

    def _ask(self, processes: Sequence[subprocess.Popen[bytes]]) -> None:
        for process in processes:
            if process.poll() is None:
                self._asked.add(process.pid)
                process.send_signal(signal.SIGTERM)

    def _start(self, index: int) -> None:
        device = self._devices[index]
        self._running[index] = subprocess.Popen(
            [sys.executable, "-m", "fa_tuner.cli", "worker"],
            stdin=subprocess.DEVNULL, start_new_session=True,  # a Ctrl-C at the terminal is ours to hand on
            env={
                **os.environ, **self._environment, **(device.environment if device else {}),
                "FA_TUNE_DEVICES": "[]", PARENT: str(os.getpid()),
            },
        )  # fmt: skip

    def _watch(self) -> None:
        due: dict[int, float] = {}
        while not self._ending:
            time.sleep(POLL_SECONDS)
            for index, process in self._running.items():
                if process.poll() is not None and index not in due:
                    device = self._devices[index]
                    where = f" on {device.name}" if device else ""
                    self._say(f"worker{where} ended with {process.returncode}; starting another")
                    due[index] = time.monotonic() + RESTART_SECONDS
            for index in [index for index, when in due.items() if when <= time.monotonic() and not self._ending]:
                del due[index]
                try:
                    self._start(index)
                except OSError as error:  # such as too many processes
                    self._say(f"a worker cannot be started: {error}; trying again")
                    due[index] = time.monotonic() + RESTART_SECONDS
