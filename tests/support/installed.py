"""The installed command in processes of its own, as users have it, with its data in one folder."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import psutil

from fa_tuner.domain.study import Evaluation
from fa_tuner.engines.vllm_omni.process import MARK
from fa_tuner.store.repository import Store
from tests.support.command import Result


@dataclass
class Installed:
    """`environment` is set on top of this process's; what a process says goes to files, so that none waits for a
    reader."""

    folder: Path
    environment: dict[str, str] = field(default_factory=dict)
    started: list[subprocess.Popen[str]] = field(default_factory=list)
    _files: list[tuple[IO[str], IO[str]]] = field(default_factory=list)

    def __call__(self, *arguments: str | Path, timeout: float = 300, **environment: str) -> Result:
        return self.finish(self.start(*arguments, **environment), timeout)

    def start(self, *arguments: str | Path, **environment: str) -> subprocess.Popen[str]:
        said = self.folder / "said"
        said.mkdir(exist_ok=True)
        out, err = ((said / f"{len(self.started)}.{name}").open("w+") for name in ("out", "err"))
        data = {"FA_TUNE_STORAGE": self.url, "FA_TUNE_ARTIFACTS": str(self.folder / "artifacts")}
        self._files.append((out, err))
        self.started.append(subprocess.Popen(
            [str(Path(sys.executable).parent / "fa-tune"), *map(str, arguments)], stdin=subprocess.DEVNULL, stdout=out,
            stderr=err, text=True, cwd=self.folder, env={**os.environ, **self.environment, **data, **environment},
            start_new_session=True,  # as a terminal's job: Ctrl-C goes to all of it
        ))  # fmt: skip
        return self.started[-1]

    def finish(self, process: subprocess.Popen[str], timeout: float = 300) -> Result:
        process.wait(timeout)
        out, err = self.said(process)
        assert "Traceback" not in out + err, err
        return Result(process.returncode, out, err)

    def said(self, process: subprocess.Popen[str]) -> tuple[str, str]:
        """On stdout and stderr so far."""
        out, err = (Path(file.name).read_text() for file in self._files[self.started.index(process)])
        return out, err

    def ctrl_c(self, process: subprocess.Popen[str]) -> None:
        os.killpg(process.pid, signal.SIGINT)

    def engines(self) -> list[psutil.Process]:
        """Processes of engine vllm-omni that this command started and that are there, the first started one first."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                environment = process.environ()
                ours = MARK in environment and environment.get("FA_TUNE_STORAGE") == self.url
                if ours and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return sorted(found, key=lambda process: (process.create_time(), process.pid))

    def close(self) -> None:
        for process in self.started:
            process.kill()
            process.wait()
        for engine in self.engines():
            with contextlib.suppress(psutil.Error):
                engine.kill()
        for file in (file for pair in self._files for file in pair):
            file.close()

    @property
    def url(self) -> str:
        return f"sqlite:///{self.folder / 'fa-tune.db'}"

    def evaluations(self, study: str) -> list[Evaluation]:
        """Those committed so far, the native one first."""
        if not (self.folder / "fa-tune.db").exists():
            return []
        with Store.open(self.url) as store:
            return store.evaluations(study) if any(s.spec.name == study for s in store.studies()) else []

    def wait_until(self, process: subprocess.Popen[str], reached: Callable[[], bool], seconds: float = 120) -> None:
        """While the process runs."""
        deadline = time.monotonic() + seconds
        while not reached():
            assert process.poll() is None, self.said(process)
            assert time.monotonic() < deadline, self.said(process)
            time.sleep(0.05)
