"""`fa-tune` as a user calls it, in this process (fast) or in one of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import pytest

from fa_tuner.cli import main
from fa_tuner.store.repository import Store


def strict_json(text: str) -> Any:
    """JSON as the standard has it: no NaN, no infinity, nothing before or after."""

    def refuse(constant: str) -> NoReturn:
        raise AssertionError(f"{constant} is no JSON")

    return json.loads(text, parse_constant=refuse)


@dataclass(frozen=True)
class Result:
    """What a command gave back."""

    code: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        return strict_json(self.out)

    def succeeded(self) -> Result:
        assert self.code == 0, self.err
        return self

    def refused(self, code: int, *words: str) -> Result:
        """It ended with this exit code and one message, which says all of `words`."""
        assert self.code == code, f"exit code {self.code}\n{self.out}\n{self.err}"
        for word in words:
            assert word in self.err, f"{word!r} is not in {self.err!r}"
        return self


@dataclass
class FaTune:
    """The command with its data folder."""

    folder: Path
    capsys: pytest.CaptureFixture[str]
    monkeypatch: pytest.MonkeyPatch
    started: list[subprocess.Popen[str]] = field(default_factory=list)

    def __call__(self, *arguments: str | Path) -> Result:
        """Run the command in this process."""
        self.capsys.readouterr()
        self.monkeypatch.setattr(sys, "argv", ["fa-tune", *map(str, arguments)])
        code: Any = 0
        try:
            main()
        except SystemExit as ended:
            code = ended.code or 0
        out, err = self.capsys.readouterr()
        assert "Traceback" not in out + err, err
        return Result(code, out, err)

    def start(self, *arguments: str | Path) -> subprocess.Popen[str]:
        """Run the command in a process of its own, which the test ends."""
        process = subprocess.Popen(
            [sys.executable, "-c", "from fa_tuner.cli import main; main()", *map(str, arguments)],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=self.folder,
            env={**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"},
        )  # fmt: skip
        self.started.append(process)
        return process

    def finish(self, process: subprocess.Popen[str], timeout: float = 100) -> Result:
        """Wait for a started command."""
        out, err = process.communicate(timeout=timeout)
        assert "Traceback" not in err, err
        return Result(process.returncode, out or "", err)

    def elsewhere(self, *arguments: str | Path) -> Result:
        """Run the command in a process of its own, to its end."""
        return self.finish(self.start(*arguments))

    @property
    def url(self) -> str:
        return f"sqlite:///{self.folder / 'data' / 'fa-tune.db'}"

    def store(self) -> Store:
        return Store.open(self.url)

    def files(self) -> set[str]:
        """All files below the test's folder but those of the data folder."""
        data = self.folder / "data"
        return {str(path.relative_to(self.folder)) for path in self.folder.rglob("*") if data not in path.parents}
