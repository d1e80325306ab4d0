"""Attention as the NPU's quantized operator computes it, for engines that have no such operator."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from fa_tuner.domain.errors import UsageError
from fa_tuner.domain.policy import DTYPES
from fa_tuner.operators.quantize import E2M1, E4M3, Block, Element, through_fp8, through_mx
from fa_tuner.operators.rotation import rotation_matrix


class _Recipe(NamedTuple):
    """What each input goes through: [batch, sequence, heads, head_dim] -> the same shape in float32."""

    query: Callable[[Tensor], Tensor]
    key: Callable[[Tensor], Tensor]
    value: Callable[[Tensor], Tensor]


def _mx_recipe(element: Element) -> _Recipe:
    along_head_dim = partial(through_mx, element=element, block=Block(rows=1, columns=32))
    along_sequence = partial(through_mx, element=element, block=Block(rows=32, columns=1))
    return _Recipe(along_head_dim, along_head_dim, along_sequence)


_RECIPES = {
    "fp8": _Recipe(
        query=partial(through_fp8, block=Block(rows=128, columns=128)),
        key=partial(through_fp8, block=Block(rows=256, columns=128)),
        value=partial(through_fp8, block=Block(rows=256, columns=128)),
    ),
    "mxfp8": _mx_recipe(E4M3),
    "mxfp4": _mx_recipe(E2M1),
}


@torch.no_grad()
def quantized_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    dtype: str,
    scale: float | None = None,
    rotations: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """Dense, non-causal attention on inputs quantized to `dtype` and back, as vLLM-Omni and MindIE-SD run it on an NPU.

    Query and key are rotated in the query's own dtype (known for mxfp8 and mxfp4, taken to be the same for fp8), so a
    bfloat16 model's rotated values are rounded to bfloat16 before they are quantized. The attention itself runs in
    float32. The softmax output stays in high precision: whether the device quantizes it, too, is not known. Nor is
    the padding of the sequence to 512 imitated that the device's mxfp4 does. No gradients flow.

    Args:
        query: [batch, sequence, heads, head_dim] (BSND).
        key, value: [batch, another sequence, heads, head_dim], of the query's dtype and device.
        dtype: "fp8", "mxfp8" or "mxfp4".
        scale: factor on the logits; 1 / sqrt(head_dim) if None.
        rotations: [head_dim, head_dim] for the query and for the key; `rotation_matrix` for both if None.

    Returns:
        [batch, sequence, heads, head_dim] in the query's dtype.

    Raises:
        UsageError: unknown dtype, shapes or dtypes that do not fit, or a head_dim that is no power of two.
    """
    if dtype not in _RECIPES:
        raise UsageError(f"quantized attention: dtype {dtype!r} is unknown; choose one of {', '.join(DTYPES)}")
    _check_inputs(query, key, value)
    recipe = _RECIPES[dtype]
    query_rotation, key_rotation = rotations or (rotation_matrix(query.shape[3], query.dtype, query.device),) * 2
    output = scaled_dot_product_attention(
        recipe.query(query @ query_rotation).transpose(1, 2),
        recipe.key(key @ key_rotation).transpose(1, 2),
        recipe.value(value).transpose(1, 2),
        scale=scale,
    )
    return output.transpose(1, 2).to(query.dtype)


def _check_inputs(query: Tensor, key: Tensor, value: Tensor) -> None:
    shapes = f"query {_shown(query)}, key {_shown(key)}, value {_shown(value)}"
    if query.dim() != 4 or key.dim() != 4 or not (query.numel() and key.numel()):
        raise UsageError(f"quantized attention: {shapes}; pass non-empty [batch, sequence, heads, head_dim] tensors")
    if key.shape != value.shape or query.shape[0] != key.shape[0] or query.shape[2:] != key.shape[2:]:
        raise UsageError(
            f"quantized attention: {shapes} do not fit; only the sequence length of the query may differ, "
            "and the layout is [batch, sequence, heads, head_dim]"
        )
    dtypes = {tensor.dtype for tensor in (query, key, value)}
    if len(dtypes) > 1 or not query.dtype.is_floating_point:
        named = ", ".join(sorted(str(dtype) for dtype in dtypes))
        raise UsageError(f"quantized attention: inputs are {named}; cast all three to one floating-point dtype")


def _shown(tensor: Tensor) -> str:
    return str(list(tensor.shape))
