"""What is loaded on a rank, as plain values; runs inside vLLM-Omni's worker."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from enum import Enum
from typing import Any

from fa_tuner.domain.policy import DTYPES

_EXPERTS = ("transformer", "transformer_2")


def inventory(config: Any, pipeline: Any, eligible: Sequence[Any], attention: Sequence[Any]) -> dict[str, Any]:
    """
    Args:
        config: the worker's OmniDiffusionConfig.
        eligible: the attention modules that may run quantized, of all those in `attention`.
    """
    from vllm_omni.platforms import current_omni_platform as platform

    experts = [x for x in (getattr(pipeline, name, None) for name in _EXPERTS) if x is not None]
    key, parallel = str(platform.device_name), config.parallel_config
    return {
        "pipeline": type(pipeline).__name__,
        "eligible": len(eligible),
        "layers": sorted({m.layer_idx for m in eligible if m.layer_idx is not None}),
        "without_layer": sum(m.layer_idx is None for m in eligible),
        "backends": sorted({m.attn_backend.get_name() for m in eligible}),
        "head_dims": sorted({size for m in eligible if (size := getattr(m, "head_size", None))}),  # from 0.28 on
        "causal": any(m.causal for m in eligible),
        "depths": [len(expert.blocks) for expert in experts],
        "dtypes": [
            dtype
            for dtype in DTYPES
            if eligible and all(m.attention.supports_kv_cache_dtype(dtype, key) for m in eligible)
        ],
        "platform": key,
        "is_npu": bool(platform.is_npu()),
        "emulates": getattr(platform, "emulates", ""),
        "device": _device_name(platform),
        "cann": _cann_version() if platform.is_npu() else "",
        **_mindiesd(),
        "needs_quant_attention": any(hasattr(m.attention, "_load_quant_runtime") for m in eligible),
        "torch_dtype": str(config.dtype).removeprefix("torch."),
        "world_size": parallel.world_size,
        "scheduler": type(getattr(pipeline, "scheduler", None)).__name__,
        "flow_shift": getattr(pipeline, "_flow_shift", None),
        "spatial": getattr(pipeline, "vae_scale_factor_spatial", None),
        "temporal": getattr(pipeline, "vae_scale_factor_temporal", None),
        "patch_size": list(getattr(getattr(experts[0], "config", None), "patch_size", ()) or ()) if experts else [],
        "variables": {
            name: value for name, value in sorted(os.environ.items()) if name.startswith(("MINDIE_", "DIFFUSION_"))
        },
        "switchable": all(hasattr(m, "_init_kv_cache_quantization") for m in attention),
        **_configuration(config, parallel),
    }


def _configuration(*parts: Any) -> dict[str, Any]:
    """vLLM-Omni's effective configuration: `config` by field name, and `changed`, the fields that were set."""
    config: dict[str, Any] = {}
    changed: list[str] = []
    for part in parts:
        for known in dataclasses.fields(part):
            config[known.name] = value = _plain(getattr(part, known.name, None))
            if known.default is not dataclasses.MISSING:
                unchanged = value == _plain(known.default)
            elif known.default_factory is not dataclasses.MISSING:
                unchanged = value == _plain(known.default_factory())
            else:
                unchanged = False
            if not unchanged:
                changed.append(known.name)
    return {"config": config, "changed": changed}


def _plain(value: Any) -> Any:
    """A value for JSON, the same in every process; an object by its class and what it holds of such values."""
    value = getattr(value, "value", value) if isinstance(value, Enum) else value
    if value is None or isinstance(value, str | int | float | bool):
        return value
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, set | frozenset):
        return sorted(map(_plain, value), key=str)
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    held = {
        k: v for k, v in getattr(value, "__dict__", {}).items() if v is None or isinstance(v, str | int | float | bool)
    }
    return str(value) if not held and " at 0x" not in str(value) else {"class": type(value).__name__, **held}


def _device_name(platform: Any) -> str:
    import torch

    if platform.is_npu():
        return str(torch.npu.get_device_name())  # type: ignore[attr-defined]
    return str(platform.device_type)


def _cann_version() -> str:
    import torch_npu

    return str(getattr(torch_npu.version, "cann", "") or "")


def _mindiesd() -> dict[str, bool]:
    try:
        import mindiesd
    except ImportError:
        return {"mindiesd": False, "quant_attention": False}
    return {"mindiesd": True, "quant_attention": hasattr(mindiesd, "quant_attention")}
