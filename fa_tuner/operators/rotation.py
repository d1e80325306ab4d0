"""The fixed random rotation that spreads outliers of Q and K over the head dimension before they are quantized."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from fa_tuner.domain.errors import UsageError

SEED = 425500


@lru_cache(maxsize=32)
def rotation_matrix(head_dim: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """R = diag(signs) . H / sqrt(head_dim), as vLLM-Omni builds it; rows are rotated by `x @ R`.

    H is the Sylvester Hadamard matrix and the signs come from a CPU generator seeded with `SEED`, so that R is the
    same on every device, and the global random state is left alone. R is orthogonal up to the rounding of `dtype`.

    Returns:
        [head_dim, head_dim], cached and shared: not to be written to.

    Raises:
        UsageError: if head_dim is not a power of two, for H does not exist then.
    """
    if head_dim < 1 or head_dim & (head_dim - 1):
        raise UsageError(
            f"quantized attention: head_dim {head_dim} is not a power of two, which the rotation of query and key "
            "needs; keep this model's attention native"
        )
    # A matrix first asked for under inference mode must still serve ordinary calls later.
    with torch.inference_mode(False), torch.no_grad():
        generator = torch.Generator(device="cpu").manual_seed(SEED)
        signs = torch.randint(0, 2, (head_dim,), generator=generator, dtype=torch.int64, device="cpu") * 2 - 1
        rotation: Tensor = signs[:, None] * _hadamard(head_dim) / head_dim**0.5
        return rotation.to(device=device, dtype=dtype)


def _hadamard(order: int) -> Tensor:
    """Sylvester's matrix in float64: entry (i, j) is -1 to the number of ones in the bits of i & j."""
    matrix = torch.ones(1, 1, dtype=torch.float64, device="cpu")
    while matrix.shape[0] < order:
        matrix = torch.cat([torch.cat([matrix, matrix], dim=1), torch.cat([matrix, -matrix], dim=1)])
    return matrix
