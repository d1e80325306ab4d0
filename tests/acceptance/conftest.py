"""The command with a data folder of its own, and a landscape to run it on."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fa_tuner.engines.synthetic import synthetic_landscape
from tests.support.command import FaTune, Result

FULL_LANDSCAPE = synthetic_landscape(6, 4, prompts=2, holdout=1, seed=3)


@pytest.fixture
def fa_tune(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[FaTune]:
    """`fa_tune("run", "--trials", "3")` runs the command in `tmp_path` with everything it stores below it."""
    for name in [name for name in os.environ if name.startswith("FA_TUNE_")]:
        monkeypatch.delenv(name)
    command = FaTune(tmp_path, capsys, monkeypatch)
    monkeypatch.setenv("FA_TUNE_STORAGE", command.url)
    monkeypatch.setenv("FA_TUNE_ARTIFACTS", str(tmp_path / "data" / "artifacts"))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data" / "home"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.chdir(tmp_path)
    yield command
    for process in command.started:
        if process.poll() is None:
            process.kill()
        process.communicate()


@pytest.fixture
def landscape(tmp_path: Path) -> Path:
    """6 steps by 4 layers, two prompts and a held-out one; every policy has an answer."""
    FULL_LANDSCAPE.write(tmp_path / "landscape.json")
    return tmp_path / "landscape.json"


@pytest.fixture
def replay(fa_tune: FaTune, landscape: Path) -> Callable[..., Result]:
    """`fa-tune run` on that landscape."""

    def run(*arguments: str | Path, study: str = "s", trials: int = 8) -> Result:
        return fa_tune(
            "run", "--engine", "replay", "--model", landscape, "--study", study, "--trials", str(trials), *arguments
        )

    return run
