"""Policies as binary parameters and back."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fa_tuner.domain.policy import Grid, SkipPolicy
from fa_tuner.domain.selector import SkipSelector
from fa_tuner.search.space import names, policy_count, random_policy, to_params, to_policy
from tests.support.tables import every_policy

grids = st.builds(
    Grid, st.integers(1, 12), st.sets(st.integers(0, 60), min_size=1, max_size=12).map(lambda s: tuple(sorted(s)))
)


@st.composite
def policies(draw: st.DrawFn) -> tuple[Grid, SkipPolicy]:
    grid = draw(grids)
    steps = draw(st.sets(st.integers(0, grid.steps - 1)))
    layers = draw(st.sets(st.sampled_from(grid.layers)))
    return grid, SkipPolicy(draw(st.sampled_from(["fp8", "mxfp4"])), SkipSelector.of(steps), SkipSelector.of(layers))


@given(policies())
def test_there_and_back_is_the_canonical_policy(known: tuple[Grid, SkipPolicy]) -> None:
    grid, policy = known
    params = to_params(policy, grid)
    assert list(params) == list(names(grid))
    assert all(type(value) is bool for value in params.values())
    assert to_policy(params, policy.dtype, grid) == policy.on(grid)


@given(grids, st.data())
def test_back_and_there_keeps_what_is_quantized(grid: Grid, data: st.DataObject) -> None:
    params = {name: data.draw(st.booleans()) for name in names(grid)}
    policy = to_policy(params, "fp8", grid)
    assert policy == policy.on(grid)
    back = to_params(policy, grid)
    assert to_policy(back, "fp8", grid) == policy
    assert back == (dict.fromkeys(params, True) if policy.is_native else params)


def test_one_parameter_an_index() -> None:
    grid = Grid(2, (0, 7, 39))
    assert list(names(grid)) == [
        "skip_step_000", "skip_step_001", "skip_layer_000", "skip_layer_007", "skip_layer_039"
    ]  # fmt: skip
    assert to_params(SkipPolicy.parse("1/39", "fp8", grid), grid) == {
        "skip_step_000": False, "skip_step_001": True,
        "skip_layer_000": False, "skip_layer_007": False, "skip_layer_039": True,
    }  # fmt: skip


@pytest.mark.parametrize("side", ["steps", "layers", "both"])
def test_everything_skipped_on_one_side_is_the_native_policy(side: str) -> None:
    grid = Grid(3, (0, 1))
    params = {
        name: side == "both" or name.startswith("skip_step") == (side == "steps") for name in names(grid)
    }  # fmt: skip
    assert to_policy(params, "fp8", grid) == SkipPolicy()


def test_the_native_policy_is_everything_skipped() -> None:
    assert set(to_params(SkipPolicy(), Grid(3, (0, 1))).values()) == {True}


@pytest.mark.parametrize(("steps", "layers"), [(1, (0,)), (3, (0,)), (2, (0, 5)), (4, (1, 2, 3))])
def test_how_many_policies_there_are(steps: int, layers: tuple[int, ...]) -> None:
    grid = Grid(steps, layers)
    assert policy_count(grid) == len({policy.key for policy in every_policy(grid)})


def test_the_count_of_a_real_model_is_exact() -> None:
    assert policy_count(Grid(40, tuple(range(40)))) == (2**40 - 1) ** 2 + 1


def test_random_policies() -> None:
    grid = Grid(3, (0, 1))
    drawn = [random_policy("fp8", grid, seed) for seed in range(300)]
    assert drawn == [random_policy("fp8", grid, seed) for seed in range(300)]
    assert {policy.key for policy in drawn} == {policy.key for policy in every_policy(grid)}
