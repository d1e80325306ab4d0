import math

import numpy as np
import operator_reference as reference
import pytest
import torch
from torch import Tensor

from fa_tuner.domain.errors import UsageError
from fa_tuner.domain.policy import DTYPES
from fa_tuner.operators.attention import quantized_attention

every_dtype = pytest.mark.parametrize("dtype", DTYPES)


def inputs(query_length: int, key_length: int, head_dim: int, heads: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(query_length * 1000 + key_length)
    lengths = (query_length, key_length, key_length)
    query, key, value = (torch.randn(2, length, heads, head_dim, generator=generator) for length in lengths)
    return query * 2, key, value


def whole(x: Tensor) -> Tensor:
    """Few-bit integers: rotated by 1/8 * (+-1) they stay exact in any order of summation, so that both formulations
    quantize the very same values and differ in nothing but the attention's own rounding."""
    return torch.round(x * 4)


def relative_error(ours: Tensor, expected: np.ndarray) -> float:
    return float(np.linalg.norm(ours.double().numpy() - expected) / np.linalg.norm(expected))


@every_dtype
@pytest.mark.parametrize(
    ("query_length", "key_length"), [(1, 1), (31, 31), (127, 257), (129, 1), (257, 257), (300, 33)]
)
def test_equals_the_formula_where_the_rotation_is_exact(dtype: str, query_length: int, key_length: int) -> None:
    query, key, value = inputs(query_length, key_length, 64)
    query, key = whole(query), whole(key)
    ours = quantized_attention(query, key, value, dtype, scale=0.02)
    expected = reference.quantized_attention(query, key, value, dtype, scale=0.02)
    np.testing.assert_allclose(ours.numpy(), expected, rtol=1e-5, atol=1e-5)


@every_dtype
@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize(("query_length", "key_length"), [(31, 127), (129, 129), (257, 31)])
def test_is_close_to_the_formula_on_any_values(dtype: str, head_dim: int, query_length: int, key_length: int) -> None:
    """The last bit of the rotation may move a value that lies on a rounding boundary by one step: rare, and small
    beside the error of quantization itself, which the tolerance has to tell apart."""
    query, key, value = inputs(query_length, key_length, head_dim)
    ours = quantized_attention(query, key, value, dtype)
    expected = reference.quantized_attention(query, key, value, dtype)
    native = reference.attention(*(x.double().numpy() for x in (query, key, value)), scale=1 / math.sqrt(head_dim))
    tolerance = 4e-3 if dtype == "mxfp4" else 5e-4
    assert relative_error(ours, expected) < tolerance
    assert relative_error(ours, native) > 20 * tolerance


@every_dtype
@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_half_precision_rotates_in_its_own_dtype_and_returns_it(dtype: str, half: torch.dtype) -> None:
    query, key, value = (x.to(half) for x in inputs(129, 70, 64))
    query, key = whole(query), whole(key)
    ours = quantized_attention(query, key, value, dtype, scale=0.02)
    assert ours.dtype == half
    expected = reference.quantized_attention(query, key, value, dtype, scale=0.02)
    np.testing.assert_allclose(ours.double().numpy(), expected, rtol=torch.finfo(half).eps / 2 * 1.01, atol=1e-5)


def test_two_bits_less_make_about_four_times_the_error() -> None:
    query, key, value = inputs(256, 256, 64)
    native = reference.attention(*(x.double().numpy() for x in (query, key, value)), scale=1 / 8)
    error = {dtype: relative_error(quantized_attention(query, key, value, dtype), native) for dtype in DTYPES}
    assert 3 < error["mxfp4"] / error["mxfp8"] < 6
    assert error["fp8"] < error["mxfp8"] < 0.1


@every_dtype
def test_degenerate_inputs_stay_finite(dtype: str) -> None:
    ones = torch.ones(1, 40, 2, 64)
    for query, key, value in [(0 * ones,) * 3, (ones * 1e-42,) * 3, (ones, ones, ones * 1e30), (ones * 1e4,) * 3]:
        ours = quantized_attention(query, key, value, dtype)
        assert ours.isfinite().all()
        expected = reference.quantized_attention(query, key, value, dtype)
        np.testing.assert_allclose(ours.numpy(), expected, rtol=1e-5, atol=1e-44)


@every_dtype
def test_default_scale_layout_and_inputs_kept(dtype: str) -> None:
    query, key, value = inputs(33, 65, 64)
    copies = query.clone(), key.clone(), value.clone()
    ours = quantized_attention(query, key, value, dtype)
    assert ours.shape == query.shape
    assert torch.equal(ours, quantized_attention(query, key, value, dtype, scale=1 / 8))
    for tensor, copy in zip((query, key, value), copies, strict=True):
        assert torch.equal(tensor, copy)
    heads_first = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in (query, key, value)]
    torch.testing.assert_close(quantized_attention(*heads_first, dtype), ours, rtol=1e-6, atol=1e-6)


@every_dtype
def test_batch_entries_and_heads_do_not_touch_each_other(dtype: str) -> None:
    query, key, value = inputs(65, 65, 64, heads=3)
    alone = quantized_attention(query[1:, :, 2:], key[1:, :, 2:], value[1:, :, 2:], dtype)
    together = quantized_attention(query, key * torch.tensor([1e3, 1e3, 1.0])[:, None], value, dtype)
    torch.testing.assert_close(together[1:, :, 2:], alone, rtol=1e-4, atol=1e-5)  # a neighbour a thousand times larger


def test_works_under_inference_mode_and_carries_no_gradient() -> None:
    query, key, value = inputs(5, 5, 64)
    with torch.inference_mode():
        inside = quantized_attention(query, key, value, "fp8")
    outside = quantized_attention(query.requires_grad_(), key, value, "fp8")
    assert not outside.requires_grad
    assert torch.equal(inside, outside)


ONES = torch.ones(2, 5, 3, 64)


@pytest.mark.parametrize(
    ("query", "key", "value", "message"),
    [
        (torch.ones(1, 5, 3, 96),) * 3 + ("head_dim 96 is not a power of two",),
        (ONES[0], ONES, ONES, r"query \[5, 3, 64\].*pass non-empty \[batch, sequence, heads, head_dim\]"),
        (ONES, ONES[:, :0], ONES[:, :0], r"key \[2, 0, 3, 64\].*non-empty"),
        (ONES, ONES, ONES[:, :4], r"value \[2, 4, 3, 64\] do not fit; only the sequence length"),
        (ONES, ONES[:1], ONES[:1], "do not fit"),
        (ONES, ONES[:, :, :1], ONES[:, :, :1], "do not fit"),
        (ONES, ONES[..., :32], ONES[..., :32], "do not fit"),
        (ONES.half(), ONES, ONES, "inputs are torch.float16, torch.float32; cast all three"),
        (ONES.int(), ONES.int(), ONES.int(), "inputs are torch.int32; cast"),
    ],
)
def test_refuses_inputs_that_do_not_fit(query: Tensor, key: Tensor, value: Tensor, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        quantized_attention(query, key, value, "fp8")


@pytest.mark.parametrize("dtype", ["native", "int8", ""])
def test_refuses_an_unknown_dtype(dtype: str) -> None:
    with pytest.raises(UsageError, match=f"dtype '{dtype}' is unknown; choose one of fp8, mxfp8, mxfp4"):
        quantized_attention(ONES, ONES, ONES, dtype)
