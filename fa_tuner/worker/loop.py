"""One worker: takes a job, tunes its study, says how that ended, takes the next."""

from __future__ import annotations

import math
import os
import platform
import signal
import tempfile
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from fa_tuner.domain.errors import (
    EngineError,
    FaTuneError,
    InterruptedByUser,
    LeaseLostError,
    OtherEnvironmentError,
    StoreError,
    outcome,
)
from fa_tuner.store.artifacts import Artifacts
from fa_tuner.store.claims import Heartbeat, Worker
from fa_tuner.store.database import Database
from fa_tuner.store.jobs import Jobs
from fa_tuner.store.leases import Lease
from fa_tuner.store.repository import Store
from fa_tuner.tuning import tune
from fa_tuner.worker.requests import settings_of

if TYPE_CHECKING:
    from fa_tuner.planning import TuneRequest
    from fa_tuner.settings import WorkerSettings
    from fa_tuner.tuning import Observer

POLL_SECONDS = 1.0  # between looks for a job
STORE_SECONDS = 5.0  # after the store failed
BESIDE_SECONDS = 300.0  # before one that failed at a study that others are at joins them again
_TRANSIENT = (EngineError, StoreError)  # of which another attempt may be spared


class WorkerLoop:
    """A worker of this process. `observe` makes the observer of one study, which is given what asks whether to stop;
    `say` is told what the worker does.

    The first SIGTERM or SIGINT lets the running policy end; the second stops at once. Either way the job waits for
    another worker.
    """

    def __init__(
        self, settings: WorkerSettings, observe: Callable[[TuneRequest, Callable[[], bool]], Observer],
        say: Callable[[str], None],
    ) -> None:  # fmt: skip
        self._settings, self._observe, self._say = settings, observe, say
        self._device = _named(settings.worker_device)
        self._worker = Worker.of_this_process()
        self._artifacts = Artifacts(settings.artifact_root, settings.artifact_quota_mb * 2**20)
        self._refused: dict[str, float] = {}  # studies that are left to others, and until when
        self._stopping, self._busy = _Stopping(settings.worker_parent), False

    def run(self, until_idle: bool = False) -> None:
        """Until a signal, or until nothing is left to do.

        Raises:
            StoreError: the store cannot be opened. Later failures are waited out.
        """
        database = Database.open(self._settings.url)
        former = [(number, signal.signal(number, self._asked)) for number in (signal.SIGTERM, signal.SIGINT)]
        try:
            jobs = Jobs(database, self._settings.max_attempts)
            jobs.enlist(self._worker, self._device)
            self._say(f"worker on {self._device} is ready; jobs come from {database.shown}")
            with Heartbeat(partial(jobs.beat, device=self._device), self._worker):
                with suppress(KeyboardInterrupt):
                    self._take_all(jobs, until_idle)
                with suppress(StoreError):
                    jobs.retire(self._worker)
        finally:
            for number, handler in former:
                signal.signal(number, handler)
            database.close()

    def _asked(self, _signal: int, _frame: FrameType | None) -> None:
        if self._stopping.is_set():
            raise KeyboardInterrupt
        self._stopping.set()
        if self._busy:
            self._say("stopping after the running policy; once more stops at once")

    def _take_all(self, jobs: Jobs, until_idle: bool) -> None:
        while not self._stopping.is_set():
            try:
                lease = jobs.take(self._worker, self._device, self._left_to_others())
            except StoreError as error:
                self._say(f"{error}; trying again")
                self._stopping.wait(STORE_SECONDS)
                continue
            if lease is None and until_idle:
                return
            if lease is None:
                self._stopping.wait(POLL_SECONDS)
                continue
            self._busy = True
            self._settle(self._work(jobs, lease))
            self._busy = False

    def _settle(self, end: Callable[[], None]) -> None:
        """Say how a job ended, as often as the store needs; where the lease was lost meanwhile, another worker will."""
        while True:
            try:
                return end()
            except LeaseLostError:
                return None
            except StoreError as error:
                self._say(f"{error}; trying again")
            except Exception:  # nobody foresaw it; the job is open to others as soon as this worker takes another
                self._say(traceback.format_exc())
                return None
            if self._stopping.is_set():
                return None  # once this process is gone, another worker takes the job
            self._stopping.wait(STORE_SECONDS)

    def _work(self, jobs: Jobs, lease: Lease) -> Callable[[], None]:
        """Tune the job's study; returns what says to the store how it ended."""
        name = lease.job.study
        self._say(f"study {name}: taken, lease {lease.token}")
        try:
            reason = self._tune(jobs, lease)
        except (InterruptedByUser, KeyboardInterrupt) as stopped:
            if isinstance(stopped, KeyboardInterrupt):
                self._stopping.set()
            self._say(f"study {name}: stopped")
            return lambda: jobs.give_back(lease, f"its worker on {self._device} was stopped; it goes on elsewhere")
        except LeaseLostError as lost:
            self._say(f"study {name}: {lost}")
            return lambda: None
        except OtherEnvironmentError as error:
            self._refused[name] = math.inf
            self._say(f"study {name}: {error}")
            told = f"waits for a worker in its environment; that on {self._device} is in another: {error}"
            return lambda: jobs.give_back(lease, told)
        except FaTuneError as error:
            told, problem = str(error), outcome(type(error)).problem_type
            retry = isinstance(error, _TRANSIENT)
            self._say(f"study {name}: {told}")
            return lambda: self._fail(jobs, lease, told, problem, retry)
        except Exception as error:  # nobody foresaw it; one job must not end the worker
            self._say(traceback.format_exc())
            told = f"internal error: {type(error).__name__}; the worker's log says where"
            return lambda: self._fail(jobs, lease, told, "internal", True)
        self._say(f"study {name}: finished ({reason})")
        return lambda: jobs.finish(lease, reason)

    def _fail(self, jobs: Jobs, lease: Lease, told: str, problem: str, retry: bool) -> None:
        if not jobs.fail(lease, told, problem, retry):
            self._refused[lease.job.study] = time.monotonic() + BESIDE_SECONDS

    def _left_to_others(self) -> frozenset[str]:
        now = time.monotonic()
        return frozenset(name for name, until in self._refused.items() if until > now)

    def _tune(self, jobs: Jobs, lease: Lease) -> str:
        with tempfile.TemporaryDirectory(prefix="fa-tune-job-") as folder:
            request = settings_of(lease.job, self._artifacts, Path(folder)).request()
            observer = self._observe(request, _Standing(self._stopping, jobs, lease).stop)
            store = Store(jobs.fenced(lease))
            return tune(request, store, self._artifacts, observer, self._settings.url).reason


