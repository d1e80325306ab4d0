"""Device profiles: published or measured figures from which a policy's latency is projected."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

from fa_tuner.documents import parse_yaml, read_yaml
from fa_tuner.domain.errors import DocumentError, NotFoundError, UsageError
from fa_tuner.domain.measurement import Latency
from fa_tuner.domain.policy import Grid, SkipPolicy
from fa_tuner.domain.workload import Workload, fingerprint_of

DEFAULT_PROFILE = "ascend-pr2640"
_SHIPPED = files("fa_tuner.evaluate") / "profiles"
_WORKLOAD_KEYS = ("task", "height", "width", "frames", "steps")


@dataclass(frozen=True)
class DeviceProfile:
    """`dit_seconds` of denoising, `attention_seconds` of them in self-attention, and what the same attention
    takes by dtype. `workload` names the one workload to which the seconds belong."""

    name: str
    source: str
    dit_seconds: float
    attention_seconds: float
    quantized_attention_seconds: Mapping[str, float]
    workload: Mapping[str, Any] = field(default_factory=dict)

    def check(self, dtype: str) -> None:
        """
        Raises:
            UsageError: the profile says nothing of this dtype.
        """
        if dtype not in self.quantized_attention_seconds:
            known = ", ".join(self.quantized_attention_seconds)
            raise UsageError(
                f"device profile {self.name} has no figure for {dtype} (it has {known}); "
                "give --device-profile FILE with one that was measured"
            )

    def project(self, policy: SkipPolicy, grid: Grid, workload: Workload) -> Latency:
        """Denoising time relative to native: 1 - a.(1 - r).s with a the attention's share of denoising, r the
        ratio of quantized to native attention time, s the share of cells quantized. It assumes that every cell
        costs the same."""
        relative = 1.0
        if not policy.is_native:
            self.check(policy.dtype)
            saved = self.attention_seconds - self.quantized_attention_seconds[policy.dtype]
            relative = 1.0 - saved / self.dit_seconds * policy.share(grid)
        seconds = relative * self.dit_seconds if self._is_for(workload) else None
        return Latency(relative, "projected", seconds, detail=f"device profile {self.name}, {self.source}")

    def _is_for(self, workload: Workload) -> bool:
        return bool(self.workload) and (
            all(getattr(workload, key) == self.workload.get(key) for key in _WORKLOAD_KEYS)
            and str(self.workload.get("model_contains", "")) in workload.model
        )


def shipped_profiles() -> list[str]:
    return sorted(entry.name.removesuffix(".yaml") for entry in _SHIPPED.iterdir() if entry.name.endswith(".yaml"))


def load_profile(name_or_path: str) -> DeviceProfile:
    """A shipped profile by name, or a user's own by path.

    Raises:
        NotFoundError: neither.
        DocumentError: a file that is no profile.
    """
    if name_or_path in shipped_profiles():
        text = (_SHIPPED / f"{name_or_path}.yaml").read_text(encoding="utf-8")
        return _read(parse_yaml(text, "device profile", name_or_path), name_or_path)
    path = Path(name_or_path)
    try:
        found = path.is_file()
    except OSError:  # a name too long for a path
        found = False
    if not found:
        raise NotFoundError(
            f"device profile {name_or_path[:200]} is no file and none of those shipped "
            f"({', '.join(shipped_profiles())})"
        )
    document = read_yaml(path, "device profile")
    profile = _read(document, name_or_path)
    if profile.name in shipped_profiles():
        raise DocumentError(
            f"device profile {name_or_path} has the name of a shipped one, {profile.name}; choose another"
        )
    # figures of two versions of a file must not meet in one front
    return replace(profile, name=f"{profile.name}@{fingerprint_of(document)[:8]}")


def _read(document: Mapping[str, Any], where: str) -> DeviceProfile:
    def seconds(value: Any, key: str) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float) or not (math.isfinite(value) and value > 0):
            raise DocumentError(f"device profile {where}: {key} is {value!r}; it must be a number of seconds above 0")
        return float(value)

    known = {"name", "device", "source", "dit_seconds", "attention_seconds", "quantized_attention_seconds", "workload"}
    if unknown := set(document) - known:
        raise DocumentError(
            f"device profile {where}: unknown key {min(unknown, key=str)!r}; known are {', '.join(sorted(known))}"
        )
    for key in ("name", "source", "dit_seconds", "attention_seconds", "quantized_attention_seconds"):
        if key not in document:
            raise DocumentError(f"device profile {where} lacks {key!r}")
    quantized = document["quantized_attention_seconds"]
    if not isinstance(quantized, Mapping) or not quantized:
        raise DocumentError(f"device profile {where}: quantized_attention_seconds must map dtypes to seconds")
    workload = document.get("workload") or {}
    if not isinstance(workload, Mapping) or (odd := set(workload) - {*_WORKLOAD_KEYS, "model_contains"}):
        what = f"has the unknown key {min(odd, key=str)!r}" if isinstance(workload, Mapping) else "is no mapping"
        raise DocumentError(
            f"device profile {where}: workload {what}; it takes {', '.join(_WORKLOAD_KEYS)} and model_contains"
        )
    profile = DeviceProfile(
        name=str(document["name"]),
        source=str(document["source"]),
        dit_seconds=seconds(document["dit_seconds"], "dit_seconds"),
        attention_seconds=seconds(document["attention_seconds"], "attention_seconds"),
        quantized_attention_seconds={
            str(k): seconds(v, f"quantized_attention_seconds.{k}") for k, v in quantized.items()
        },
        workload=dict(workload),
    )
    if profile.attention_seconds > profile.dit_seconds:
        raise DocumentError(f"device profile {where}: attention_seconds exceeds dit_seconds, of which it is a part")
    return profile
