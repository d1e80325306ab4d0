"""Ways in which vLLM-Omni could run something else than was asked for, without saying so: each provoked on purpose."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from typing import Any


def no_support() -> None:
    """The backend declares no quantized dtype for this platform."""
    from vllm_omni.diffusion.attention.backends.flash_attn import FlashAttentionImpl

    FlashAttentionImpl._supported_kv_cache_dtypes = {}


def sdpa() -> None:
    """A backend that declares the dtypes and ignores them."""
    from vllm_omni.diffusion.attention.backends.sdpa import SDPAImpl

    SDPAImpl._supported_kv_cache_dtypes = {"npu": {"fp8", "mxfp8", "mxfp4"}}


def ignores_dtype() -> None:
    """The right backend, which enters its native kernel whatever it was asked for."""
    from vllm_omni.diffusion.attention.backends.flash_attn import FlashAttentionImpl

    FlashAttentionImpl.forward_npu = FlashAttentionImpl.forward_fa_npu


def no_step_index() -> None:
    """A pipeline that publishes no denoising step."""
    from vllm_omni.diffusion import forward_context

    forward_context.set_forward_context_denoise_step_idx = lambda step_idx: None


def no_layer_index() -> None:
    """Attention layers whose prefix names no block."""
    from vllm_omni.diffusion.attention import layer

    layer._try_extract_layer_index = lambda prefix: None


def opted_out() -> None:
    """Every layer opts out of quantization."""
    from vllm_omni.diffusion.attention.layer import Attention

    def opt_out(self: Any, config: Any) -> None:
        self._kv_cache_dtype, self._disable_kv_quant = None, True

    Attention._init_kv_cache_quantization = opt_out


def ignores_skip_steps() -> None:
    """Selectors are taken and half of them forgotten, as up to 0.28 where no step index is published."""
    from vllm_omni.diffusion.attention.layer import Attention

    def should_apply(self: Any) -> bool:
        return self.layer_idx not in (self._kv_cache_skip_layers or ())

    Attention._should_apply_kv_cache_quant = should_apply


def _at_quantized_call(act: Callable[[], None]) -> None:
    from fa_tune_emulated_npu import mindiesd

    if not hasattr(mindiesd.quant_attention, "broken"):
        original = mindiesd.quant_attention

        def broken(*args: Any, **kwargs: Any) -> Any:
            if _once():
                act()
            return original(*args, **kwargs)

        broken.broken = True  # type: ignore[attr-defined]
        broken.__name__ = "quant_attention"
        mindiesd.quant_attention = broken
        mindiesd.install()


def _once() -> bool:
    """Whether this fault is still due: it strikes once for each line in the file that counts it down."""
    from pathlib import Path

    path = Path(os.environ["FA_TUNE_EMULATE_NPU_STRIKES"])
    strikes = int(path.read_text())
    path.write_text(str(max(0, strikes - 1)))
    return strikes > 0


def raises() -> None:
    """The kernel raises, as an operator that the device has not."""

    def act() -> None:
        raise RuntimeError("EZ9999: inner error of the operator")

    _at_quantized_call(act)


def dies() -> None:
    """The process is killed, as by the system when memory runs out."""
    _at_quantized_call(lambda: os.kill(os.getpid(), signal.SIGKILL))


def hangs() -> None:
    """The kernel never returns."""
    _at_quantized_call(lambda: time.sleep(3600))


BREAK: dict[str, Callable[[], None]] = {
    "no-support": no_support, "sdpa": sdpa, "no-mindiesd": lambda: None, "ignores-dtype": ignores_dtype,
    "no-step-index": no_step_index, "no-layer-index": no_layer_index, "opted-out": opted_out,
    "ignores-skip-steps": ignores_skip_steps, "raises": raises, "dies": dies, "hangs": hangs,
}  # fmt: skip