class _Stopping:
    """Asked for by a signal, or by the end of the process that started this one."""

    def __init__(self, parent: int | None) -> None:
        self._asked, self._parent = False, parent  # no Event: a signal may come while its lock is held

    def set(self) -> None:
        self._asked = True

    def is_set(self) -> bool:
        return self._asked or (self._parent is not None and os.getppid() != self._parent)

    def wait(self, seconds: float) -> None:
        """At most so long."""
        deadline = time.monotonic() + seconds
        while not self.is_set() and time.monotonic() < deadline:
            time.sleep(min(0.1, seconds))


def _named(device: str | None) -> str:
    return platform.node() if device is None else f"{device} of {platform.node()}"


class _Standing:
    """Whether a worker is to leave its job; the store is asked at most once a second."""

    def __init__(self, stopping: _Stopping, jobs: Jobs, lease: Lease) -> None:
        self._stopping, self._jobs, self._lease = stopping, jobs, lease
        self._asked, self._left = float("-inf"), False

    def stop(self) -> bool:
        if self._stopping.is_set() or self._left:
            return True
        if time.monotonic() - self._asked >= POLL_SECONDS:
            self._asked = time.monotonic()
            with suppress(StoreError):  # the next writing waits for the store, or fails by itself
                self._left = self._jobs.standing(self._lease) != "held"
        return self._left
