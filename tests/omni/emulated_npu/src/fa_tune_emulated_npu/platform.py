"""The platform class; imported by vLLM-Omni only once `activate` named it."""

from __future__ import annotations

import os
import resource
from typing import Any

import psutil
import torch
from vllm.platforms.cpu import CpuPlatform
from vllm_omni.platforms.interface import OmniPlatform, OmniPlatformEnum

from fa_tune_emulated_npu import faults, mindiesd

FAULTS = "FA_TUNE_EMULATE_NPU_FAULTS"  # names of `faults.py`, comma-separated: what to break on purpose


def _faults() -> set[str]:
    return set(filter(None, os.environ.get(FAULTS, "").split(",")))


class EmulatedNPUPlatform(OmniPlatform, CpuPlatform):
    """A CPU that goes by an NPU's name where vLLM-Omni asks which dtypes and which YAML overlay apply."""

    _omni_enum = OmniPlatformEnum.OOT  # claiming NPU would make vLLM-Omni import vllm_ascend
    device_type = "cpu"
    device_name = "npu"
    dist_backend = "gloo"
    emulates = "npu"

    def __init__(self) -> None:
        if "no-mindiesd" not in _faults():
            mindiesd.install(without=("quant_attention",) if "no-quant-attention" in _faults() else ())

    @classmethod
    def get_diffusion_attn_backend_cls(
        cls, selected_backend: str | None, head_size: int, allow_trtllm_default: bool = False
    ) -> str:
        from vllm_omni.diffusion.attention.backends import abstract
        from vllm_omni.diffusion.attention.backends.registry import DiffusionAttentionBackendEnum as Backend

        abstract.current_omni_platform = _NpuForDispatch()
        for name in _faults() - {"no-quant-attention"}:
            faults.BREAK[name]()
        if _faults() & {"sdpa", "no-mindiesd"}:
            return Backend.TORCH_SDPA.get_path()
        return Backend[(selected_backend or "FLASH_ATTN").upper()].get_path()

    @classmethod
    def supports_torch_inductor(cls) -> bool:
        return False

    @classmethod
    def is_available(cls) -> bool:
        return True

    @classmethod
    def get_torch_device(cls, local_rank: int | None = None) -> torch.device:
        return torch.device("cpu")

    @classmethod
    def get_device_count(cls) -> int:
        return 1

    @classmethod
    def get_device_version(cls) -> str | None:
        return None

    @classmethod
    def set_device(cls, device: torch.device) -> None: ...

    @classmethod
    def synchronize(cls) -> None: ...

    @classmethod
    def empty_cache(cls) -> None: ...

    @classmethod
    def reset_peak_memory_stats(cls, device: Any = None) -> None: ...

    @classmethod
    def max_memory_allocated(cls, device: Any = None) -> int:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

    max_memory_reserved = max_memory_allocated

    @classmethod
    def get_current_memory_usage(cls, device: Any = None) -> float:
        return float(psutil.Process().memory_info().rss)

    @classmethod
    def get_free_memory(cls, device: torch.device | None = None) -> int:
        return int(psutil.virtual_memory().available)

    @classmethod
    def get_device_memory(cls, device: torch.device | None = None) -> tuple[int, int]:
        memory = psutil.virtual_memory()
        return int(memory.available), int(memory.total)

    @classmethod
    def get_device_total_memory(cls, device_id: int = 0) -> int:
        return int(psutil.virtual_memory().total)


class _NpuForDispatch:
    """Answers the attention backends' question which forward to run; everything else is the platform's."""

    def __getattr__(self, name: str) -> Any:
        return getattr(EmulatedNPUPlatform, name)

    def is_npu(self) -> bool:
        return True

    def is_cuda(self) -> bool:
        return False

    def is_rocm(self) -> bool:
        return False

    def is_xpu(self) -> bool:
        return False

    def is_musa(self) -> bool:
        return False
