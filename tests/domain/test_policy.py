from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fa_tuner.domain.errors import SelectorError, UsageError
from fa_tuner.domain.policy import DTYPES, Grid, SkipPolicy, parse_dtypes
from fa_tuner.domain.selector import SkipSelector

GRID = Grid(6, (0, 1, 2, 3))


@st.composite
def policies(draw: st.DrawFn) -> SkipPolicy:
    steps = draw(st.sets(st.integers(0, GRID.steps - 1)))
    layers = draw(st.sets(st.sampled_from(GRID.layers)))
    return SkipPolicy(draw(st.sampled_from(DTYPES)), SkipSelector.of(steps), SkipSelector.of(layers))


def test_the_default_is_native() -> None:
    assert SkipPolicy().is_native
    assert SkipPolicy().key == "native"
    assert SkipPolicy().share(GRID) == 0.0
    assert not SkipPolicy().quantizes(0, 0)


@given(policies())
def test_the_quantized_cells_are_a_rectangle(policy: SkipPolicy) -> None:
    cells = {(s, n) for s in range(GRID.steps) for n in GRID.layers if policy.quantizes(s, n)}
    assert cells == {(s, n) for s in policy.quantized_steps(GRID) for n in policy.quantized_layers(GRID)}
    assert policy.share(GRID) == len(cells) / 24
    assert policy.on(GRID).is_native == (not cells)


@given(policies())
def test_layers_count_by_their_cost_where_they_have_one(policy: SkipPolicy) -> None:
    costs = (3.0, 1.0, 0.5, 0.5)
    spent = sum(costs[n] for s in range(GRID.steps) for n in GRID.layers if policy.quantizes(s, n))
    assert policy.share(GRID, costs) == pytest.approx(spent / (6 * 5.0))
    assert policy.share(GRID, (2.0,) * 4) == pytest.approx(policy.share(GRID))


def test_a_cost_for_each_layer_of_the_grid() -> None:
    with pytest.raises(ValueError, match="zip"):
        SkipPolicy("fp8").share(GRID, (1.0, 2.0))


@given(policies(), policies())
def test_keys_are_unique_among_canonical_policies(one: SkipPolicy, other: SkipPolicy) -> None:
    one, other = one.on(GRID), other.on(GRID)
    assert one.on(GRID) == one
    assert (one.key == other.key) == (one == other)


@given(policies())
def test_what_is_written_is_read_back(policy: SkipPolicy) -> None:
    text = f"{policy.skip_steps}/{policy.skip_layers}"
    assert SkipPolicy.parse(text, (policy.dtype,), GRID) == policy.on(GRID)


@pytest.mark.parametrize(
    ("text", "key"),
    [("/", "fp8:/"), ("0,1/0-2", "fp8:0,1/0-2"), ("/3", "fp8:/3"), ("0-5/", "native"), ("/0-3", "native")],
)
def test_parsed(text: str, key: str) -> None:
    assert SkipPolicy.parse(text, ("fp8",), GRID).key == key


@pytest.mark.parametrize("text", ["", "0,1", "native"])
def test_a_policy_without_its_slash_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match='no "/"'):
        SkipPolicy.parse(text, ("fp8",), GRID)


@pytest.mark.parametrize("text", ["6/", "/4", "0/1/2", "x/", "/-"])
def test_a_bad_selector_is_refused(text: str) -> None:
    with pytest.raises(SelectorError):
        SkipPolicy.parse(text, ("fp8",), GRID)


@pytest.mark.parametrize("dtype", ["", "FP8", "int4", "fp8 "])
def test_an_unknown_dtype_is_refused(dtype: str) -> None:
    with pytest.raises(UsageError, match="choose one of fp8, mxfp8, mxfp4"):
        SkipPolicy(dtype)


def test_only_eligible_layers_count() -> None:
    grid = Grid(2, (1, 5))
    policy = SkipPolicy.parse("0/5", ("fp8",), grid)
    assert grid.layer_bound == 6
    assert policy.quantized_layers(grid) == (1,)
    assert policy.share(grid) == 0.25


def test_it_says_what_it_is() -> None:
    assert str(SkipPolicy()) == "native"
    assert str(SkipPolicy.parse("0/", ("fp8",), GRID)) == 'fp8, skip steps "0", layers ""'
    assert str(GRID) == "6 steps x 4 layers"


@given(policies())
def test_a_key_is_read_back(policy: SkipPolicy) -> None:
    canonical = policy.on(GRID)
    if not canonical.is_native:
        assert SkipPolicy.parse(canonical.key, DTYPES, GRID) == canonical


@pytest.mark.parametrize(
    ("text", "said"),
    [("0/", 'of which dtype? write it as "fp8:0/"'), ("mxfp8:0/", "dtype 'mxfp8'; there is fp8, mxfp4")],
)
def test_of_several_dtypes_the_policy_says_which(text: str, said: str) -> None:
    with pytest.raises(UsageError, match=re.escape(said)):
        SkipPolicy.parse(text, ("fp8", "mxfp4"), GRID)


def test_dtypes_are_read_in_whatever_order() -> None:
    assert parse_dtypes("fp8") == ("fp8",)
    assert parse_dtypes("mxfp4, fp8") == parse_dtypes("fp8,mxfp4") == ("fp8", "mxfp4")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "''"),
        ("fp8,", "''"),
        ("native", "'native'"),
        ("fp8 mxfp4", "'fp8 mxfp4'"),
        ("fp8,mxfp8,fp8", "names one twice"),
    ],
)
def test_dtypes_that_are_none(text: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        parse_dtypes(text)
