"""The proof that quantization ran: every way to differ is found."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import pytest

from fa_tuner.domain.errors import NotQuantizedError, outcome
from fa_tuner.domain.measurement import Coverage
from fa_tuner.domain.policy import NATIVE, Grid, SkipPolicy
from fa_tuner.engines.base import UNPUBLISHED, CellCall, Description, Generation
from fa_tuner.evaluate.coverage import prove, total

GRID = Grid(4, (0, 2, 5))
EACH = 2
DESCRIPTION = Description("fake", GRID, EACH, ("fp8", "mxfp8"), "projected", "emulated", "cpu", "WanPipeline")
POLICY = SkipPolicy.parse("0/5", ("fp8",), GRID)  # 3 steps x 2 layers quantized
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
    shifted = right(SkipPolicy.parse("3/5", ("fp8",), GRID))
    assert sum(shifted.values()) == sum(right(POLICY).values())
    assert "step 0 layer 0 made 2 fp8" in refusal(generation(shifted))


def test_steps_alone_obeyed() -> None:
    assert "step 1 layer 5 made 2 fp8" in refusal(generation(right(SkipPolicy.parse("0/", ("fp8",), GRID))))


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


# --- indices that were not published --------------------------------------------------------------------------------


def unpublished(calls: Calls, steps: bool, layers: bool) -> Calls:
    """As a pipeline counts that publishes no step, or whose layers have no index."""
    found: Calls = Counter()
    for (step, layer, dtype), count in calls.items():
        found[UNPUBLISHED if steps else step, UNPUBLISHED if layers else layer, dtype] += count
    return found


NO_STEP = "the pipeline publishes no denoising step index, so skip_steps cannot work on it"
NO_LAYER = "attention layers have no parseable layer index, so skip_layers cannot work on them"


def test_no_step_index() -> None:
    said = refusal(generation(unpublished(right(POLICY), True, False)))
    assert "an unpublished step layer 0 made 6 fp8 attention calls and should have made 0" in said
    assert NO_STEP in said and NO_LAYER not in said and SELECTORS not in said


def test_no_layer_index() -> None:
    said = refusal(generation(unpublished(right(POLICY), False, True)))
    assert "step 0 an unknown layer made 6 native attention calls and should have made 0" in said
    assert NO_LAYER in said and NO_STEP not in said


def test_neither_index() -> None:
    said = refusal(generation(unpublished(right(POLICY), True, True)))
    assert said.startswith(f"under policy {POLICY}, an unpublished step an unknown layer made 12 fp8")
    assert f"{NO_STEP}; {NO_LAYER}" in said


def test_one_call_without_an_index_is_enough() -> None:
    assert NO_STEP in refusal(changed(lambda c: c.update({(UNPUBLISHED, 0, NATIVE): 1})))


# --- several ranks --------------------------------------------------------------------------------------------------


def on_ranks(*calls: Calls, reused: Calls | None = None) -> Generation:
    first, *others = calls
    return replace(generation(first), other_ranks=tuple(others), reused_calls=reused or Counter())


def test_every_rank_makes_every_call() -> None:
    """Ulysses shares the sequence out, tensor parallelism the heads: each rank runs each layer."""
    proven = prove(DESCRIPTION, POLICY, on_ranks(*[right(POLICY)] * 4))
    assert proven == Coverage(12, 12, 12, True), "the counts are those of one rank"


@pytest.mark.parametrize("rank", [1, 3])
def test_a_rank_that_ran_something_else(rank: int) -> None:
    ranks = [right(POLICY) for _ in range(4)]
    move(ranks[rank], 2, 2, "fp8", NATIVE)
    said = refusal(on_ranks(*ranks))
    assert f"step 2 layer 2 made 0 fp8 attention calls and should have made 2, on rank {rank}; {SELECTORS}" in said


def test_a_rank_that_fell_back() -> None:
    said = refusal(on_ranks(right(POLICY), right(SkipPolicy())))
    assert "on rank 1" in said and "nothing ran quantized" in said


def test_a_rank_that_ran_nothing() -> None:
    said = refusal(on_ranks(right(POLICY), Counter()))
    assert "on rank 1" in said and "no attention call was seen at all" in said


def test_the_first_rank_is_not_named() -> None:
    assert "rank" not in refusal(on_ranks(right(SkipPolicy()), right(POLICY)))


# --- a prefix that was not run again --------------------------------------------------------------------------------


def split(calls: Calls, start: int) -> tuple[Calls, Calls]:
    """Those from step `start` on, and those before."""
    later = Counter({cell: count for cell, count in calls.items() if cell[0] >= start})
    return later, calls - later


@pytest.mark.parametrize("start", [1, 2, 3])
def test_calls_of_a_reused_prefix_count(start: int) -> None:
    later, earlier = split(right(POLICY), start)
    assert prove(DESCRIPTION, POLICY, on_ranks(later, later, reused=earlier)) == Coverage(12, 12, 12, True)


def test_calls_of_the_wrong_prefix_do_not() -> None:
    later, _ = split(right(POLICY), 2)
    _, native = split(right(SkipPolicy()), 2)
    assert "step 1 layer 0 made 0 fp8" in refusal(on_ranks(later, reused=native))


def test_a_prefix_that_was_run_again_all_the_same() -> None:
    _, earlier = split(right(POLICY), 1)
    said = refusal(on_ranks(right(POLICY), reused=earlier))
    assert "step 0 layer 0 made 4 native attention calls and should have made 2" in said


def test_a_rank_that_did_not_resume() -> None:
    later, earlier = split(right(POLICY), 1)
    assert "on rank 1" in refusal(on_ranks(later, right(POLICY), reused=earlier))


# --- doubts ---------------------------------------------------------------------------------------------------------


def test_the_engines_doubts_are_told() -> None:
    doubtful = replace(generation(right(SkipPolicy())), doubts=("platform cuda is not an NPU", "attention is causal"))
    said = refusal(doubtful)
    assert "nothing ran quantized" in said
    assert said.endswith("; platform cuda is not an NPU; attention is causal")


def test_doubts_alone_are_no_reason_to_refuse() -> None:
    assert prove(DESCRIPTION, POLICY, replace(generation(right(POLICY)), doubts=("attention is causal",))).proven


def test_it_ends_with_exit_code_7() -> None:
    assert outcome(NotQuantizedError).exit_code == 7


def test_the_total_is_proven_only_if_each_part_is() -> None:
    proven, not_proven = Coverage(12, 12, 12, True), Coverage(1, 2, 3, False)
    assert total([proven, proven]) == Coverage(24, 24, 24, True)
    assert total(iter([proven, not_proven])) == Coverage(13, 14, 15, False)
