"""When the evaluator lets an engine go on from a kept prefix, and when it trusts it to."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest

from fa_tuner.domain.errors import EngineError, NotQuantizedError
from fa_tuner.domain.measurement import CaseQuality, Latency
from fa_tuner.domain.policy import NATIVE, Grid, SkipPolicy
from fa_tuner.domain.workload import Case, Workload
from fa_tuner.engines.base import CellCall, Description, Engine, Generation, Prefix
from fa_tuner.evaluate.evaluator import Evaluator
from fa_tuner.evaluate.profile import DeviceProfile

GRID = Grid(3, (0, 1))
WORK = Workload("m", ("a cat", "a dog"), 16, 16, 5, 3, holdout=("a bird", "a fish"))
CAT, DOG = WORK.cases
PROFILE = DeviceProfile("p", "here", 10.0, 5.0, {"fp8": 4.0})
LATE = SkipPolicy.parse("0,1/", ("fp8",), GRID)  # two native steps first
EVERYTHING = SkipPolicy("fp8")
Asked = tuple[str, Case, Prefix]


@dataclass
class ResumingEngine(Engine):
    """Keeps prefixes by case and by what its steps ran in. `asked` is every generation; `skew` is added to a sample
    of each resumed one's frames, `change` is made to any generation."""

    asked: list[Asked] = field(default_factory=list)
    kept: set[tuple[Case, tuple[str, ...]]] = field(default_factory=set)
    skew: int = 0
    change: Callable[[Generation], Generation] = lambda generation: generation

    @classmethod
    def unavailable_because(cls) -> str | None:
        return None

    @classmethod
    def open(cls, workload: Workload, options: Mapping[str, Any]) -> ResumingEngine:
        return cls()

    def describe(self) -> Description:
        return Description("fake", GRID, 1, ("fp8",), "measured", "real", "a card", "WanPipeline", resumes=True)

    def generate(self, policy: SkipPolicy, case: Case, prefix: Prefix = "none", shadows: Any = ()) -> Generation:
        self.asked.append((policy.key, case, prefix))
        rows = tuple(NATIVE if policy.is_native or step in policy.skip_steps else policy.key for step in range(3))
        start = max((n for n in range(3) if prefix == "reuse" and (case, rows[:n]) in self.kept), default=0)
        if prefix != "none":
            self.kept |= {(case, rows[:n]) for n in range(1, 3)}
        cells: Counter[CellCall] = Counter({
            (step, layer, policy.dtype if policy.quantizes(step, layer) else NATIVE): 1
            for step in range(3) for layer in GRID.layers
        })  # fmt: skip
        reused = Counter({cell: count for cell, count in cells.items() if cell[0] < start})
        rng = np.random.default_rng([case.seed, len(case.prompt), case.prompt[-1:].encode()[0]])
        frames = rng.integers(20, 200, (WORK.frames, WORK.height, WORK.width, 3), dtype=np.uint8)
        frames[0, 0, : 2 * sum(dtype != NATIVE for _, _, dtype in cells)] += np.uint8(30)
        frames[0, 1, 1, 0] += np.uint8(self.skew if start else 0)
        return self.change(Generation(frames, cells - reused, 5.0, 6.0, reused_steps=start, reused_calls=reused))

    def close(self) -> None:
        """Nothing was loaded."""


@pytest.fixture
def engine() -> ResumingEngine:
    return ResumingEngine()


def after_baseline(engine: ResumingEngine, notes: list[str] | None = None) -> Evaluator:
    evaluator = Evaluator(engine, WORK, PROFILE, note=[].append if notes is None else notes.append)
    evaluator.run_baseline()
    engine.asked.clear()
    return evaluator


# --- what it asks for -----------------------------------------------------------------------------------------------


