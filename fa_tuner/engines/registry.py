"""Engines by name, found through the entry-point group `fa_tuner.engines`."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import entry_points
from importlib.util import find_spec
from typing import Any

from fa_tuner.domain.errors import EngineError, UsageError
from fa_tuner.domain.workload import Workload
from fa_tuner.engines.base import Engine

GROUP = "fa_tuner.engines"


def engine_names() -> list[str]:
    return sorted(entry_points(group=GROUP).names)


def default_engine() -> str:
    """`vllm-omni` where it is installed and an NPU answers, else `diffusers`."""
    if find_spec("vllm_omni") is None or find_spec("torch_npu") is None:
        return "diffusers"
    from fa_tuner.engines.vllm_omni.npu import ask_devices

    return "vllm-omni" if ask_devices().names else "diffusers"


def engine_class(name: str) -> type[Engine]:
    """
    Raises:
        UsageError: no engine of that name is installed.
        EngineError: it is installed but cannot be imported.
    """
    found = entry_points(group=GROUP, name=name)
    if not found:
        raise UsageError(f"engine {name!r} is unknown; installed are {', '.join(engine_names())}")
    try:
        loaded = next(iter(found)).load()
    except ImportError as error:
        raise EngineError(
            f"engine {name!r} cannot be imported: {error}; `fa-tune doctor` says what it needs"
        ) from error
    if not (isinstance(loaded, type) and issubclass(loaded, Engine)):
        raise EngineError(f"entry point {name!r} of group {GROUP} is not an Engine")
    return loaded


def open_engine(name: str, workload: Workload, options: Mapping[str, Any]) -> Engine:
    """Load `workload.model` in the named engine; see `Engine.open` for what it raises."""
    chosen = engine_class(name)
    if reason := chosen.unavailable_because():
        raise EngineError(f"engine {name!r} cannot run here: {reason}")
    return chosen.open(workload, options)
