"""The operator once more, from its formulas: numpy, float64, a loop over blocks, tables of representable values.

Shares nothing with fa_tuner.operators but the signs' generator, which is part of the definition.
"""

import math
from collections.abc import Callable, Iterator

import numpy as np
import torch

E2M1_VALUES = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], dtype=np.float64)
E4M3_VALUES = np.array(
    [m / 8 * 2.0**-6 for m in range(8)]
    + [(1 + m / 8) * 2.0 ** (e - 7) for e in range(1, 16) for m in range(8) if (e, m) != (15, 7)],  # that one is NaN
    dtype=np.float64,
)


def nearest(values: np.ndarray, table: np.ndarray) -> np.ndarray:
    """The nearest of `table`, which is in the order of the codes; of two equally near the one with the even code."""
    magnitude = np.abs(values.astype(np.float64))
    above = np.minimum(np.searchsorted(table, magnitude), len(table) - 1)
    below = np.maximum(above - 1, 0)
    up, down = np.abs(table[above] - magnitude), np.abs(magnitude - table[below])
    code = np.where((up < down) | ((up == down) & (above % 2 == 0)), above, below)
    return np.copysign(table[code], values)


def blocks(shape: tuple[int, ...], rows: int, columns: int) -> Iterator[tuple[int | slice, ...]]:
    batch, sequence, heads, head_dim = shape
    for b in range(batch):
        for h in range(heads):
            for row in range(0, sequence, rows):
                for column in range(0, head_dim, columns):
                    yield b, slice(row, row + rows), h, slice(column, column + columns)


def fp8(x: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """Scale, quotient and product are float32 here too: the definition has a float32 scale."""
    out = np.empty(x.shape, np.float32)
    for block in blocks(x.shape, rows, columns):
        part = x[block].astype(np.float32)
        scale = max(np.float32(np.abs(part).max()) / np.float32(448), np.float32(2.0**-126))
        out[block] = nearest(part / scale, E4M3_VALUES).astype(np.float32) * scale
    return out


def mx(x: np.ndarray, table: np.ndarray, emax: int, rows: int, columns: int) -> np.ndarray:
    out = np.empty(x.shape, np.float64)
    for block in blocks(x.shape, rows, columns):
        part = x[block].astype(np.float64)
        mantissa, exponent = math.frexp(np.abs(part).max())  # amax = mantissa * 2**exponent, mantissa in [0.5, 1)
        shared = min(max(exponent - 1 - emax, -127), 127) if mantissa else -127
        out[block] = np.ldexp(nearest(np.ldexp(part, -shared), table), shared)
    return out


def mxfp8(x: np.ndarray, rows: int, columns: int) -> np.ndarray:
    return mx(x, E4M3_VALUES, 8, rows, columns)


def mxfp4(x: np.ndarray, rows: int, columns: int) -> np.ndarray:
    return mx(x, E2M1_VALUES, 2, rows, columns)


Quantizer = Callable[[np.ndarray], np.ndarray]

RECIPES: dict[str, tuple[Quantizer, Quantizer, Quantizer]] = {
    "fp8": (lambda q: fp8(q, 128, 128), lambda k: fp8(k, 256, 128), lambda v: fp8(v, 256, 128)),
    "mxfp8": (lambda q: mxfp8(q, 1, 32), lambda k: mxfp8(k, 1, 32), lambda v: mxfp8(v, 32, 1)),
    "mxfp4": (lambda q: mxfp4(q, 1, 32), lambda k: mxfp4(k, 1, 32), lambda v: mxfp4(v, 32, 1)),
}


def hadamard(order: int) -> np.ndarray:
    if order == 1:
        return np.ones((1, 1))
    half = hadamard(order // 2)
    return np.block([[half, half], [half, -half]])


def rotation(head_dim: int) -> np.ndarray:
    generator = torch.Generator("cpu")
    generator.manual_seed(425500)
    signs = torch.randint(0, 2, (head_dim,), generator=generator, dtype=torch.int64) * 2 - 1
    return np.diag(signs.numpy().astype(np.float64)) @ hadamard(head_dim) / math.sqrt(head_dim)


def rounded(x: np.ndarray, dtype: torch.dtype) -> np.ndarray:
    return torch.from_numpy(x).to(dtype).double().numpy()


def attention(q: np.ndarray, k: np.ndarray, v: np.ndarray, scale: float) -> np.ndarray:
    logits = np.einsum("bqhd,bkhd->bhqk", q, k) * scale
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    return np.einsum("bhqk,bkhd->bqhd", weights, v)


def quantized_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, dtype: str, scale: float | None = None
) -> np.ndarray:
    q, k, v = (tensor.double().numpy() for tensor in (query, key, value))
    matrix = rounded(rotation(q.shape[-1]), query.dtype)
    q, k = rounded(q @ matrix, query.dtype), rounded(k @ matrix, query.dtype)
    q, k, v = (quantize(x) for quantize, x in zip(RECIPES[dtype], (q, k, v), strict=True))
    return attention(
        q.astype(np.float64), k.astype(np.float64), v.astype(np.float64), scale or 1 / math.sqrt(q.shape[-1])
    )
