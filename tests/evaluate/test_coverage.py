"""The proof that quantization ran: every way to differ is found."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import pytest

from fa_tuner.domain.errors import NotQuantizedError, outcome
from fa_tuner.domain.measurement import Coverage
from fa_tuner.domain.policy import NATIVE, Grid, SkipPolicy
from fa_tuner.engines.base import CellCall, Description, Generation
from fa_tuner.evaluate.coverage import prove, total

GRID = Grid(4, (0, 2, 5))
EACH = 2
DESCRIPTION = Description("fake", GRID, EACH, ("fp8", "mxfp8"), "projected", "emulated", "cpu", "WanPipeline")
POLICY = SkipPolicy.parse("0/5", "fp8", GRID)  # 3 steps x 2 layers quantized
Calls = Counter[CellCall]


def right(policy: SkipPolicy) -> Calls:
    return Counter({
        (step, layer, policy.dtype if policy.quantizes(step, layer) else NATIVE): EACH
        for step in range(GRID.steps) for layer in GRID.layers
    })  # fmt: skip


def generation(calls: Calls, cross: int = 0) -> Generation:
    return Generation(None, calls, 1.0, 2.0, cross_attention_quantized=cross)


def changed(change: Callable[[Calls], object], policy: SkipPolicy = POLICY) -> Generation:
    calls = right(policy)
    change(calls)
    return generation(calls)


def refusal(generation: Generation, policy: SkipPolicy = POLICY) -> str:
    with pytest.raises(NotQuantizedError) as caught:
        prove(DESCRIPTION, policy, generation)
    return str(caught.value)


def test_what_was_asked_is_proven() -> None:
    assert prove(DESCRIPTION, POLICY, generation(right(POLICY))) == Coverage(12, 12, 12, True)


def test_native_is_proven_by_native_calls_alone() -> None:
    assert prove(DESCRIPTION, SkipPolicy(), generation(right(SkipPolicy()))) == Coverage(0, 24, 0, True)


def test_everything() -> None:
    everything = SkipPolicy("mxfp8")
    assert prove(DESCRIPTION, everything, generation(right(everything))) == Coverage(24, 0, 24, True)


def test_cells_counted_as_zero_are_as_good_as_absent() -> None:
    calls = right(POLICY)
    calls[0, 0, "fp8"] = 0
    assert prove(DESCRIPTION, POLICY, generation(calls)).proven


def test_nothing_quantized() -> None:
    said = refusal(generation(right(SkipPolicy())))
    assert "step 1 layer 0 made 0 fp8 attention calls and should have made 2" in said
    assert "nothing ran quantized: the engine fell back to native attention" in said
    assert str(POLICY) in said


def test_no_call_at_all() -> None:
    said = refusal(generation(Counter()))
    assert "step 0 layer 0 made 0 native attention calls" in said and "no attention call was seen at all" in said


def test_no_call_at_all_under_native() -> None:
    assert "no attention call was seen at all" in refusal(generation(Counter()), SkipPolicy())


def move(calls: Calls, step: int, layer: int, old: str, new: str, count: int = EACH) -> None:
    calls[step, layer, old] -= count
    calls[step, layer, new] += count


SELECTORS = "the engine does not follow the skip selectors"


@pytest.mark.parametrize(
    ("change", "cell"),
    [
        (lambda c: move(c, 2, 2, "fp8", NATIVE), "step 2 layer 2 made 0 fp8 attention calls and should have made 2"),
        (lambda c: move(c, 2, 2, "fp8", NATIVE, 1), "step 2 layer 2 made 1 fp8"),  # one guidance branch only
        (lambda c: move(c, 0, 2, NATIVE, "fp8"), "step 0 layer 2 made 2 fp8 attention calls and should have made 0"),
        (lambda c: move(c, 3, 5, NATIVE, "fp8", 1), "step 3 layer 5 made 1 fp8"),
        (lambda c: move(c, 1, 0, "fp8", "mxfp8"), "step 1 layer 0 made 0 fp8"),
        (lambda c: c.update({(4, 0, "fp8"): EACH}), "step 4 layer 0 made 2 fp8 attention calls and should have made 0"),
        (lambda c: c.update({(1, 1, "fp8"): EACH}), "step 1 layer 1 made 2 fp8"),  # a layer that may not be quantized
        (lambda c: c.update({(1, 1, NATIVE): EACH}), "step 1 layer 1 made 2 native"),
        (lambda c: c.pop((3, 0, "fp8")), "step 3 layer 0 made 0 fp8"),
        (lambda c: c.pop((0, 0, NATIVE)), "step 0 layer 0 made 0 native attention calls and should have made 2"),
        (lambda c: c.update({(1, 0, "fp8"): 1}), "step 1 layer 0 made 3 fp8"),
    ],
    ids=[
        "one cell missing", "half a cell", "extra cell of a skipped step", "half a cell of a skipped layer",
        "another dtype", "a step too many", "another layer", "another native layer", "missing quantized calls",
        "missing native calls", "a call too many",
    ],
)  # fmt: skip
def test_one_cell_that_differs_is_named(change: Callable[[Calls], object], cell: str) -> None:
    said = refusal(changed(change))
    assert cell in said and SELECTORS in said


def test_selectors_that_are_shifted_by_one_step() -> None:
    """The step index restarts, or counts from one: as many quantized calls as asked for, elsewhere."""
    shifted = right(SkipPolicy.parse("3/5", "fp8", GRID))
    assert sum(shifted.values()) == sum(right(POLICY).values())
    assert "step 0 layer 0 made 2 fp8" in refusal(generation(shifted))


def test_steps_alone_obeyed() -> None:
    assert "step 1 layer 5 made 2 fp8" in refusal(generation(right(SkipPolicy.parse("0/", "fp8", GRID))))


def test_native_that_ran_quantized() -> None:
    """The baseline itself must be native."""
    said = refusal(generation(right(POLICY)), SkipPolicy())
    assert "under policy native, step 1 layer 0 made 2 fp8" in said


def test_cross_attention() -> None:
    said = refusal(generation(right(POLICY), cross=7))
    assert "7 cross-attention calls ran quantized" in said


def test_calls_of_one_branch_without_guidance() -> None:
    one = replace(DESCRIPTION, calls_per_cell=1)
    with pytest.raises(NotQuantizedError):
        prove(one, POLICY, generation(right(POLICY)))
    assert prove(one, POLICY, generation(Counter(dict.fromkeys(right(POLICY), 1)))) == Coverage(6, 6, 6, True)


def test_it_ends_with_exit_code_7() -> None:
    assert outcome(NotQuantizedError).exit_code == 7


def test_the_total_is_proven_only_if_each_part_is() -> None:
    proven, not_proven = Coverage(12, 12, 12, True), Coverage(1, 2, 3, False)
    assert total([proven, proven]) == Coverage(24, 24, 24, True)
    assert total(iter([proven, not_proven])) == Coverage(13, 14, 15, False)
