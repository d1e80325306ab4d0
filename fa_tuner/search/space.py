"""Policies as Optuna parameters and as rectangles of flags."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt

from fa_tuner.domain.policy import Grid, SkipPolicy
from fa_tuner.domain.selector import SkipSelector

Flags = npt.NDArray[np.bool_]
Numbers = npt.NDArray[np.float64]
Indices = npt.NDArray[np.intp]
Rectangle = tuple[Flags, Flags]  # rows [dtypes x steps], layers [layers]; see `Space`
Rectangles = tuple[Flags, Flags]  # [n, dtypes x steps], [n, layers]

CHOICES = (False, True)
DTYPE = "dtype"


def step_name(step: int) -> str:
    return f"skip_step_{step:03d}"


def layer_name(layer: int) -> str:
    return f"skip_layer_{layer:03d}"


@dataclass(frozen=True)
class Space:
    """The policies of some dtypes on one grid.

    Optuna's parameters are one binary one an index, true where the index is skipped (native), and the dtype where
    there are several. As a rectangle a policy is the rows that it quantizes, of which there is one for each dtype and
    step, the steps of the first dtype first, and the layers; all rows of a policy are of one dtype.
    """

    grid: Grid
    dtypes: tuple[str, ...]

    @property
    def size(self) -> tuple[int, int]:
        """Rows and columns of a rectangle."""
        return len(self.dtypes) * self.grid.steps, len(self.grid.layers)

    @property
    def indices(self) -> Iterator[str]:
        """Names of the binary parameters."""
        yield from map(step_name, range(self.grid.steps))
        yield from map(layer_name, self.grid.layers)

    @property
    def choices(self) -> dict[str, tuple[Any, ...]]:
        """The values of each parameter."""
        dtype: dict[str, tuple[Any, ...]] = {DTYPE: self.dtypes} if len(self.dtypes) > 1 else {}
        return {**dtype, **dict.fromkeys(self.indices, CHOICES)}

    def to_params(self, policy: SkipPolicy) -> dict[str, Any]:
        """The native policy is written as everything skipped."""
        everything = policy.is_native
        dtype = {DTYPE: self.dtypes[0] if everything else policy.dtype} if len(self.dtypes) > 1 else {}
        steps = {step_name(i): everything or i in policy.skip_steps for i in range(self.grid.steps)}
        layers = {layer_name(i): everything or i in policy.skip_layers for i in self.grid.layers}
        return {**dtype, **steps, **layers}

    def to_policy(self, params: Mapping[str, Any]) -> SkipPolicy:
        """The canonical policy; all parameter sets that quantize nothing are the one native policy."""
        steps = SkipSelector.of(i for i in range(self.grid.steps) if params[step_name(i)])
        layers = SkipSelector.of(i for i in self.grid.layers if params[layer_name(i)])
        return SkipPolicy(params.get(DTYPE, self.dtypes[0]), steps, layers).on(self.grid)

    def to_rectangle(self, policy: SkipPolicy) -> Rectangle:
        """No flag is set for the native policy."""
        return self.flags_of(self.to_params(policy))

    def flags_of(self, params: Mapping[str, Any]) -> Rectangle:
        """The rectangle that these parameters say."""
        quantized = np.array([not params[name] for name in self.indices], dtype=np.bool_)
        return self.of(params.get(DTYPE, self.dtypes[0]), quantized[: self.grid.steps], quantized[self.grid.steps :])

    def of(self, dtype: str, steps: Flags, layers: Flags) -> Rectangle:
        """The rectangle, or rectangles, of flags of steps [..., steps] and layers."""
        rows = np.zeros((*steps.shape[:-1], len(self.dtypes), self.grid.steps), dtype=np.bool_)
        rows[..., self.dtypes.index(dtype), :] = steps
        return rows.reshape(*steps.shape[:-1], self.size[0]), layers

    def stacked(self, rectangles: Sequence[Rectangle]) -> Rectangles:
        """All of them as one, also where there is none."""
        flags = [np.array([rectangle[side] for rectangle in rectangles], dtype=np.bool_) for side in (0, 1)]
        return flags[0].reshape(-1, self.size[0]), flags[1].reshape(-1, self.size[1])

    def dtype_of(self, rows: Flags) -> Indices:
        """The dtype, by its position, of each rectangle with these rows [n, rows]."""
        return np.asarray(rows.argmax(axis=1) // self.grid.steps)

    def params_of(self, rectangle: Rectangle) -> dict[str, Any]:
        """The inverse of `flags_of`."""
        by_dtype = rectangle[0].reshape(len(self.dtypes), self.grid.steps)
        dtype = self.dtypes[int(by_dtype.any(axis=1).argmax())]
        flags = zip(self.indices, np.concatenate([by_dtype.any(axis=0), rectangle[1]]).tolist(), strict=True)
        return {**({DTYPE: dtype} if len(self.dtypes) > 1 else {}), **{name: not on for name, on in flags}}

    def policy_of(self, rectangle: Rectangle) -> SkipPolicy:
        """The inverse of `to_rectangle`."""
        return self.to_policy(self.params_of(rectangle))

    @property
    def count(self) -> int:
        """How many different policies there are: every rectangle with a cell in it, and the native one."""
        cells = (2**self.grid.steps - 1) * (2 ** len(self.grid.layers) - 1)
        return int(len(self.dtypes) * cells + 1)

    def policies(self) -> Iterator[SkipPolicy]:
        """All but the native one. For each set of layers the sets of steps come depth first, so that neighbours share
        the longest prefixes."""
        for dtype in self.dtypes:
            for layers in product((True, False), repeat=len(self.grid.layers)):
                for steps in product((False, True), repeat=self.grid.steps):
                    if any(steps) and any(layers):
                        yield self.policy_of(self.of(dtype, np.array(steps), np.array(layers)))

    def draw(self, seed: int) -> SkipPolicy:
        """A policy drawn uniformly over the parameters."""
        draw = random.Random(seed)  # noqa: S311 - a search, not a secret
        return self.to_policy({name: draw.choice(values) for name, values in self.choices.items()})
