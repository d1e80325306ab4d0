"""fa-tune beside a vLLM-Omni that is there: it changes nothing, and what these tests emulate is none of its own."""

from __future__ import annotations

import importlib.machinery
import os
import shutil
import subprocess
import sys
import types
from importlib.metadata import entry_points
from pathlib import Path
from zipfile import ZipFile

import pytest
from fa_tune_emulated_npu import SWITCH, activate

from .conftest import ROOT

pytestmark = pytest.mark.timeout(300)
STARTUP = ROOT / "tests" / "omni" / "emulated_npu" / "startup"
PLATFORM = "fa_tune_emulated_npu.platform.EmulatedNPUPlatform"


def python(*arguments: str | Path, check: bool = True, **environment: str) -> subprocess.CompletedProcess[str]:
    """This interpreter, outside of the source's folder."""
    done = subprocess.run(
        [sys.executable, "-P", *map(str, arguments)], capture_output=True, text=True, timeout=240,
        cwd=Path(sys.prefix), env={**os.environ, **environment}, check=False,
    )  # fmt: skip
    assert not check or done.returncode == 0, done.stdout + done.stderr
    return done


def recorded(name: str) -> list[str]:
    """What the Makefile wrote beside the environment before it installed fa-tune into it."""
    file = Path(sys.prefix) / name
    assert file.is_file(), f"{file} is missing: this environment was not made by make test-omni"
    return file.read_text().splitlines()


def test_no_installed_version_is_changed() -> None:
    before = recorded("before.txt")
    now = python("-m", "pip", "freeze").stdout.splitlines()
    assert any(line.startswith("vllm-omni==") for line in before) and any(x.startswith("torch==") for x in before)
    assert not any("fa-tune" in line or "fa_tune" in line for line in before), "recorded too late to show anything"
    # an editable checkout with a remote goes by its egg's name, fa_tune, in pip's list
    assert any("fa-tune" in line.replace("_", "-") for line in now)
    assert [line for line in before if line not in now] == []


def test_no_requirement_is_broken() -> None:
    """What vLLM-Omni itself lacks here, it lacked before."""
    done = python("-m", "pip", "check", check=False)
    assert sorted(done.stdout.splitlines()) == sorted(recorded("check-before.txt"))
    assert "fa-tune" not in done.stdout


def test_the_emulation_is_in_no_wheel(tmp_path: Path) -> None:
    """Built from a copy that holds the tests, too: setuptools writes beside the source."""
    source, ignored = tmp_path / "source", shutil.ignore_patterns("__pycache__", "*.egg-info")
    for name in ("fa_tuner", "api", "tests"):
        shutil.copytree(ROOT / name, source / name, ignore=ignored)
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, source)
    wheel = ("-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index")
    python(*wheel, "--wheel-dir", tmp_path, source)
    (built,) = tmp_path.glob("*.whl")
    with ZipFile(built) as archive:
        names = archive.namelist()
        (metadata,) = (name for name in names if name.endswith("entry_points.txt"))
        assert "[vllm_omni." not in archive.read(metadata).decode(), "fa-tune must announce no plugin of vLLM-Omni"
    assert "fa_tuner/engines/vllm_omni/worker.py" in names
    assert {name.split("/")[0].partition("-")[0] for name in names} == {"fa_tuner", "fa_tuner_api", "fa_tune"}
    ours = {path.name for path in (source / "tests" / "omni" / "emulated_npu").rglob("*.py")} - {"__init__.py"}
    assert len(ours) > 3 and not ours & {Path(name).name for name in names}
    assert not any("emulated_npu" in name or "sitecustomize" in name for name in names)


@pytest.mark.parametrize("value", [None, "", "0", "true"])
def test_the_platform_is_inert_unless_it_is_asked_for(monkeypatch: pytest.MonkeyPatch, value: str | None) -> None:
    if value is None:
        monkeypatch.delenv(SWITCH)
    else:
        monkeypatch.setenv(SWITCH, value)
    (plugin,) = entry_points(group="vllm_omni.platform_plugins", name="fa_tune_emulated_npu")
    assert plugin.load() is activate and activate() is None


def test_the_platform_where_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SWITCH, "1")
    assert activate() == PLATFORM


@pytest.mark.parametrize(("value", "there"), [("0", False), ("1", True)])
def test_the_startup_hook_is_inert_unless_it_is_asked_for(value: str, there: bool) -> None:
    shown = "import sys; print(*(type(finder).__name__ for finder in sys.meta_path))"
    found = python("-c", shown, PYTHONPATH=str(STARTUP), **{SWITCH: value}).stdout.split()
    assert ("_BeforeTorchvision" in found) is there


@pytest.fixture
def a_device(monkeypatch: pytest.MonkeyPatch) -> types.SimpleNamespace:
    """A torch_npu and its `torch.npu`, as on a machine with an NPU."""
    import torch

    module, device = types.ModuleType("torch_npu"), types.SimpleNamespace(is_available=lambda: True)
    module.__spec__ = importlib.machinery.ModuleSpec("torch_npu", None)
    monkeypatch.setitem(sys.modules, "torch_npu", module)
    monkeypatch.setattr(torch, "npu", device, raising=False)
    return device


def test_the_platform_refuses_a_machine_with_an_npu(
    monkeypatch: pytest.MonkeyPatch, a_device: types.SimpleNamespace
) -> None:
    monkeypatch.setenv(SWITCH, "1")
    with pytest.raises(SystemExit, match="on a machine with a real NPU: unset it"):
        activate()
    a_device.is_available = lambda: False  # torch_npu alone is no device
    assert activate() == PLATFORM
    a_device.is_available = lambda: True
    monkeypatch.setenv(SWITCH, "0")
    assert activate() is None


ON_A_DEVICE = """
import importlib.machinery, sys, types, torch
npu = types.ModuleType("torch_npu")
npu.__spec__ = importlib.machinery.ModuleSpec("torch_npu", None)
npu.__getattr__ = lambda name: None  # diffusers imports an operator from it
sys.modules["torch_npu"] = npu
torch.npu = types.SimpleNamespace(is_available=lambda: {there})
from vllm_omni.platforms import current_omni_platform
print("chosen", type(current_omni_platform).__name__)
"""


@pytest.mark.parametrize("there", [True, False])
def test_vllm_omni_does_not_go_on_beside_a_device(there: bool) -> None:
    """It swallows exceptions of plugins; this one must not be."""
    done = python("-c", ON_A_DEVICE.format(there=there), check=False, PYTHONPATH=str(STARTUP))
    if there:
        assert done.returncode == 1 and "a machine with a real NPU" in done.stderr and "chosen" not in done.stdout
    else:
        assert done.returncode == 0 and "chosen EmulatedNPUPlatform" in done.stdout, done.stderr
