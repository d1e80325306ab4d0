"""Stands for what fa-tune's worker extension touches of vLLM-Omni: attention layers, a pipeline, its platform.

As in vllm-omni 0.30, reduced to what matters there; the real ones are in tests/omni.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import astuple, dataclass, field
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from fa_tuner.domain.selector import SkipSelector
from fa_tuner.engines.base import Shadow
from fa_tuner.engines.vllm_omni.worker import PolicyExtension

CONTEXT = SimpleNamespace(denoise_step_idx=None, available=True)
PLATFORM = SimpleNamespace(
    device_name="npu", device_type="cpu", emulates="npu", is_npu=lambda: False, synchronize=lambda: None
)


class Kernel:
    """The implementation of backend FLASH_ATTN on an NPU. `fault`: "ignores" the dtype, or its quantized kernel
    "raises" and it falls back."""

    supported = ("fp8", "mxfp8", "mxfp4")

    def __init__(self, fault: str = "") -> None:
        self.fault = fault

    def supports_kv_cache_dtype(self, dtype: str, platform: str) -> bool:
        return platform == "npu" and dtype in self.supported

    def forward(self, value: torch.Tensor, metadata: Any) -> torch.Tensor:
        dtype = metadata.extra.get("kv_cache_dtype") if metadata is not None else None
        if dtype in (None, "float") or self.fault == "ignores":
            return value
        try:
            return self.forward_fa_quant_npu(value, dtype)
        except RuntimeError:
            return value

    def forward_fa_quant_npu(self, value: torch.Tensor, dtype: str) -> torch.Tensor:
        if self.fault == "raises":
            raise RuntimeError("no such kernel")
        return value * 1.03125


class Attention(nn.Module):
    def __init__(
        self, layer_idx: int | None, role: str = "self", disable: bool = False, backend: str | None = "FLASH_ATTN",
        fault: str = "",
    ) -> None:  # fmt: skip
        super().__init__()
        self.layer_idx, self.role, self._disable_kv_quant = layer_idx, role, disable
        self.attn_backend = SimpleNamespace(get_name=lambda: backend) if backend else None
        self.attention, self.head_size, self.causal = Kernel(fault), 64, False
        self._kv_cache_dtype: str | None = None
        self._kv_cache_skip_steps: set[int] | None = None
        self._kv_cache_skip_layers: set[int] | None = None

    def _init_kv_cache_quantization(self, config: Any) -> None:
        if config.diffusion_kv_cache_dtype == "int8":
            raise ValueError("Attention backend FLASH_ATTN does not support kv_cache_dtype='int8' on npu.")
        self._kv_cache_dtype = config.diffusion_kv_cache_dtype
        self._kv_cache_skip_steps = config.diffusion_kv_cache_skip_step_indices
        self._kv_cache_skip_layers = config.diffusion_kv_cache_skip_layer_indices

    def forward(self, value: torch.Tensor) -> torch.Tensor:
        dtype = self._kv_cache_dtype
        if dtype is not None and (
            self._disable_kv_quant
            or CONTEXT.denoise_step_idx in (self._kv_cache_skip_steps or ())
            or self.layer_idx in (self._kv_cache_skip_layers or ())
        ):
            dtype = "float"
        metadata = None if dtype is None else SimpleNamespace(extra={"kv_cache_dtype": dtype})
        return self._run_local_attention(value, value, value, metadata)

    def _run_local_attention(self, query: Any, key: Any, value: torch.Tensor, metadata: Any) -> torch.Tensor:
        return self.attention.forward(value, metadata)


class Scheduler:
    """Multistep: what it does depends on the step before, as UniPC does."""

    def __init__(self, steps: int = 4) -> None:
        self.history: list[torch.Tensor] = []
        self.sigmas = torch.linspace(1, 0, steps + 1).square()

    def step(self, noise: torch.Tensor, latents: torch.Tensor) -> torch.Tensor:
        before = self.history[-1] if self.history else torch.zeros_like(noise)
        self.history = [*self.history[-1:], noise]
        return latents - 0.3 * noise + 0.1 * before


class Transformer(nn.Module):
    def __init__(self, *attention: Attention) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(attention)
        self.config = SimpleNamespace(patch_size=(1, 2, 2))

    def forward(self, value: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            value = torch.tanh(block(value)) * 1.5
        return value


class Pipeline(nn.Module):
    """`publishes`: whether it says which step it is at."""

    publishes = True
    vae_scale_factor_spatial, vae_scale_factor_temporal, _flow_shift = 8, 4, 3.0

    def __init__(self, *attention: Attention) -> None:
        super().__init__()
        self.transformer = Transformer(
            *(attention or (Attention(0), Attention(1), Attention(0, role="cross", disable=True)))
        )
        self.scheduler = Scheduler()

    def generate(self, seed: int, steps: int = 4) -> torch.Tensor:
        self.scheduler = Scheduler(steps)
        latents = torch.randn(8, generator=torch.Generator().manual_seed(seed))
        return self.diffuse(latents, timesteps=torch.linspace(1, 0.1, steps))

    def diffuse(self, latents: torch.Tensor, timesteps: torch.Tensor, guidance: float = 5.0) -> torch.Tensor:
        for index, t in enumerate(timesteps):
            self.record_denoise_step(index if self.publishes else None, t)
            noise = self.predict_noise_maybe_with_cfg(latents * t)
            latents = self.scheduler_step_maybe_with_cfg(noise, t, latents, False)
        return latents

    def predict_noise_maybe_with_cfg(self, value: torch.Tensor) -> torch.Tensor:
        return self.transformer(value)

    def record_denoise_step(self, step_idx: int | None, timestep: Any = None) -> None:
        CONTEXT.denoise_step_idx = step_idx

    def scheduler_step_maybe_with_cfg(self, noise: Any, t: Any, latents: Any, guided: bool) -> torch.Tensor:
        return self.scheduler.step(noise, latents)


@dataclass
class Parallel:
    world_size: int = 1
    ring_degree: int = 1


@dataclass
class Config:
    dtype: torch.dtype = torch.bfloat16
    parallel_config: Parallel = field(default_factory=Parallel)
    diffusion_kv_cache_dtype: str | None = None
    diffusion_kv_cache_skip_steps: str | None = None
    diffusion_kv_cache_skip_layers: str | None = None
    diffusion_kv_cache_skip_step_indices: set[int] | None = None
    diffusion_kv_cache_skip_layer_indices: set[int] | None = None


def parse_kv_cache_skip_selector(text: str | None) -> set[int] | None:
    return set(SkipSelector.parse(text)) if text else None


@contextmanager
def installed() -> Iterator[None]:
    """As modules of a package `vllm_omni`, until it ends."""
    contents: dict[str, dict[str, Any]] = {
        "attention.layer": {"Attention": Attention},
        "forward_context": {
            "get_forward_context": lambda: CONTEXT, "is_forward_context_available": lambda: CONTEXT.available,
        },
        "data": {"parse_kv_cache_skip_selector": parse_kv_cache_skip_selector},
    }  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CONTEXT, "denoise_step_idx", None)
        patch.setattr(CONTEXT, "available", True)
        for name in ("", ".diffusion", ".diffusion.attention"):
            patch.setitem(sys.modules, f"vllm_omni{name}", ModuleType(f"vllm_omni{name}"))
        for name, values in {
            **{f"diffusion.{k}": v for k, v in contents.items()},
            "platforms": {"current_omni_platform": PLATFORM},
        }.items():
            module = ModuleType(f"vllm_omni.{name}")
            vars(module).update(values)
            patch.setitem(sys.modules, f"vllm_omni.{name}", module)
        yield


class Worker(PolicyExtension):
    """A vLLM-Omni worker with the extension installed on a pipeline."""

    def __init__(self, pipeline: Any, config: Config | None = None, prefix_cache_mb: float = 64) -> None:
        self.pipeline, self.config = pipeline, config or Config()
        self.model_runner = SimpleNamespace(od_config=self.config, pipeline=pipeline)
        (self.found,) = self.fa_tune_install(prefix_cache_mb)  # type: ignore[arg-type]

    def run(
        self, policy: tuple[str, str, str] | None = None, rows: tuple[str, ...] = ("native",) * 4, prefix: str = "none",
        seed: int = 0, act: Callable[[], Any] | None = None, shadows: Sequence[Shadow] = (),
    ) -> tuple[torch.Tensor, dict[str, Any]]:  # fmt: skip
        """One generation as the host makes it: the latents, and the report with calls and shadows as mappings."""
        self.fa_tune_begin(policy, f"{seed}:a cat", rows, prefix, [astuple(shadow) for shadow in shadows])
        latents = self.pipeline.generate(seed, len(rows)) if act is None else act()
        (report,) = self.fa_tune_report()
        for name in ("calls", "reused_calls"):
            report[name] = {tuple(cell): count for *cell, count in report[name]}
        report["shadows"] = {Shadow(step, tuple(layers), kind): v for step, layers, kind, v in report["shadows"]}
        return latents, report
