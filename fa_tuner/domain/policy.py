"""What is asked of an engine: a dtype, and which steps and layers stay native."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from fa_tuner.domain.errors import UsageError
from fa_tuner.domain.selector import SkipSelector

NATIVE = "native"
DTYPES = ("fp8", "mxfp8", "mxfp4")


def parse_dtypes(text: str) -> tuple[str, ...]:
    """Read "fp8" or "fp8,mxfp4", in whatever order.

    Raises:
        UsageError: an unknown one, or one that is given twice.
    """
    given = [part.strip() for part in text.split(",")]
    if unknown := [part for part in given if part not in DTYPES]:
        raise UsageError(f"dtype {unknown[0][:20]!r} is unknown; choose of {', '.join(DTYPES)}, such as fp8,mxfp4")
    if len(set(given)) < len(given):
        raise UsageError(f"dtype {text[:40]!r} names one twice")
    return tuple(dtype for dtype in DTYPES if dtype in given)


@dataclass(frozen=True)
class Grid:
    """The cells that a policy decides: `steps` denoising steps by the eligible `layers` (block indices)."""

    steps: int
    layers: tuple[int, ...]

    @property
    def layer_bound(self) -> int:
        """One above the highest layer index."""
        return max(self.layers) + 1

    def __str__(self) -> str:
        return f"{self.steps} steps x {len(self.layers)} layers"


@dataclass(frozen=True, slots=True)
class SkipPolicy:
    """A dtype for self-attention, and the steps and layers kept native (their union: a call is native if its
    step or its layer is skipped). The quantized cells are therefore always a rectangle."""

    dtype: str = NATIVE
    skip_steps: SkipSelector = field(default_factory=SkipSelector)
    skip_layers: SkipSelector = field(default_factory=SkipSelector)

    def __post_init__(self) -> None:
        if self.dtype != NATIVE and self.dtype not in DTYPES:
            raise UsageError(f"dtype {self.dtype!r} is unknown; choose one of {', '.join(DTYPES)}")

    @classmethod
    def parse(cls, text: str, dtypes: tuple[str, ...], grid: Grid) -> SkipPolicy:
        """Read "STEPS/LAYERS", such as "0,1,38,39/0-2"; either side may be empty. With one of the `dtypes` and a colon
        before it, it is a policy's `key`; where there are several dtypes, it must have one.

        Raises:
            SelectorError, UsageError: with what is wrong and where.
        """
        dtype, colon, selectors = text.rpartition(":")
        if not colon and len(dtypes) > 1:
            raise UsageError(f'policy {text[:80]!r} is of which dtype? write it as "{dtypes[0]}:{text[:80]}"')
        if colon and dtype not in dtypes:
            raise UsageError(f"policy {text[:80]!r} is of dtype {dtype[:20]!r}; there is {', '.join(dtypes)}")
        dtype = dtype or dtypes[0]
        steps, slash, layers = selectors.partition("/")
        if not slash:
            raise UsageError(f'policy {text[:80]!r} has no "/"; write STEPS/LAYERS, such as "0,1/0-2" or "/0-2"')
        return cls(
            dtype,
            SkipSelector.parse(steps, grid.steps, "step"),
            SkipSelector.parse(layers, grid.layer_bound, "layer"),
        ).on(grid)

    def on(self, grid: Grid) -> SkipPolicy:
        """The policy in canonical form: only indices of the grid, and one that quantizes none of its cells is the
        native policy."""
        if self.dtype == NATIVE or not self.quantized_steps(grid) or not self.quantized_layers(grid):
            return SkipPolicy()
        return SkipPolicy(
            self.dtype,
            SkipSelector.of(i for i in self.skip_steps if i < grid.steps),
            SkipSelector.of(i for i in self.skip_layers if i in grid.layers),
        )

    @property
    def is_native(self) -> bool:
        return self.dtype == NATIVE

    def quantizes(self, step: int, layer: int) -> bool:
        return not self.is_native and step not in self.skip_steps and layer not in self.skip_layers

    def quantized_steps(self, grid: Grid) -> tuple[int, ...]:
        return tuple(step for step in range(grid.steps) if step not in self.skip_steps)

    def quantized_layers(self, grid: Grid) -> tuple[int, ...]:
        return tuple(layer for layer in grid.layers if layer not in self.skip_layers)

    def share(self, grid: Grid, costs: Sequence[float] | None = None) -> float:
        """The share of the grid's cells that run quantized, 0 to 1; by what they cost where the relative `costs` of the
        grid's layers are given."""
        if self.is_native:
            return 0.0
        weights = costs or [1.0] * len(grid.layers)
        quantized = (cost for layer, cost in zip(grid.layers, weights, strict=True) if layer not in self.skip_layers)
        return len(self.quantized_steps(grid)) * math.fsum(quantized) / (grid.steps * math.fsum(weights))

    @property
    def key(self) -> str:
        """A stable name, unique among canonical policies: "fp8:0,1/0-2"."""
        return NATIVE if self.is_native else f"{self.dtype}:{self.skip_steps}/{self.skip_layers}"

    def __str__(self) -> str:
        if self.is_native:
            return NATIVE
        return f'{self.dtype}, skip steps "{self.skip_steps}", layers "{self.skip_layers}"'