def test_the_first_native_run_keeps_and_the_second_stands_on_its_own(engine: ResumingEngine) -> None:
    """The noise floor is between two whole runs."""
    Evaluator(engine, WORK, PROFILE).run_baseline()
    assert engine.asked == [(NATIVE, case, prefix) for case in (CAT, DOG) for prefix in ("keep", "none")]


def test_a_projected_policy_goes_on_from_what_was_kept(engine: ResumingEngine) -> None:
    evaluator = after_baseline(engine)
    evaluator.measure(EVERYTHING)
    assert engine.asked == [("fp8:/", case, "reuse") for case in (CAT, DOG)]


def test_what_is_timed_is_whole(engine: ResumingEngine) -> None:
    """All of it: both runs of the baseline, each pair of a policy, and the finalist's; the warm-up is not timed."""
    evaluator = Evaluator(engine, WORK, None, repeats=1)
    evaluator.run_baseline()
    evaluator.measure(LATE)
    evaluator.time_again(LATE, 15)
    warm_up, *timed = engine.asked
    assert warm_up == (NATIVE, CAT, "keep")
    assert {prefix for _, _, prefix in timed} == {"none"} and len(timed) == 2 * 2 + 2 * 2 + 2 * 15 * 2


def test_what_is_fitted_goes_on_from_the_warm_up_and_from_what_was_fitted(engine: ResumingEngine) -> None:
    """Nothing timed leaves a prefix, so that the second case has none until a fitted run has made one."""
    evaluator = Evaluator(engine, WORK, None, repeats=1)
    evaluator.run_baseline()
    evaluator.measure(LATE)
    engine.asked.clear()
    fitted = Latency(0.9, "fitted", spread=0.01)
    first, _ = evaluator.measure(LATE, fitted)
    assert engine.asked == [(LATE.key, CAT, "reuse"), (LATE.key, CAT, "none"), (LATE.key, DOG, "reuse")]
    assert first.latency == fitted and first.coverage.proven
    engine.asked.clear()
    second, _ = evaluator.measure(LATE, fitted)
    assert engine.asked == [(LATE.key, case, "reuse") for case in (CAT, DOG)]
    assert (first.detail["steps_reused"], second.detail["steps_reused"]) == (0, 4)


# --- whether it is trusted ------------------------------------------------------------------------------------------


def test_the_first_resumed_run_is_checked_against_the_whole_one(engine: ResumingEngine) -> None:
    notes: list[str] = []
    evaluator = after_baseline(engine, notes)
    measurement, frames = evaluator.measure(LATE)
    assert engine.asked == [(LATE.key, CAT, "reuse"), (LATE.key, CAT, "none"), (LATE.key, DOG, "reuse")]
    assert notes == [
        "resumed after 2 kept steps, the frames were equal to those of the full run, bit by bit: shared steps are not "
        "computed again"
    ]
    assert measurement.detail["steps_reused"] == 2, "the first case's was run in full"
    assert measurement.coverage.proven and len(frames) == 2


def test_once_trusted_it_is_not_checked_again(engine: ResumingEngine) -> None:
    notes: list[str] = []
    evaluator = after_baseline(engine, notes)
    evaluator.measure(LATE)
    engine.asked.clear()
    again, _ = evaluator.measure(LATE)
    other, _ = evaluator.measure(SkipPolicy.parse("0/", ("fp8",), GRID))
    assert {prefix for _, _, prefix in engine.asked} == {"reuse"} and len(engine.asked) == 4
    assert (again.detail["steps_reused"], other.detail["steps_reused"]) == (4, 2)
    assert len(notes) == 1


