"""Policies as Optuna parameters: one binary parameter an index, true where the index is skipped (native)."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping

import numpy as np
import numpy.typing as npt

from fa_tuner.domain.policy import Grid, SkipPolicy
from fa_tuner.domain.selector import SkipSelector

Flags = npt.NDArray[np.bool_]
Numbers = npt.NDArray[np.float64]
Indices = npt.NDArray[np.intp]

CHOICES = (False, True)


def step_name(step: int) -> str:
    return f"skip_step_{step:03d}"


def layer_name(layer: int) -> str:
    return f"skip_layer_{layer:03d}"


def names(grid: Grid) -> Iterator[str]:
    yield from map(step_name, range(grid.steps))
    yield from map(layer_name, grid.layers)


def to_params(policy: SkipPolicy, grid: Grid) -> dict[str, bool]:
    """The native policy is written as everything skipped."""
    everything = policy.is_native
    steps = {step_name(i): everything or i in policy.skip_steps for i in range(grid.steps)}
    layers = {layer_name(i): everything or i in policy.skip_layers for i in grid.layers}
    return {**steps, **layers}


def to_policy(params: Mapping[str, bool], dtype: str, grid: Grid) -> SkipPolicy:
    """The canonical policy; all parameter sets that quantize nothing are the one native policy."""
    steps = SkipSelector.of(i for i in range(grid.steps) if params[step_name(i)])
    layers = SkipSelector.of(i for i in grid.layers if params[layer_name(i)])
    return SkipPolicy(dtype, steps, layers).on(grid)


def to_rectangle(policy: SkipPolicy, grid: Grid) -> tuple[Flags, Flags]:
    """Flags of the quantized steps [T] and of the quantized layers [N]; none for the native policy."""
    return flags_of(to_params(policy, grid), grid)


def flags_of(params: Mapping[str, bool], grid: Grid) -> tuple[Flags, Flags]:
    """Flags of the quantized steps [T] and of the quantized layers [N], as these parameters have them."""
    quantized = np.array([not params[name] for name in names(grid)], dtype=np.bool_)
    return quantized[: grid.steps], quantized[grid.steps :]


def policy_count(grid: Grid) -> int:
    """How many different policies there are: every rectangle with a cell in it, and the native one."""
    return int((2**grid.steps - 1) * (2 ** len(grid.layers) - 1) + 1)


def random_policy(dtype: str, grid: Grid, seed: int) -> SkipPolicy:
    """A policy drawn uniformly over the parameters."""
    draw = random.Random(seed)  # noqa: S311 - a search, not a secret
    return to_policy({name: draw.random() < 0.5 for name in names(grid)}, dtype, grid)
