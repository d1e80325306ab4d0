"""The proof that quantization ran exactly where the policy says."""

from __future__ import annotations

from collections.abc import Iterable

from fa_tuner.domain.errors import NotQuantizedError
from fa_tuner.domain.measurement import Coverage
from fa_tuner.domain.policy import NATIVE, SkipPolicy
from fa_tuner.engines.base import Description, Generation


def prove(description: Description, policy: SkipPolicy, generation: Generation) -> Coverage:
    """Compare the calls seen with those the policy asks for, cell by cell.

    Raises:
        NotQuantizedError: naming the first cell that differs, and the likely cause.
    """
    grid, each = description.grid, description.calls_per_cell
    expected = {
        (step, layer, policy.dtype if policy.quantizes(step, layer) else NATIVE): each
        for step in range(grid.steps)
        for layer in grid.layers
    }
    seen = generation.calls
    for cell in sorted(expected.keys() | seen.keys()):
        if expected.get(cell, 0) != seen.get(cell, 0):
            step, layer, dtype = cell
            raise NotQuantizedError(
                f"under policy {policy}, step {step} layer {layer} made {seen.get(cell, 0)} {dtype} attention calls "
                f"and should have made {expected.get(cell, 0)}; {_cause(policy, generation)}"
            )
    if generation.cross_attention_quantized:
        raise NotQuantizedError(
            f"under policy {policy}, {generation.cross_attention_quantized} cross-attention calls ran quantized; "
            "only self-attention may"
        )
    quantized = sum(count for (_, _, dtype), count in seen.items() if dtype != NATIVE)
    wanted = each * round(policy.share(grid) * grid.steps * len(grid.layers))
    return Coverage(quantized, sum(seen.values()) - quantized, wanted, proven=quantized == wanted)


def _cause(policy: SkipPolicy, generation: Generation) -> str:
    dtypes = {dtype for _, _, dtype in generation.calls}
    if not generation.calls:
        return "no attention call was seen at all: the engine does not run the layers that it describes"
    if not policy.is_native and dtypes == {NATIVE}:
        return "nothing ran quantized: the engine fell back to native attention without saying so"
    return "the engine does not follow the skip selectors"


def total(coverages: Iterable[Coverage]) -> Coverage:
    """The sum over several generations; proven if each is."""
    parts = tuple(coverages)
    return Coverage(
        sum(c.quantized_calls for c in parts),
        sum(c.native_calls for c in parts),
        sum(c.expected_quantized_calls for c in parts),
        all(c.proven for c in parts),
    )
