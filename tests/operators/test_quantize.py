from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np
import operator_reference as reference
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fa_tuner.operators.quantize import E2M1, E4M3, Block, through_fp8, through_mx

SEQUENCES = [1, 31, 32, 127, 128, 129, 257, 300]


class Case(NamedTuple):
    """One use of a quantizer, ours beside the formula."""

    ours: Callable[[Tensor], Tensor]
    formula: Callable[[np.ndarray], np.ndarray]


def case(dtype: str, rows: int, columns: int) -> Case:
    block = Block(rows, columns)
    if dtype == "fp8":
        return Case(partial(through_fp8, block=block), partial(reference.fp8, rows=rows, columns=columns))
    element = {"mxfp8": E4M3, "mxfp4": E2M1}[dtype]
    formula = {"mxfp8": reference.mxfp8, "mxfp4": reference.mxfp4}[dtype]
    return Case(partial(through_mx, element=element, block=block), partial(formula, rows=rows, columns=columns))


CASES = {
    "fp8 query": case("fp8", 128, 128),
    "fp8 key and value": case("fp8", 256, 128),
    "mxfp8 query and key": case("mxfp8", 1, 32),
    "mxfp8 value": case("mxfp8", 32, 1),
    "mxfp4 query and key": case("mxfp4", 1, 32),
    "mxfp4 value": case("mxfp4", 32, 1),
}
MX_CASES = {name: use for name, use in CASES.items() if name.startswith("mx")}

every_case = pytest.mark.parametrize("use", CASES.values(), ids=CASES.keys())
every_mx_case = pytest.mark.parametrize("use", MX_CASES.values(), ids=MX_CASES.keys())


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def assert_same_bits(ours: Tensor, expected: np.ndarray) -> None:
    assert ours.dtype == torch.float32
    np.testing.assert_array_equal(ours.double().numpy(), expected.astype(np.float64))


def with_outlier(x: Tensor) -> Tensor:
    x = x * 1e-3
    x[0, 0, 0, 0] = 777.0
    return x


ADVERSARIAL: dict[str, Callable[[Tensor], Tensor]] = {
    "zeros": torch.zeros_like,
    "negative zeros": lambda x: -torch.zeros_like(x),
    "constant": lambda x: torch.full_like(x, 0.3),
    "one outlier": with_outlier,
    "one value in zeros": lambda x: torch.zeros_like(x).index_fill_(1, torch.tensor([x.shape[1] - 1]), -5.0),
    "denormals": lambda x: x * 2.0**-140,
    "around the least normal": lambda x: x * 2.0**-126,
    "around the least scale of e4m3": lambda x: x * 2.0**-119,
    "smallest denormal": lambda x: torch.full_like(x, 2.0**-149),
    "1e4": lambda x: x * 1e4,
    "1e30": lambda x: x * 1e30,
    "largest": lambda x: torch.copysign(torch.full_like(x, torch.finfo(torch.float32).max), x),
    "powers of two": lambda x: torch.exp2(torch.round(x * 20)).copysign(x),
    "just below powers of two": lambda x: torch.nextafter(torch.exp2(torch.round(x * 2)), torch.tensor(0.0)),
    "many magnitudes": lambda x: x * torch.exp2(randn(*x.shape, seed=1) * 15),
    "halves, so ties": lambda x: torch.round(x * 16) / 4,
}


@every_case
@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize("sequence", SEQUENCES)
def test_equals_the_formula_at_every_length(use: Case, sequence: int, head_dim: int) -> None:
    x = randn(2, sequence, 3, head_dim) * torch.tensor([1.0, 0.01, 30.0])[:, None]
    assert_same_bits(use.ours(x), use.formula(x.numpy()))


@every_case
@pytest.mark.parametrize("make", ADVERSARIAL.values(), ids=ADVERSARIAL.keys())
def test_equals_the_formula_on_adversarial_values(use: Case, make: Callable[[Tensor], Tensor]) -> None:
    x = make(randn(1, 129, 2, 64))
    ours = use.ours(x)
    assert ours.isfinite().all()
    assert_same_bits(ours, use.formula(x.numpy()))


@every_case
def test_head_dims_that_blocks_do_not_divide(use: Case) -> None:
    for head_dim in (8, 80, 192):
        x = randn(1, 40, 2, head_dim)
        assert_same_bits(use.ours(x), use.formula(x.numpy()))


@every_case
def test_half_precision_is_quantized_as_its_float32_value(use: Case) -> None:
    for dtype in (torch.bfloat16, torch.float16):
        x = randn(1, 33, 2, 64).to(dtype)
        assert_same_bits(use.ours(x), use.formula(x.float().numpy()))


@every_case
def test_memory_layout_does_not_matter_and_the_input_is_not_touched(use: Case) -> None:
    heads_first = randn(2, 3, 70, 64)
    kept = heads_first.clone()
    assert torch.equal(use.ours(heads_first.transpose(1, 2)), use.ours(heads_first.transpose(1, 2).contiguous()))
    assert torch.equal(heads_first, kept)


