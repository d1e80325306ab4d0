"""A store for workers."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.support.worked import Yard


@pytest.fixture
def yard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Yard:
    for name in [name for name in os.environ if name.startswith("FA_TUNE_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("FA_TUNE_ENGINE", "replay")
    return Yard(f"sqlite:///{tmp_path / 'fa-tune.db'}", tmp_path)
