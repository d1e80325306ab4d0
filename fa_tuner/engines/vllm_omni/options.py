"""What a user may set of vLLM-Omni, and what fa-tune has to set itself."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from fa_tuner.domain.errors import NotFoundError, UsageError

Switch = Literal["auto", "runtime", "restart"]

_CACHED = "cached steps run no block, so it cannot be proven which of them ran quantized; tune without, then add it"
_OURS = {
    "model": "give --model",
    "revision": "give --revision",
    "device": "vLLM-Omni takes the devices that it finds; choose them by ASCEND_RT_VISIBLE_DEVICES",
    "worker_extension_cls": "fa-tune counts attention calls there",
    "enable_diffusion_pipeline_profiler": "fa-tune takes the times from it",
    "diffusion_kv_cache_dtype": "give --dtype",
    "diffusion_kv_cache_skip_steps": "it is what is searched; give --try for a policy of your own",
    "diffusion_kv_cache_skip_layers": "it is what is searched; give --try for a policy of your own",
    "kv_cache_dtype": "give --dtype",
    "flow_shift": "give --flow-shift",
    "boundary_ratio": "give --boundary-ratio",
    "stage_configs_path": "give --deploy-config",
    "output_type": "fa-tune compares frames",
}


@dataclass(frozen=True)
class EngineOptions:
    """Options of engine `vllm-omni`.

    `omni` goes to `Omni(...)` as it is. `policy_switch` says how policies are put in force: on the loaded engine, or
    by starting it anew for each; "auto" restarts only where the version leaves no other way. `hang_seconds` is the
    longest time without a denoising step, `start_seconds` that for loading; `prefix_cache_mb` is host memory, a rank,
    for kept prefixes of the denoising, 0 keeps none. `as_deployed` starts the engine with the policy that the deploy
    configuration names, instead of the native one.
    """

    omni: Mapping[str, Any] = field(default_factory=dict)
    image: Path | None = None
    policy_switch: Switch = "auto"
    prefix_cache_mb: int = 4096
    hang_seconds: float = 900.0
    start_seconds: float = 3600.0
    as_deployed: bool = False

    @classmethod
    def parse(cls, options: Mapping[str, Any]) -> EngineOptions:
        """Values may be text, as the command line gives them: JSON where it reads as JSON, else the text itself.

        Raises:
            UsageError: an option that fa-tune sets itself, that cannot be tuned under, or a value out of its bounds.
            NotFoundError: a file that does not exist.
        """
        given = {name: _value(value) for name, value in options.items()}
        for name in given:
            if name in _OURS:
                raise UsageError(f"engine option {name!r} is set by fa-tune: {_OURS[name]}")
        own: dict[str, Any] = {}
        if "image" in given:
            own["image"] = Path(str(given.pop("image")))
        if "policy_switch" in given:
            own["policy_switch"] = given.pop("policy_switch")
            if own["policy_switch"] not in get_args(Switch):
                raise UsageError(f"policy_switch is {own['policy_switch']!r}; choose {', '.join(get_args(Switch))}")
        for name, least in (("prefix_cache_mb", 0), ("hang_seconds", 1), ("start_seconds", 1)):
            if name in given:
                own[name] = given.pop(name)
                if type(own[name]) not in (int, float) or not least <= own[name] <= 10**7:
                    raise UsageError(f"engine option {name} is {own[name]!r}; it must be a number from {least} on")
        own["as_deployed"] = bool(given.pop("as_deployed", False))
        if own["as_deployed"] and "deploy_config" not in given:
            raise UsageError("as_deployed needs a deploy configuration; give --deploy-config FILE")
        if own["as_deployed"] and (other := given.keys() & {"stage_overrides", "strategy_config"}):
            raise UsageError(f"{min(other)} would replace what the deploy configuration says; leave it out")
        if "deploy_config" in given and not Path(str(given["deploy_config"])).is_file():
            raise NotFoundError(f"deploy configuration {given['deploy_config']} does not exist")
        for lora in lora_paths(given.get("lora_path")):
            if not Path(lora).exists():
                raise NotFoundError(f"LoRA {lora[:200]} does not exist; a hub's has to be downloaded, for its digest")
        refuse_what_cannot_be_tuned(given)
        return cls(given, **own)


def refuse_what_cannot_be_tuned(config: Mapping[str, Any]) -> None:
    """Look at options, or at the configuration that vLLM-Omni made of them and of a deploy file.

    Raises:
        UsageError: with the reason.
    """
    if (cache := config.get("cache_backend")) not in (None, "", "none"):
        raise UsageError(f"step cache {cache} (cache_backend): {_CACHED}")
    if (batch := config.get("max_num_seqs")) not in (None, 1):
        raise UsageError(f"max_num_seqs is {batch}: a policy is measured on one request at a time; leave it at 1")
    if config.get("step_execution"):
        raise UsageError("step_execution runs each step as a request of its own, which fa-tune cannot count; leave it")
    for name in ("pipeline_parallel_size", "data_parallel_size"):
        if (ranks := config.get(name)) not in (None, 1):
            raise UsageError(f"{name} is {ranks}: ranks would hold different layers or requests; take ulysses_degree")
    if (ring := config.get("ring_degree")) not in (None, 1):
        raise UsageError(f"ring_degree is {ring}: vLLM-Omni's quantized attention takes no ring; use ulysses_degree")


def lora_paths(value: Any) -> list[str]:
    """vLLM-Omni takes one path or a list of them."""
    return [value] if isinstance(value, str) else [str(path) for path in value or ()]


def _value(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    lowered = value.strip().lower()
    try:
        return json.loads(lowered if lowered in ("true", "false", "null") else value)
    except (ValueError, RecursionError):
        return value
