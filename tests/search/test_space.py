"""Policies as binary parameters and back."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fa_tuner.domain.policy import Grid, SkipPolicy
from fa_tuner.domain.selector import SkipSelector
from fa_tuner.engines.prefixes import step_rows
from fa_tuner.search.space import Space
from tests.support.tables import every_policy

grids = st.builds(
    Grid, st.integers(1, 12), st.sets(st.integers(0, 60), min_size=1, max_size=12).map(lambda s: tuple(sorted(s)))
)


DTYPES = [("fp8",), ("mxfp4",), ("fp8", "mxfp4"), ("fp8", "mxfp8", "mxfp4")]
spaces = st.builds(Space, grids, st.sampled_from(DTYPES))


@st.composite
def policies(draw: st.DrawFn) -> tuple[Space, SkipPolicy]:
    space = draw(spaces)
    steps = draw(st.sets(st.integers(0, space.grid.steps - 1)))
    layers = draw(st.sets(st.sampled_from(space.grid.layers)))
    return space, SkipPolicy(draw(st.sampled_from(space.dtypes)), SkipSelector.of(steps), SkipSelector.of(layers))


@given(policies())
def test_there_and_back_is_the_canonical_policy(known: tuple[Space, SkipPolicy]) -> None:
    space, policy = known
    params = space.to_params(policy)
    assert list(params) == list(space.choices)
    assert all(params[name] in values for name, values in space.choices.items())
    assert space.to_policy(params) == policy.on(space.grid)


@given(spaces, st.data())
def test_back_and_there_keeps_what_is_quantized(space: Space, data: st.DataObject) -> None:
    params = {name: data.draw(st.sampled_from(values)) for name, values in space.choices.items()}
    policy = space.to_policy(params)
    assert policy == policy.on(space.grid)
    back = space.to_params(policy)
    assert space.to_policy(back) == policy
    assert policy.is_native or back == params
    assert space.params_of(space.flags_of(params)) == params or policy.is_native


@given(policies())
def test_as_a_rectangle(known: tuple[Space, SkipPolicy]) -> None:
    """A row for each dtype and step, only those of the policy's own dtype set."""
    space, policy = known
    rows, layers = space.to_rectangle(policy.on(space.grid))
    assert (len(rows), len(layers)) == space.size
    steps, wanted = space.grid.steps, policy.on(space.grid)
    cells = {
        (space.dtypes[row // steps], row % steps, layer)
        for row in rows.nonzero()[0] for layer, on in zip(space.grid.layers, layers, strict=True) if on
    }  # fmt: skip
    assert cells == {
        (policy.dtype, step, layer)
        for step in range(steps) for layer in space.grid.layers if wanted.quantizes(step, layer)
    }  # fmt: skip


def test_one_parameter_an_index() -> None:
    space = Space(Grid(2, (0, 7, 39)), ("fp8",))
    assert space.choices == dict.fromkeys(
        ["skip_step_000", "skip_step_001", "skip_layer_000", "skip_layer_007", "skip_layer_039"], (False, True)
    )
    assert space.to_params(SkipPolicy.parse("1/39", ("fp8",), space.grid)) == {
        "skip_step_000": False, "skip_step_001": True,
        "skip_layer_000": False, "skip_layer_007": False, "skip_layer_039": True,
    }  # fmt: skip


def test_and_the_dtype_where_there_are_several() -> None:
    space = Space(Grid(1, (0,)), ("fp8", "mxfp4"))
    assert space.choices["dtype"] == ("fp8", "mxfp4")
    params = {"dtype": "mxfp4", "skip_step_000": False, "skip_layer_000": False}
    assert space.to_params(SkipPolicy("mxfp4")) == params
    assert space.to_policy(params) == SkipPolicy("mxfp4")


@pytest.mark.parametrize("side", ["steps", "layers", "both"])
def test_everything_skipped_on_one_side_is_the_native_policy(side: str) -> None:
    space = Space(Grid(3, (0, 1)), ("fp8",))
    params = {
        name: side == "both" or name.startswith("skip_step") == (side == "steps") for name in space.choices
    }  # fmt: skip
    assert space.to_policy(params) == SkipPolicy()


def test_the_native_policy_is_everything_skipped() -> None:
    assert set(Space(Grid(3, (0, 1)), ("fp8",)).to_params(SkipPolicy()).values()) == {True}


@pytest.mark.parametrize("dtypes", DTYPES)
@pytest.mark.parametrize(("steps", "layers"), [(1, (0,)), (3, (0,)), (2, (0, 5)), (4, (1, 2, 3))])
def test_how_many_policies_there_are(steps: int, layers: tuple[int, ...], dtypes: tuple[str, ...]) -> None:
    space = Space(Grid(steps, layers), dtypes)
    listed = [policy.key for policy in space.policies()]
    independent = {policy.key for dtype in dtypes for policy in every_policy(space.grid, dtype)}
    assert len(listed) == len(set(listed)) == space.count - 1
    assert {*listed, "native"} == independent


def test_the_count_of_a_real_model_is_exact() -> None:
    assert Space(Grid(40, tuple(range(40))), ("fp8",)).count == (2**40 - 1) ** 2 + 1


def test_random_policies() -> None:
    space = Space(Grid(3, (0, 1)), ("fp8", "mxfp4"))
    drawn = [space.draw(seed) for seed in range(600)]
    assert drawn == [space.draw(seed) for seed in range(600)]
    assert {policy.key for policy in drawn} == {"native", *(policy.key for policy in space.policies())}


def test_neighbours_share_most_of_their_steps() -> None:
    run, before = 0, ("native",) * 4
    for rows in (step_rows(policy, 4) for policy in Space(Grid(4, (0, 1, 2)), ("fp8",)).policies()):
        native = next((i for i, row in enumerate(rows) if row != "native"), 4)
        shared = next((i for i in range(4) if rows[i] != before[i]), 4)
        run, before = run + 4 - min(3, max(native, shared)), rows
    assert run == (2 + 4 + 8 + 16 - 4) * 7, "each step of each tree once, but for the native path"
