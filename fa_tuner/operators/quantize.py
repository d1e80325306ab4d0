"""Block quantization: what is left of a tensor once it went through fp8, mxfp8 or mxfp4 and came back.

Tensors are [batch, sequence, heads, head_dim] of any floating dtype. The arithmetic is float32, and the functions
return float32: the dequantized values, which half precision cannot always hold. A block that holds a NaN or an
infinity comes back as NaN as a whole, so that a broken input is never hidden by the clamp.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

_EXPONENT_BITS = 0x7F800000
_SMALLEST_NORMAL = 2.0**-126
_SMALLEST_E8M0 = 2.0**-127


class Element(NamedTuple):
    """A small floating-point format: below 2**`least_exponent` its values are evenly spaced (subnormal)."""

    mantissa_bits: int
    least_exponent: int
    greatest_exponent: int
    maximum: float


E4M3 = Element(mantissa_bits=3, least_exponent=-6, greatest_exponent=8, maximum=448.0)
E2M1 = Element(mantissa_bits=1, least_exponent=0, greatest_exponent=2, maximum=6.0)


class Block(NamedTuple):
    """The values of one batch entry and head that share a scale: `rows` along the sequence, `columns` along
    head_dim. The last block is smaller where these do not divide the shape."""

    rows: int
    columns: int


def through_fp8(values: Tensor, block: Block) -> Tensor:
    """Quantize to e4m3 with one float32 scale a block, amax / 448, and dequantize, as MindIE-SD does on an NPU.

    The scale is at least the smallest normal float32, so that a block of zeros or denormals divides by no zero.
    """
    blocks = _in_blocks(values.float(), block)
    scale = (_amax(blocks) / E4M3.maximum).clamp_min_(_SMALLEST_NORMAL)
    return _out_of_blocks(_round_(blocks / scale, E4M3).mul_(scale), values)


def through_mx(values: Tensor, element: Element, block: Block) -> Tensor:
    """Quantize to `element` with one power-of-two scale a block, and dequantize (OCP Microscaling Formats 1.0, 6.3).

    The exponent of the scale is floor(log2 amax) - greatest_exponent of the element, at least -127, the least that
    E8M0 holds; its greatest, 127, is out of float32's reach. What lies above the element's maximum saturates.
    """
    blocks = _in_blocks(values.float(), block)
    scale = _power_of_two(_amax(blocks)).mul_(2.0**-element.greatest_exponent).clamp_min_(_SMALLEST_E8M0)
    return _out_of_blocks(_round_(blocks / scale, element).mul_(scale), values)


def _in_blocks(values: Tensor, block: Block) -> Tensor:
    """[batch, row blocks, rows, heads, column blocks, columns], zero-padded, which changes no amax."""
    batch, sequence, heads, head_dim = values.shape
    rows, columns = min(block.rows, sequence), min(block.columns, head_dim)
    if sequence % rows or head_dim % columns:
        values = pad(values, (0, -head_dim % columns, 0, 0, 0, -sequence % rows))
    return values.reshape(batch, -1, rows, heads, values.shape[3] // columns, columns)


def _out_of_blocks(blocks: Tensor, like: Tensor) -> Tensor:
    _, sequence, _, head_dim = like.shape
    return blocks.flatten(4, 5).flatten(1, 2)[:, :sequence, :, :head_dim]


def _amax(blocks: Tensor) -> Tensor:
    return blocks.abs().amax(dim=(2, 5), keepdim=True)


def _power_of_two(values: Tensor) -> Tensor:
    """2**floor(log2 |value|) of float32 values, 0 for denormals: the exponent bits alone, exact where log2 rounds and
    many times faster than frexp and ldexp. Infinity and NaN become infinity."""
    return (values.view(torch.int32) & _EXPONENT_BITS).view(torch.float32)


def _round_(values: Tensor, element: Element) -> Tensor:
    """Round float32 values in place to the nearest of `element`, ties to even, saturating.

    Not by a cast: torch has none to e2m1, and some devices have none to e4m3. A sum with 1.5 * 2**23 steps has no bits
    left below one step, so the float32 adder itself rounds to nearest even.
    """
    values.clamp_(-element.maximum, element.maximum)
    magic = _power_of_two(values).clamp_min_(2.0**element.least_exponent).mul_(1.5 * 2 ** (23 - element.mantissa_bits))
    return values.add_(magic).sub_(magic)
