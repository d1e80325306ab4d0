"""Where doctor looks: installed packages, the environment, CANN's folders, the devices. Nothing is imported."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.machinery import PathFinder
from importlib.metadata import Distribution, distributions
from importlib.util import find_spec
from pathlib import Path

from fa_tuner.engines.vllm_omni.npu import Devices, ask_devices

EMULATION = "FA_TUNE_EMULATE_NPU"  # switches the emulated platform of fa-tune's tests on
EMULATED_PLATFORM = "fa_tune_emulated_npu"
PLATFORM_PLUGINS = "vllm_omni.platform_plugins"


class Installed:
    """Distributions and packages below `roots`, or those of this interpreter."""

    def __init__(self, roots: Sequence[Path] | None = None) -> None:
        self._given = roots is not None
        self._path = sys.path if roots is None else [str(root) for root in roots]

    def distribution(self, *names: str) -> Distribution | None:
        """The first of several names that one thing is distributed under; remains without metadata do not count."""
        every = (found for name in names for found in distributions(name=name, path=self._path))
        return next((found for found in every if found.version), None)

    def version(self, *names: str) -> str | None:
        found = self.distribution(*names)
        return None if found is None else found.version

    def package(self, name: str) -> Path | None:
        """The folder of a top-level package, also of an editable one."""
        try:
            spec = PathFinder.find_spec(name, self._path) if self._given else find_spec(name)
        except (ImportError, ValueError):  # ValueError: a module put in place by hand, without a spec
            return None
        folders = None if spec is None else spec.submodule_search_locations
        return Path(next(iter(folders))) if folders else None

    def platform_plugins(self) -> list[tuple[str, str]]:
        """(name, distribution with version) of every vLLM-Omni platform that another package brings."""
        return sorted({
            (point.name, f"{one.name} {one.version}")
            for one in distributions(path=self._path) for point in one.entry_points if point.group == PLATFORM_PLUGINS
        })  # fmt: skip

    def unmet(self, name: str, *by: str) -> str | None:
        """The first demand on distribution `name`, of those named in `by`, that its version does not meet."""
        from packaging.requirements import InvalidRequirement, Requirement
        from packaging.utils import canonicalize_name

        version = self.version(name)
        for asking in filter(None, map(self.distribution, by)):
            for text in asking.requires or []:
                try:
                    demand = Requirement(text)
                except InvalidRequirement:  # somebody else's metadata
                    continue
                applies = demand.marker is None or demand.marker.evaluate({"extra": ""})
                if version is None or not applies or canonicalize_name(demand.name) != name:
                    continue
                if not demand.specifier.contains(version, prereleases=True):
                    return f"{asking.name} {asking.version} asks for {name}{demand.specifier}"
        return None


@dataclass(frozen=True)
class Machine:
    """This machine, unless other places are given."""

    installed: Installed = field(default_factory=Installed)
    environment: Mapping[str, str] = field(default_factory=lambda: os.environ)
    ascend: Path = Path("/usr/local/Ascend")
    nodes: Path = Path("/dev")
    ask_devices: Callable[[], Devices] = ask_devices

    @property
    def emulated(self) -> bool:
        """Whether vLLM-Omni would run on the emulated NPU of fa-tune's tests."""
        return self.environment.get(EMULATION) == "1" and EMULATED_PLATFORM in dict(self.installed.platform_plugins())
