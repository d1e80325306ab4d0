"""Policies that are tried before any sampler."""

from __future__ import annotations

import pytest

from fa_tuner.domain.policy import Grid, SkipPolicy
from fa_tuner.search.presets import all_quantized, presets


def texts(steps: int) -> list[str]:
    grid = Grid(steps, (0, 1))
    return [str(policy.skip_steps) for policy in presets("fp8", grid)]


def test_head_tail_and_both_of_one_and_two_steps() -> None:
    assert texts(40) == ["0", "39", "0,39", "0,1", "38,39", "0,1,38,39"]


def test_none_skips_a_layer_and_all_quantize() -> None:
    grid = Grid(40, (0, 1))
    for policy in presets("mxfp8", grid):
        assert policy.dtype == "mxfp8" and not policy.skip_layers.indices
        assert 0 < policy.share(grid) < 1


@pytest.mark.parametrize("steps", range(1, 8))
def test_few_steps(steps: int) -> None:
    """Nothing outside the grid, never the native policy in disguise."""
    grid = Grid(steps, (0, 1))
    for policy in presets("fp8", grid):
        assert policy == policy.on(grid) and not policy.is_native
        assert all(0 <= step < steps for step in policy.skip_steps)


def test_one_step_leaves_no_preset() -> None:
    assert texts(1) == []


def test_all_quantized_skips_nothing() -> None:
    assert all_quantized("mxfp4") == SkipPolicy.parse("/", ("mxfp4",), Grid(4, (0, 1)))
