"""The part of MindIE-SD that vLLM-Omni 0.30's NPU attention calls, in plain torch."""

from __future__ import annotations

import importlib.machinery
import sys
import types

from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from fa_tuner.operators.attention import quantized_attention


def quant_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    precision: str,
    layout: str,
    scale: float,
    q_rot: Tensor,
    k_rot: Tensor,
) -> Tensor:
    """[batch, sequence, heads, head dim] in layout BSND, quantized to `precision` after the caller's rotation."""
    if layout != "BSND":
        raise NotImplementedError(f"layout {layout}; vLLM-Omni passes BSND")
    return quantized_attention(query, key, value, precision, scale, rotations=(q_rot, k_rot))


def attention_forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    opt_mode: str = "manual",
    op_type: str = "fused_attn_score",
    layout: str = "BSND",
    scale: float | None = None,
) -> Tensor:
    """Native attention, BSND."""
    del opt_mode, op_type
    if layout != "BSND":
        raise NotImplementedError(f"layout {layout}; vLLM-Omni passes BSND")
    query, key, value = (x.transpose(1, 2) for x in (query, key, value))
    return scaled_dot_product_attention(query, key, value, attn_mask=attn_mask, scale=scale).transpose(1, 2)


def install(without: tuple[str, ...] = ()) -> None:
    """Put a module `mindiesd` in place, `without` some of its functions to provoke what happens then."""
    module = types.ModuleType("mindiesd", "Emulated by fa_tune_emulated_npu.")
    module.__spec__ = importlib.machinery.ModuleSpec("mindiesd", None)
    for function in (quant_attention, attention_forward):
        if function.__name__ not in without:
            setattr(module, function.__name__, function)
    sys.modules["mindiesd"] = module
