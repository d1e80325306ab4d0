"""Device profiles: published or measured figures from which a policy's latency is projected."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

from fa_tuner.documents import parse_yaml, read_yaml
from fa_tuner.domain.errors import DocumentError, NotFoundError, SelectorError, UsageError
from fa_tuner.domain.measurement import Latency
from fa_tuner.domain.policy import Grid, SkipPolicy
from fa_tuner.domain.selector import SkipSelector
from fa_tuner.domain.workload import Workload, fingerprint_of

DEFAULT_PROFILE = "ascend-pr2640"
_SHIPPED = files("fa_tuner.evaluate") / "profiles"
_WORKLOAD_KEYS = ("task", "height", "width", "frames", "steps")


@dataclass(frozen=True)
class DeviceProfile:
    """`dit_seconds` of denoising, `attention_seconds` of them in self-attention, and what the same attention
    takes by dtype. `workload` names the one workload to which the seconds belong. `layer_costs` is what a layer's
    attention takes relative to others', by layer index; 1 where none is given."""

    name: str
    source: str
    dit_seconds: float
    attention_seconds: float
    quantized_attention_seconds: Mapping[str, float]
    workload: Mapping[str, Any] = field(default_factory=dict)
    layer_costs: Mapping[int, float] = field(default_factory=dict)

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

    def costs(self, grid: Grid) -> tuple[float, ...] | None:
        """Of the grid's layers, in their order; None where all cost the same.

        Raises:
            UsageError: the profile is of a model with other layers.
        """
        if beyond := [layer for layer in self.layer_costs if layer >= grid.layer_bound]:
            raise UsageError(
                f"device profile {self.name} gives a cost for layer {max(beyond)}, and this model's last one is "
                f"{grid.layer_bound - 1}: it is a profile of another model; correct its layer_costs"
            )
        costs = tuple(self.layer_costs.get(layer, 1.0) for layer in grid.layers)
        return costs if len(set(costs)) > 1 else None

    def project(self, policy: SkipPolicy, grid: Grid, workload: Workload) -> Latency:
        """Denoising time relative to native: 1 - a.(1 - r).s with a the attention's share of denoising, r the
        ratio of quantized to native attention time, s the share of cells quantized, by their layers' costs."""
        relative = 1.0
        if not policy.is_native:
            self.check(policy.dtype)
            saved = self.attention_seconds - self.quantized_attention_seconds[policy.dtype]
            relative = 1.0 - saved / self.dit_seconds * policy.share(grid, self.costs(grid))
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

    known = {
        "name", "device", "source", "dit_seconds", "attention_seconds", "quantized_attention_seconds", "workload",
        "layer_costs",
    }  # fmt: skip
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
        layer_costs=_layer_costs(document.get("layer_costs"), where),
    )
    if profile.attention_seconds > profile.dit_seconds:
        raise DocumentError(f"device profile {where}: attention_seconds exceeds dit_seconds, of which it is a part")
    return profile


def _layer_costs(given: Any, where: str) -> dict[int, float]:
    """From ranges of layer indices to costs, such as {"0-18": 2.0, "19-56": 1.0}."""
    if given is None:
        return {}
    if not isinstance(given, Mapping) or not given:
        raise DocumentError(f'device profile {where}: layer_costs must map layers to costs, such as "0-18": 2.0')
    costs: dict[int, float] = {}
    for text, cost in given.items():
        if isinstance(cost, bool) or not isinstance(cost, int | float) or not (math.isfinite(cost) and cost > 0):
            raise DocumentError(
                f"device profile {where}: layer_costs of {str(text)[:40]} is {cost!r}; it must be a number above 0"
            )
        try:
            layers = SkipSelector.parse(str(text), what="layer")
        except SelectorError as error:
            raise DocumentError(f"device profile {where}: layer_costs: {error}") from None
        if not layers or (twice := [layer for layer in layers if layer in costs]):
            what = f"layer {twice[0]} has two costs" if layers else "a cost is given for no layer"
            raise DocumentError(f"device profile {where}: layer_costs: {what}; give each layer's once")
        costs.update(dict.fromkeys(layers, float(cost)))
    return costs
