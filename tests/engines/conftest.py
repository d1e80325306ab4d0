"""The engine vllm-omni on a process that answers as vLLM-Omni's workers do (tests/support/omni_process.py)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fa_tuner.domain.workload import Workload
from fa_tuner.engines.vllm_omni.engine import VllmOmniEngine
from tests.support.omni_process import Omni, installed


@pytest.fixture
def omni(monkeypatch: pytest.MonkeyPatch) -> Omni:
    return installed(monkeypatch)


@pytest.fixture
def omni_work(tmp_path: Path) -> Workload:
    """3 steps; the model's folder holds its index alone."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model_index.json").write_text('{"_class_name": "WanPipeline"}')
    return Workload(str(tmp_path / "model"), ("a cat", "a dog"), 32, 48, 5, 3, guidance=4.0, seeds=(7,))


@pytest.fixture
def opened(omni: Omni, omni_work: Workload) -> Callable[..., VllmOmniEngine]:
    """`opened(options, **changes_of_the_workload)`"""

    def open_(options: Mapping[str, Any] | None = None, **changes: Any) -> VllmOmniEngine:
        return VllmOmniEngine.open(replace(omni_work, **changes), options or {})

    return open_


@pytest.fixture
def deploy(tmp_path: Path) -> str:
    """A deploy file that says nothing."""
    path = tmp_path / "deploy.yaml"
    path.write_text("stages: []\n")
    return str(path)