def test_one_sample_off_and_nothing_is_resumed_any_more(engine: ResumingEngine) -> None:
    engine.skew = 1
    notes: list[str] = []
    evaluator = after_baseline(engine, notes)
    measurement, frames = evaluator.measure(LATE)
    assert engine.asked == [(LATE.key, CAT, "reuse"), (LATE.key, CAT, "none"), (LATE.key, DOG, "none")]
    assert notes == [
        "resumed after 2 kept steps, the frames were not those of the full run: every generation runs in full"
    ]
    assert measurement.detail["steps_reused"] == 0
    whole = [engine.generate(LATE, case).frames for case in (CAT, DOG)]
    assert all(np.array_equal(one, other) for one, other in zip(frames, whole, strict=True))
    engine.asked.clear()
    evaluator.measure(EVERYTHING)
    evaluator.check_holdout(LATE)
    assert {prefix for _, _, prefix in engine.asked} == {"none"} and len(notes) == 1


def test_a_record_has_no_frames_that_could_differ(engine: ResumingEngine) -> None:
    def recorded(generation: Generation) -> Generation:
        return replace(generation, frames=None, recorded=CaseQuality.of_identical(engine.asked[-1][1]))

    engine.change = recorded
    notes: list[str] = []
    evaluator = after_baseline(engine, notes)
    for _ in range(2):
        assert evaluator.measure(LATE)[0].detail["steps_reused"] == 4
    assert {prefix for _, _, prefix in engine.asked} == {"reuse"} and notes == []


def test_a_resumed_run_without_frames_cannot_be_checked(engine: ResumingEngine) -> None:
    evaluator = after_baseline(engine)
    engine.change = lambda generation: replace(generation, frames=None)
    with pytest.raises(EngineError, match="returned no frames for prompt 'a cat'; nothing can be compared"):
        evaluator.measure(LATE)


def test_a_run_that_reused_nothing_proves_nothing(engine: ResumingEngine) -> None:
    notes: list[str] = []
    evaluator = after_baseline(engine, notes)
    evaluator.measure(EVERYTHING)
    assert notes == [] and len(engine.asked) == 2
    evaluator.measure(LATE)
    assert len(notes) == 1


def test_a_baseline_that_was_taken_over_left_nothing_to_go_on_from(engine: ResumingEngine) -> None:
    evaluator = after_baseline(engine)
    later, notes = ResumingEngine(), list[str]()
    resumed = Evaluator(later, WORK, PROFILE, note=notes.append)
    resumed.adopt_baseline(evaluator.reference_frames())
    assert resumed.measure(LATE)[0].detail["steps_reused"] == 0 and notes == []
    assert resumed.measure(LATE)[0].detail["steps_reused"] == 2 and len(notes) == 1  # of two, the first is checked


# --- held-out prompts -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("profile", [PROFILE, None], ids=["projected", "measured"])
def test_held_out_runs_are_not_timed_and_resume(engine: ResumingEngine, profile: DeviceProfile | None) -> None:
    notes: list[str] = []
    evaluator = Evaluator(engine, WORK, profile, note=notes.append)
    bird, fish = WORK.holdout_cases
    seen = evaluator.check_holdout(LATE)
    assert engine.asked == [
        (NATIVE, bird, "keep"), (LATE.key, bird, "reuse"), (LATE.key, bird, "none"),
        (NATIVE, fish, "keep"), (LATE.key, fish, "reuse"),
    ]  # fmt: skip
    assert [quality.case for quality in seen] == [bird, fish] and len(notes) == 1


# --- the proof ------------------------------------------------------------------------------------------------------


def test_a_resumed_run_is_proven_with_the_calls_of_its_prefix(engine: ResumingEngine) -> None:
    evaluator = after_baseline(engine)
    evaluator.measure(LATE)
    engine.change = lambda g: replace(g, reused_calls=Counter())
    with pytest.raises(NotQuantizedError, match="step 0 layer 0 made 0 native"):
        evaluator.measure(LATE)


def test_the_whole_run_of_the_check_is_proven_too(engine: ResumingEngine) -> None:
    evaluator = after_baseline(engine)
    native = engine.generate(SkipPolicy(), CAT).calls
    engine.change = lambda g: g if g.reused_steps else replace(g, calls=native)
    with pytest.raises(NotQuantizedError, match="nothing ran quantized"):
        evaluator.measure(LATE)
