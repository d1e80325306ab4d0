"""The proof that quantization ran exactly where the policy says."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from fa_tuner.domain.errors import NotQuantizedError
from fa_tuner.domain.measurement import Coverage
from fa_tuner.domain.policy import NATIVE, SkipPolicy
from fa_tuner.engines.base import UNPUBLISHED, CellCall, Description, Generation


def prove(description: Description, policy: SkipPolicy, generation: Generation) -> Coverage:
    """Compare the calls seen, with those recorded for a reused prefix, to those the policy asks for: cell by cell, on
    every rank.

    Raises:
        NotQuantizedError: naming the first cell that differs, and the likely cause.
    """
    grid, each = description.grid, description.calls_per_cell
    expected = {
        (step, layer, policy.dtype if policy.quantizes(step, layer) else NATIVE): each
        for step in range(grid.steps)
        for layer in grid.layers
    }
    ranks = [calls + generation.reused_calls for calls in (generation.calls, *generation.other_ranks)]
    for rank, seen in enumerate(ranks):
        for cell in sorted(expected.keys() | seen.keys()):
            if expected.get(cell, 0) != seen.get(cell, 0):
                where = f", on rank {rank}" if rank else ""
                raise NotQuantizedError(
                    f"under policy {policy}, {_place(cell)} made {seen.get(cell, 0)} {cell[2]} attention calls and "
                    f"should have made {expected.get(cell, 0)}{where}; {_cause(policy, seen, generation.doubts)}"
                )
    if generation.cross_attention_quantized:
        raise NotQuantizedError(
            f"under policy {policy}, {generation.cross_attention_quantized} cross-attention calls ran quantized; "
            "only self-attention may"
        )
    seen = ranks[0]
    quantized = sum(count for (_, _, dtype), count in seen.items() if dtype != NATIVE)
    wanted = each * round(policy.share(grid) * grid.steps * len(grid.layers))
    return Coverage(quantized, sum(seen.values()) - quantized, wanted, proven=quantized == wanted)


def _place(cell: CellCall) -> str:
    step, layer, _ = cell
    return (
        f"{'an unpublished step' if step == UNPUBLISHED else f'step {step}'} "
        f"{'an unknown layer' if layer == UNPUBLISHED else f'layer {layer}'}"
    )


def _cause(policy: SkipPolicy, seen: Counter[CellCall], doubts: Iterable[str]) -> str:
    if not seen:
        return "no attention call was seen at all: the engine does not run the layers that it describes"
    causes = []
    if any(step == UNPUBLISHED for step, _, _ in seen):
        causes.append("the pipeline publishes no denoising step index, so skip_steps cannot work on it")
    if any(layer == UNPUBLISHED for _, layer, _ in seen):
        causes.append("attention layers have no parseable layer index, so skip_layers cannot work on them")
    if not policy.is_native and all(dtype == NATIVE for _, _, dtype in seen):
        causes.append("nothing ran quantized: the engine fell back to native attention without saying so")
    causes += doubts
    return "; ".join(causes) or "the engine does not follow the skip selectors"


def total(coverages: Iterable[Coverage]) -> Coverage:
    """The sum over several generations; proven if each is."""
    parts = tuple(coverages)
    return Coverage(
        sum(c.quantized_calls for c in parts),
        sum(c.native_calls for c in parts),
        sum(c.expected_quantized_calls for c in parts),
        all(c.proven for c in parts),
    )
