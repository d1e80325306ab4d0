"""Policies to measurements: what is generated, in which order, and what becomes of an engine that fails."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fa_tuner.domain.errors import EngineError, NotQuantizedError
from fa_tuner.domain.measurement import IDENTICAL_DB
from fa_tuner.domain.policy import NATIVE, Grid, SkipPolicy
from fa_tuner.domain.workload import Case, Workload
from fa_tuner.engines.base import Description, Engine, Generation
from fa_tuner.engines.replay import ReplayEngine
from fa_tuner.engines.synthetic import synthetic_landscape
from fa_tuner.evaluate.evaluator import Evaluator
from fa_tuner.evaluate.profile import DeviceProfile

GRID = Grid(2, (0, 1))
WORK = Workload("m", ("a cat", "a dog"), 16, 16, 5, 2, holdout=("a bird",), seeds=(0, 7))
FIRST, *_ = CASES = WORK.cases
PROFILE = DeviceProfile("p", "here", 10.0, 5.0, {"fp8": 4.0})
POLICY = SkipPolicy.parse("0/", ("fp8",), GRID)
Change = Callable[[Generation], Generation]


@dataclass
class FakeEngine(Engine):
    """Frames from the case, a few samples off for each quantized cell; a clock that tells 10 s and 8 s. What it ran
    is in `ran`; `changes` alters the n-th generation."""

    latency: Any = "measured"
    noise: bool = False
    ran: list[tuple[str, Case]] = field(default_factory=list)
    changes: dict[int, Change] = field(default_factory=dict)

    @classmethod
    def unavailable_because(cls) -> str | None:
        return None

    @classmethod
    def open(cls, workload: Workload, options: Mapping[str, Any]) -> FakeEngine:
        return cls()

    def describe(self) -> Description:
        return Description("fake", GRID, 1, ("fp8",), self.latency, "real", "a card", "WanPipeline")

    def generate(self, policy: SkipPolicy, case: Case, prefix: str = "none", shadows: Any = ()) -> Generation:
        number = len(self.ran)
        self.ran.append((policy.key, case))
        cells = Counter({
            (step, layer, policy.dtype if policy.quantizes(step, layer) else NATIVE): 1
            for step in range(GRID.steps) for layer in GRID.layers
        })  # fmt: skip
        quantized = sum(dtype != NATIVE for _, _, dtype in cells)
        rng = np.random.default_rng([case.seed, len(case.prompt), case.prompt[-1:].encode()[0]])
        frames = rng.integers(20, 200, (WORK.frames, WORK.height, WORK.width, 3), dtype=np.uint8)
        frames[0, 0, : 2 * quantized] += np.uint8(30)
        if self.noise:
            frames[1, 1, 1, 0] += np.uint8(number % 5)
        seconds = 8.0 if quantized else 10.0
        made = Generation(frames, cells, seconds, seconds + 2, peak_memory_mb=100.0 + number)
        return self.changes.get(number, lambda g: g)(made)

    def close(self) -> None:
        """Nothing was loaded."""


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine()


def runs(*keys: str, cases: tuple[Case, ...] = CASES) -> list[tuple[str, Case]]:
    return [(key, case) for case in cases for key in keys]


# --- the baseline ---------------------------------------------------------------------------------------------------


def test_the_baseline_runs_twice_for_its_floor(engine: FakeEngine) -> None:
    measurement, baseline = Evaluator(engine, WORK, PROFILE).run_baseline()
    assert engine.ran == runs("native", "native")
    assert baseline.noise_floor_db == IDENTICAL_DB
    assert (baseline.native_seconds, baseline.native_end_to_end_seconds) == (40.0, 48.0)
    assert measurement.policy.is_native
    assert [quality.case for quality in measurement.cases] == list(CASES)
    assert all(quality.identical for quality in measurement.cases)
    assert measurement.latency.relative == 1.0 and measurement.latency.source == "projected"
    assert measurement.coverage.quantized_calls == 0 and measurement.coverage.native_calls == 8 * 4
    assert measurement.coverage.proven


def test_the_floor_is_the_worst_cases() -> None:
    engine = FakeEngine(noise=True)
    engine.changes[3] = lambda g: replace(g, frames=np.roll(g.frames, 1))  # the second case's second run
    measurement, baseline = Evaluator(engine, WORK, PROFILE).run_baseline()
    assert 0 < baseline.noise_floor_db < 20
    assert baseline.noise_floor_db == min(quality.metrics["psnr_db"] for quality in measurement.cases)
    assert not measurement.cases[0].identical and measurement.cases[0].metrics["psnr_db"] > 50


def test_a_measured_baseline_warms_up_and_repeats(engine: FakeEngine) -> None:
    measurement, baseline = Evaluator(engine, WORK, None, repeats=3).run_baseline()
    assert engine.ran == [("native", FIRST), *runs("native", "native") * 3]
    assert measurement.latency.source == "measured" and measurement.latency.relative == 1.0
    assert measurement.latency.spread == 0.0 and measurement.latency.repeats == 3
    assert (baseline.native_seconds, baseline.native_end_to_end_seconds) == (40.0, 48.0)


def test_the_baselines_spread_is_what_native_differs_from_native(engine: FakeEngine) -> None:
    one_case = replace(WORK, prompts=("a cat",), seeds=(0,))
    engine.changes[2] = lambda g: replace(g, denoise_seconds=11.0)  # the second of the first pair
    measurement, _ = Evaluator(engine, one_case, None, repeats=1).run_baseline()
    assert measurement.latency.relative == 1.0
    assert measurement.latency.spread == pytest.approx(0.1)


def test_the_reference_is_the_first_run() -> None:
    engine = FakeEngine(noise=True)
    first = []
    engine.changes[0] = lambda g: first.append(g.frames.copy()) or g  # type: ignore[func-returns-value]
    evaluator = Evaluator(engine, WORK, PROFILE)
    assert evaluator.reference_frames() == []
    evaluator.run_baseline()
    kept = evaluator.reference_frames()
    assert len(kept) == len(CASES)
    assert np.array_equal(kept[0], first[0])


def test_a_kept_baseline_is_compared_with(engine: FakeEngine) -> None:
    before = Evaluator(engine, WORK, PROFILE)
    before.run_baseline()
    again = Evaluator(FakeEngine(), WORK, PROFILE)
    again.adopt_baseline(before.reference_frames())
    assert again.measure(POLICY)[0].cases == before.measure(POLICY)[0].cases


def test_a_kept_baseline_of_other_cases_is_refused(engine: FakeEngine) -> None:
    with pytest.raises(ValueError, match="zip"):
        Evaluator(engine, WORK, PROFILE).adopt_baseline([np.zeros((1, 16, 16, 3), np.uint8)])


def test_a_baseline_that_ran_quantized_is_no_baseline(engine: FakeEngine) -> None:
    engine.changes[1] = lambda g: replace(g, calls=Counter({(0, 0, "fp8"): 1}))
    with pytest.raises(NotQuantizedError, match="under policy native"):
        Evaluator(engine, WORK, PROFILE).run_baseline()


# --- candidates -----------------------------------------------------------------------------------------------------


def test_projected_each_case_runs_once(engine: FakeEngine) -> None:
    evaluator = Evaluator(engine, WORK, PROFILE, repeats=5)
    evaluator.run_baseline()
    engine.ran.clear()
    measurement, frames = evaluator.measure(POLICY)
    assert engine.ran == runs(POLICY.key)
    assert measurement.latency.relative == pytest.approx(0.95)  # half the cells of 1 - 1/10
    assert measurement.latency.source == "projected" and measurement.latency.seconds is None
    assert len(frames) == len(CASES) and frames[0].shape == (5, 16, 16, 3)
    assert measurement.coverage == replace(measurement.coverage, quantized_calls=8, native_calls=8, proven=True)
    assert measurement.coverage.expected_quantized_calls == 8


def test_measured_candidate_and_native_are_interleaved(engine: FakeEngine) -> None:
    evaluator = Evaluator(engine, WORK, None, repeats=2)
    evaluator.run_baseline()
    engine.ran.clear()
    measurement, frames = evaluator.measure(POLICY)
    assert engine.ran == runs(POLICY.key, "native") * 2  # a pair a case, all cases, then again
    latency = measurement.latency
    assert (latency.relative, latency.seconds, latency.end_to_end_seconds) == (pytest.approx(0.8), 32.0, 40.0)
    assert (latency.source, latency.repeats, latency.detail) == ("measured", 2, "a card")
    assert len(frames) == len(measurement.cases) == len(CASES)  # quality once, whatever the repeats
    assert measurement.coverage.quantized_calls == 2 * len(CASES) * 2  # the proof each time


def test_warm_up_comes_first_and_once(engine: FakeEngine) -> None:
    evaluator = Evaluator(engine, WORK, None, repeats=1)
    evaluator.adopt_baseline([engine.generate(SkipPolicy(), case).frames for case in CASES])
    engine.ran.clear()
    evaluator.measure(POLICY)
    evaluator.measure(SkipPolicy("fp8"))
    assert engine.ran == [("native", FIRST), *runs(POLICY.key, "native"), *runs("fp8:/", "native")]


def test_projected_needs_no_warm_up(engine: FakeEngine) -> None:
    Evaluator(engine, WORK, PROFILE).warm_up()
    assert engine.ran == []


def test_a_slow_warm_up_is_not_timed(engine: FakeEngine) -> None:
    engine.changes[0] = lambda g: replace(g, denoise_seconds=1000.0)
    _, baseline = Evaluator(engine, WORK, None, repeats=1).run_baseline()
    assert baseline.native_seconds == 40.0


def test_quality_is_by_case_against_its_own_baseline(engine: FakeEngine) -> None:
    evaluator = Evaluator(engine, WORK, PROFILE)
    evaluator.run_baseline()
    half, _ = evaluator.measure(POLICY)
    everything, _ = evaluator.measure(SkipPolicy("fp8"))
    assert [quality.case for quality in half.cases] == list(CASES)
    assert all(20 < quality.metrics["psnr_db"] < 60 for quality in half.cases)
    assert everything.psnr_db() < half.psnr_db()
    assert half.seconds > 0


def test_what_the_engine_showed_is_kept(engine: FakeEngine) -> None:
    evaluator = Evaluator(engine, WORK, PROFILE)
    evaluator.run_baseline()
    measurement, _ = evaluator.measure(POLICY)
    assert measurement.peak_memory_mb == 100.0 + len(engine.ran) - 1
    assert measurement.detail == {
        "engine_denoise_seconds": 32.0, "engine_end_to_end_seconds": 40.0, "steps_reused": 0,
    }  # fmt: skip


def test_a_candidate_that_fell_back_to_native(engine: FakeEngine) -> None:
    evaluator = Evaluator(engine, WORK, PROFILE)
    evaluator.run_baseline()
    native = engine.generate(SkipPolicy(), FIRST).calls
    engine.changes[len(engine.ran)] = lambda g: replace(g, calls=native)
    with pytest.raises(NotQuantizedError, match="nothing ran quantized"):
        evaluator.measure(POLICY)


def test_the_proof_holds_for_every_repeat(engine: FakeEngine) -> None:
    evaluator = Evaluator(engine, WORK, None, repeats=2)
    evaluator.run_baseline()
    engine.changes[len(engine.ran) + 2 * len(CASES)] = lambda g: replace(g, cross_attention_quantized=1)
    with pytest.raises(NotQuantizedError, match="cross-attention"):
        evaluator.measure(POLICY)


BROKEN: dict[str, Change] = {
    "NaN frames": lambda g: replace(g, frames=np.full(g.frames.shape, np.nan)),
    "float frames": lambda g: replace(g, frames=g.frames.astype(np.float32) / 255),
    "fewer frames": lambda g: replace(g, frames=g.frames[:-1]),
    "another size": lambda g: replace(g, frames=g.frames[:, :8]),
    "0 frames": lambda g: replace(g, frames=g.frames[:0]),
    "nothing": lambda g: replace(g, frames=None),
    "time 0": lambda g: replace(g, denoise_seconds=0.0),
    "negative time": lambda g: replace(g, denoise_seconds=-1.0),
    "infinite time": lambda g: replace(g, end_to_end_seconds=math.inf),
    "NaN time": lambda g: replace(g, denoise_seconds=math.nan),
}


@pytest.mark.parametrize("profile", [PROFILE, None], ids=["projected", "measured"])
@pytest.mark.parametrize("broken", BROKEN)
def test_what_cannot_be_measured_fails_that_policy_alone(
    engine: FakeEngine, broken: str, profile: DeviceProfile | None
) -> None:
    evaluator = Evaluator(engine, WORK, profile, repeats=1)
    evaluator.run_baseline()
    whole, _ = evaluator.measure(POLICY)
    engine.changes[len(engine.ran)] = BROKEN[broken]
    with pytest.raises(EngineError):
        evaluator.measure(POLICY)
    again, _ = evaluator.measure(POLICY)
    assert again.cases == whole.cases


@pytest.mark.parametrize("broken", BROKEN)
def test_a_baseline_that_cannot_be_measured(engine: FakeEngine, broken: str) -> None:
    engine.changes[1] = BROKEN[broken]
    with pytest.raises(EngineError):
        Evaluator(engine, WORK, PROFILE).run_baseline()


def test_a_baseline_that_is_broken_both_times() -> None:
    """Two clips of NaN, or of no frame, agree with each other and would be a floor of 100 dB."""
    for broken in ("NaN frames", "0 frames", "float frames"):
        engine = FakeEngine(changes={0: BROKEN[broken], 1: BROKEN[broken]})
        with pytest.raises(EngineError):
            Evaluator(engine, WORK, PROFILE).run_baseline()


def test_an_engine_that_fails_passes_its_reason_on(engine: FakeEngine) -> None:
    evaluator = Evaluator(engine, WORK, PROFILE)
    evaluator.run_baseline()

    def die(_: Generation) -> Generation:
        raise EngineError("out of memory")

    engine.changes[len(engine.ran)] = die
    with pytest.raises(EngineError, match="out of memory"):
        evaluator.measure(POLICY)


# --- held-out prompts -----------------------------------------------------------------------------------------------


def test_held_out_native_is_generated_once(engine: FakeEngine) -> None:
    evaluator = Evaluator(engine, WORK, PROFILE)
    evaluator.run_baseline()
    engine.ran.clear()
    first, second = evaluator.check_holdout(POLICY), evaluator.check_holdout(SkipPolicy("fp8"))
    new = WORK.holdout_cases
    assert engine.ran == [*runs("native", POLICY.key, cases=new), *runs("fp8:/", cases=new)]
    assert [quality.case for quality in first] == list(new)
    assert min(q.metrics["psnr_db"] for q in first) > min(q.metrics["psnr_db"] for q in second)
    assert len(evaluator.reference_frames()) == len(CASES)  # held-out frames are not among the baseline's


def test_held_out_runs_are_proven_too(engine: FakeEngine) -> None:
    evaluator = Evaluator(engine, WORK, PROFILE)
    evaluator.run_baseline()
    native = engine.generate(SkipPolicy(), FIRST).calls
    engine.changes[len(engine.ran) + 1] = lambda g: replace(g, calls=native)
    with pytest.raises(NotQuantizedError):
        evaluator.check_holdout(POLICY)


def test_no_held_out_prompts(engine: FakeEngine) -> None:
    assert Evaluator(engine, replace(WORK, holdout=()), PROFILE).check_holdout(POLICY) == ()
    assert engine.ran == []


# --- an engine that answers from a record ---------------------------------------------------------------------------


@pytest.fixture
def replayed(tmp_path: Path) -> Iterator[tuple[ReplayEngine, Workload]]:
    synthetic_landscape(3, 2, prompts=2, holdout=1).write(tmp_path / "l.json")
    work = ReplayEngine.recorded_workload(tmp_path / "l.json")
    opened = ReplayEngine.open(work, {"latency": "measured"})
    yield opened, work
    opened.close()


def test_recorded_quality_is_taken_as_it_is(replayed: tuple[ReplayEngine, Workload]) -> None:
    engine, work = replayed
    evaluator = Evaluator(engine, work, None, repeats=2)
    native, baseline = evaluator.run_baseline()
    assert baseline.noise_floor_db == IDENTICAL_DB and all(quality.identical for quality in native.cases)
    policy = SkipPolicy("fp8")
    measurement, frames = evaluator.measure(policy)
    assert frames == [] and evaluator.reference_frames() == []
    assert measurement.cases == tuple(engine.generate(policy, case).recorded for case in work.cases)
    assert measurement.latency.gain == pytest.approx(0.1)  # half in attention, which fp8 makes a fifth faster
    assert [quality.case for quality in evaluator.check_holdout(policy)] == list(work.holdout_cases)
