"""The NPU and CANN, its runtime, as far as they can be told without using the device."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

_MARK = "fa-tune devices: "  # torch_npu prints what it likes before it
_PROBE = f"""
import json, torch, torch_npu
count = torch.npu.device_count() if torch.npu.is_available() else 0
print({_MARK!r} + json.dumps([torch.npu.get_device_name(index) for index in range(count)]), flush=True)
"""

# names that torch_npu reports, by generation; Ascend910_95.. are early names of the Ascend 950
_GENERATIONS = {
    "A5": re.compile(r"ascend ?(950|910_95)[\w-]*", re.IGNORECASE),
    "A3": re.compile(r"ascend ?910(_93|c)[\w-]*", re.IGNORECASE),
    "A2": re.compile(r"ascend ?910b[\w-]*", re.IGNORECASE),
    "310P": re.compile(r"ascend ?310p[\w-]*", re.IGNORECASE),
}


@dataclass(frozen=True)
class Devices:
    """Names as torch_npu reports them, or why there is no answer."""

    names: tuple[str, ...] = ()
    failure: str = ""
    timed_out: bool = False


def ask_devices(seconds: float = 60.0) -> Devices:
    """Ask torch_npu in a process of its own: importing it runs native code that may hang or abort."""
    try:
        done = subprocess.run(  # noqa: S603 - our own text
            [sys.executable, "-c", _PROBE], capture_output=True, text=True, timeout=seconds, check=False
        )
    except subprocess.TimeoutExpired:
        return Devices(failure=f"torch_npu gave no answer in {seconds:.0f} seconds; see `npu-smi info`", timed_out=True)
    for line in done.stdout.splitlines():
        if line.startswith(_MARK):
            return Devices(tuple(json.loads(line.removeprefix(_MARK))))
    said = done.stderr.strip().splitlines()
    reason = said[-1][:200] if said else f"exit code {done.returncode}"
    return Devices(failure=f"torch_npu fails: {reason}; check the driver, and source CANN's set_env.sh")


def generation(name: str) -> str | None:
    """A5, A3, A2 or 310P; None for a name that is not known."""
    return next((label for label, pattern in _GENERATIONS.items() if pattern.fullmatch(name.strip())), None)


def generation_in(text: str) -> str | None:
    """That of the first device that a text names, such as "2 x Ascend950PR"; None where it names none."""
    return next((label for label, pattern in _GENERATIONS.items() if pattern.search(text)), None)


def cann(environment: Mapping[str, str], ascend: Path) -> tuple[str, Path] | None:
    """CANN's version and the file it was read from, that of the active installation first."""
    active = [environment[name] for name in ("ASCEND_HOME_PATH", "ASCEND_TOOLKIT_HOME") if environment.get(name)]
    for home in [*map(Path, active), ascend / "ascend-toolkit" / "latest", ascend / "cann", ascend / "latest"]:
        for file in _version_files(home):
            if version := _version_in(file):
                return version, file
    return None


def _version_files(home: Path) -> Iterator[Path]:
    yield from sorted(home.glob("*-linux/ascend_toolkit_install.info"))
    yield home / "version.cfg"
    yield home / "compiler" / "version.info"
    yield home / "runtime" / "version.info"
    yield home / "version.info"


def _version_in(file: Path) -> str | None:
    """`version=8.5.0`, `version_dir=8.1.RC1` or `toolkit_running_version=[7.7.T20.0.B210:8.1.RC1]`.

    `Version=7.7.0.1.220` is the number of the one package and stands for CANN only where nothing else does.
    """
    try:
        pairs = re.findall(r"^\s*([\w-]+)\s*=\s*\[?([^\]\s]+)", file.read_text("utf-8", errors="replace"), re.MULTILINE)
    except OSError:
        return None
    values: dict[str, str] = {}
    for key, value in pairs:
        values.setdefault(key, value.rpartition(":")[2])
    wanted = ("version", "toolkit_running_version", "version_dir", "runtime_running_version", "Version")
    return next((values[key] for key in wanted if key in values), None)
