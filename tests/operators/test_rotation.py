import numpy as np
import operator_reference as reference
import pytest
import torch

from fa_tuner.domain.errors import UsageError
from fa_tuner.operators.rotation import rotation_matrix

CPU = torch.device("cpu")


@pytest.mark.parametrize("head_dim", [1, 2, 64, 128, 256])
def test_is_the_signed_sylvester_matrix(head_dim: int) -> None:
    expected = reference.rotation(head_dim)
    np.testing.assert_array_equal(rotation_matrix(head_dim, torch.float64, CPU).numpy(), expected)
    np.testing.assert_array_equal(rotation_matrix(head_dim, torch.float32, CPU).numpy(), expected.astype(np.float32))


def test_signs_are_the_ones_of_the_seed() -> None:
    """Frozen: another stream of random numbers would silently be another operator."""
    first_column = rotation_matrix(16, torch.float64, CPU)[:, 0] * 4
    assert "".join("+" if sign > 0 else "-" for sign in first_column) == "+++--+-++--++---"


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-14), (torch.float32, 1e-6), (torch.bfloat16, 4e-3)]
)
def test_is_orthogonal(dtype: torch.dtype, tolerance: float) -> None:
    matrix = rotation_matrix(128, dtype, CPU).double()
    torch.testing.assert_close(matrix @ matrix.T, torch.eye(128, dtype=torch.float64), rtol=0, atol=tolerance)


def test_leaves_the_global_random_state_alone_and_does_not_depend_on_it() -> None:
    first = rotation_matrix.__wrapped__(32, torch.float32, CPU)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    second = rotation_matrix.__wrapped__(32, torch.float32, CPU)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first, second)


def test_one_built_under_inference_mode_serves_training_too() -> None:
    rotation_matrix.cache_clear()
    with torch.inference_mode():
        matrix = rotation_matrix(8, torch.float32, CPU)
    x = torch.ones(1, 8, requires_grad=True)
    (x @ matrix).sum().backward()
    assert rotation_matrix(8, torch.float32, CPU) is matrix


@pytest.mark.parametrize("head_dim", [0, 3, 96, 192])
def test_refuses_what_is_no_power_of_two(head_dim: int) -> None:
    with pytest.raises(UsageError, match=rf"head_dim {head_dim} is not a power of two.*keep .* native"):
        rotation_matrix(head_dim, torch.float32, CPU)