@every_case
@pytest.mark.parametrize("poison", [float("nan"), float("inf"), float("-inf")])
def test_a_block_with_a_broken_value_is_nan_as_a_whole_and_only_it(use: Case, poison: float) -> None:
    x = randn(2, 300, 2, 128)
    broken = x.clone()
    broken[1, 290, 0, 127] = poison
    ours, clean = use.ours(broken), use.ours(x)
    lost = ours.isnan()
    assert lost[1, 290, 0, 127]
    assert not lost[0].any()
    assert not lost[1, :, 1].any()
    assert torch.equal(ours[~lost], clean[~lost])
    assert lost.sum() in (44 * 128, 172 * 128, 32, 12)  # 300 - 256, 300 - 128, one group, the rest of the last group


@pytest.mark.parametrize(("element", "table"), [(E4M3, reference.E4M3_VALUES), (E2M1, reference.E2M1_VALUES)])
def test_every_value_midpoint_and_neighbour_rounds_to_nearest_even(element: object, table: np.ndarray) -> None:
    middles = ((table[1:] + table[:-1]) / 2).astype(np.float32)
    points = np.concatenate(
        [
            table.astype(np.float32),
            middles,
            np.nextafter(middles, np.float32(0)),
            np.nextafter(middles, np.float32(1e9)),
        ]
    )
    points = np.concatenate([points, -points])
    # Beside its greatest value in the block, the scale is 1 and each point is rounded as it stands.
    x = np.stack([np.full_like(points, table[-1]), points], axis=-1)[None, :, None, :]
    ours = through_mx(torch.from_numpy(x), element, Block(1, 32))[0, :, 0, 1]
    np.testing.assert_array_equal(ours.numpy(), reference.nearest(points, table))


def test_e4m3_rounds_as_torch_casts() -> None:
    x = (randn(1, 1000, 1, 32) * torch.exp2(randn(1, 1000, 1, 32, seed=2) * 4)).clamp(-448, 448)
    x[..., 0] = 448.0
    assert torch.equal(through_mx(x, E4M3, Block(1, 32)), x.to(torch.float8_e4m3fn).float())


def test_mx_saturates_above_the_greatest_value() -> None:
    x = torch.tensor([7.99, -7.99, 6.5, 1.0]).reshape(1, 1, 1, 4)
    assert through_mx(x, E2M1, Block(1, 32)).flatten().tolist() == [6.0, -6.0, 6.0, 1.0]
    x = torch.tensor([511.0, -480.0, 448.0, 1.0]).reshape(1, 1, 1, 4)
    assert through_mx(x, E4M3, Block(1, 32)).flatten().tolist() == [448.0, -448.0, 448.0, 1.0]


FINITE = st.floats(width=32, allow_nan=False, allow_infinity=False)
NARROW = st.floats(width=32, min_value=-1e4, max_value=1e4)
VECTORS = st.lists(FINITE, min_size=1, max_size=40) | st.lists(NARROW, min_size=1, max_size=40)


def as_row(values: list[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float32).reshape(1, 1, 1, -1)


def as_column(values: list[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float32).reshape(1, -1, 1, 1)


@every_case
@settings(deadline=None, max_examples=50)
@given(values=VECTORS)
def test_equals_the_formula_on_any_values(use: Case, values: list[float]) -> None:
    for x in (as_row(values), as_column(values)):
        assert_same_bits(use.ours(x), use.formula(x.numpy()))


@every_mx_case
@settings(deadline=None, max_examples=50)
@given(values=VECTORS)
def test_mx_is_idempotent(use: Case, values: list[float]) -> None:
    """Always: the greatest value keeps its binary exponent, so the scale is found again."""
    for x in (as_row(values), as_column(values)):
        once = use.ours(x)
        assert torch.equal(use.ours(once), once)


@settings(deadline=None, max_examples=50)
@given(values=st.lists(NARROW, min_size=1, max_size=40))
def test_fp8_is_idempotent_up_to_the_rounding_of_its_scale(values: list[float]) -> None:
    """Not to the bit: 448 * scale / 448 can be off by the last bit of float32."""
    once = through_fp8(as_row(values), Block(128, 128))
    torch.testing.assert_close(through_fp8(once, Block(128, 128)), once, rtol=2.0**-21, atol=2.0**-130)


@every_case
@settings(deadline=None, max_examples=50)
@given(values=VECTORS)
def test_is_odd(use: Case, values: list[float]) -> None:
    x = as_row(values)
    assert torch.equal(use.ours(-x), -use.ours(x))


@every_mx_case
@settings(deadline=None, max_examples=50)
@given(
    values=st.lists(st.floats(width=32, min_value=-1e4, max_value=1e4), min_size=1, max_size=40),
    power=st.integers(-40, 40),
)
def test_mx_commutes_with_powers_of_two(use: Case, values: list[float], power: int) -> None:
    x = as_row([value if abs(value) > 1e-6 else 0.0 for value in values])  # far from the least scale
    assert torch.equal(use.ours(x * 2.0**power), use.ours(x) * 2.0**power)


@settings(deadline=None, max_examples=50)
@given(values=st.lists(NARROW, min_size=1, max_size=32))
def test_error_is_within_half_a_step(values: list[float]) -> None:
    """e4m3 keeps four significant bits: half a step is 1/16 of a value, or of the least normal value, amax/448/64."""
    x = as_row(values)
    bound = (x.abs() / 16).clamp_min(x.abs().max() / 448 / 64 / 16 + 2.0**-126) * (1 + 1e-5)
    assert ((through_fp8(x, Block(128, 128)) - x).abs() <= bound).all()
