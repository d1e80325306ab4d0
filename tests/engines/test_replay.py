"""The replay engine beyond the contract: what is recorded, what is not, and noise on its times."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import pytest

from fa_tuner.domain.errors import ConflictError, DocumentError, EngineError, NotFoundError, UsageError
from fa_tuner.domain.policy import SkipPolicy
from fa_tuner.domain.workload import Case
from fa_tuner.engines.base import Shadow
from fa_tuner.engines.replay import LatencyNoise, ReplayEngine
from fa_tuner.engines.synthetic import synthetic_landscape
from tests.support.tables import every_policy, tabulated

FORMULA = synthetic_landscape(3, 2, prompts=2, holdout=1, seed=3, native_seconds=10.0)
EVERYTHING = SkipPolicy.parse("/", ("fp8",), FORMULA.grid)
HALF = SkipPolicy.parse("/0", ("fp8",), FORMULA.grid)


@pytest.fixture
def formula(tmp_path: Path) -> Path:
    FORMULA.write(tmp_path / "formula.json")
    return tmp_path / "formula.json"


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """Every policy but one, of the searched prompts only."""
    policies = [policy for policy in every_policy(FORMULA.grid) if policy != HALF]
    workload = replace(FORMULA.workload, holdout=())
    tabulated(FORMULA, policies, workload=workload).write(tmp_path / "table.json.gz")
    return tmp_path / "table.json.gz"


def opened(path: Path, **options: Any) -> ReplayEngine:
    return ReplayEngine.open(ReplayEngine.recorded_workload(path), options)


def test_the_recorded_workload_opens(formula: Path) -> None:
    workload = ReplayEngine.recorded_workload(formula)
    assert workload == replace(FORMULA.workload, model=str(formula))
    assert ReplayEngine.unavailable_because() is None
    assert opened(formula).describe().grid == FORMULA.grid


def test_it_describes_what_was_recorded(table: Path) -> None:
    description = opened(table).describe()
    assert description.engine == "replay"
    assert description.operator == "replayed"
    assert description.latency == "projected"
    assert description.dtypes == ("fp8", "mxfp8", "mxfp4")
    assert description.versions["x"] == "1"
    assert opened(table, latency="measured").describe().latency == "measured"


def test_another_file_is_another_environment(formula: Path, tmp_path: Path) -> None:
    replace(FORMULA, made_by="somebody else").write(tmp_path / "other.json")
    assert opened(formula).describe().fingerprint != opened(tmp_path / "other.json").describe().fingerprint


def test_it_answers_what_is_recorded(formula: Path) -> None:
    engine = opened(formula)
    for case in FORMULA.workload.cases + FORMULA.workload.holdout_cases:
        generation = engine.generate(EVERYTHING, case)
        assert generation.frames is None
        assert generation.recorded == FORMULA.record.quality(EVERYTHING, case)
        assert generation.denoise_seconds == pytest.approx(10.0 * (1 - 0.5 * 0.2))
        assert generation.end_to_end_seconds == pytest.approx(generation.denoise_seconds + 1.0)


def test_native_is_identical_to_itself(formula: Path) -> None:
    generation = opened(formula).generate(SkipPolicy(), FORMULA.workload.cases[0])
    assert generation.recorded is not None and generation.recorded.identical
    assert generation.recorded.metrics["psnr_db"] == 100.0
    assert generation.denoise_seconds == 10.0


def test_a_policy_that_is_not_recorded_fails_alone(table: Path) -> None:
    engine, case = opened(table), FORMULA.workload.cases[0]
    with pytest.raises(EngineError, match=r"policy fp8:/0 is not recorded .* the landscape has 21 policies"):
        engine.generate(HALF, case)
    assert engine.generate(EVERYTHING, case).recorded is not None


def test_a_case_or_dtype_that_is_not_recorded_fails_alone(table: Path) -> None:
    engine, case = opened(table), FORMULA.workload.cases[0]
    with pytest.raises(EngineError, match="prompt 'else' with seed 0 is not recorded; the landscape has prompt"):
        engine.generate(EVERYTHING, Case("else", 0))
    with pytest.raises(EngineError, match="mxfp4:/ is not recorded"):
        engine.generate(SkipPolicy("mxfp4"), case)
    assert engine.generate(SkipPolicy(), case).recorded is not None


def test_a_dtype_outside_the_record_is_named(tmp_path: Path) -> None:
    synthetic_landscape(2, 2, psnr_db={"fp8": 30.0}).write(tmp_path / "x.json")
    engine = opened(tmp_path / "x.json")
    with pytest.raises(EngineError, match="dtype mxfp4 is not recorded; the landscape has fp8"):
        engine.generate(SkipPolicy("mxfp4"), ReplayEngine.recorded_workload(tmp_path / "x.json").cases[0])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"height": 720}, "height 480, not 720"),
        ({"width": 16, "frames": 5}, "width 832, not 16; frames 81, not 5"),
        ({"steps": 40}, "steps 3, not 40"),
        ({"guidance": 1.0}, "guidance 5.0, not 1.0"),
        ({"negative_prompt": "x"}, "negative_prompt"),
        ({"flow_shift": 3.0}, "flow_shift None, not 3.0"),
        (
            {"prompts": ("a cat",)},
            "prompt 'a cat' with seed 0 is not recorded; .* prompt 'synthetic prompt 0' with seed 0",
        ),
        ({"seeds": (0, 1)}, "prompt 'synthetic prompt 0' with seed 1 is not recorded"),
        ({"holdout": ("a cat",)}, "prompt 'a cat'"),
    ],
)
def test_another_workload_is_a_conflict(formula: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConflictError, match=message):
        ReplayEngine.open(replace(ReplayEngine.recorded_workload(formula), **change), {})


def test_fewer_prompts_or_other_roles_are_fine(formula: Path) -> None:
    recorded = ReplayEngine.recorded_workload(formula)
    fewer = replace(recorded, prompts=recorded.holdout, holdout=recorded.prompts[:1], options={"a": 1})
    engine = ReplayEngine.open(fewer, {})
    assert engine.generate(EVERYTHING, fewer.cases[0]).recorded is not None


def test_what_cannot_be_opened(formula: Path, tmp_path: Path) -> None:
    with pytest.raises(NotFoundError):
        ReplayEngine.open(replace(FORMULA.workload, model=str(tmp_path / "none.json")), {})
    (tmp_path / "x.json").write_text("{}")
    with pytest.raises(DocumentError):
        ReplayEngine.recorded_workload(tmp_path / "x.json")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": "cpu"}, "no option 'device'; it takes noise and latency"),
        ({"latency": "fitted"}, "choose measured or projected"),
        ({"latency": None}, "choose measured or projected"),
        ({"noise": "spread"}, "name=number"),
        ({"noise": "spread=x"}, "name=number"),
        ({"noise": "spread=0.1,spread=0.2"}, "given twice"),
        ({"noise": "width=0.1"}, "'width' is unknown; choose of spread, drift, outliers, seed"),
        ({"noise": "spread=nan"}, "spread is nan"),
        ({"noise": "spread=0.6"}, "between 0 and 0.5"),
        ({"noise": "outliers=-1"}, "between 0 and 1.0"),
        ({"noise": "drift=inf"}, "drift is inf"),
        ({"noise": "seed=1.5"}, "name=number"),
        ({"noise": {"seed": -1}}, "seed is -1"),
        ({"noise": {"spread": True}}, "spread is True"),
        ({"noise": {"spread": "0.1"}}, "spread is '0.1'"),
        ({"noise": {1: 1}}, "'1' is unknown"),
        ({"noise": 3}, "must be text"),
    ],
)
def test_bad_options_are_refused(formula: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        opened(formula, **options)


class TestNoise:
    def times(self, path: Path, spec: Any, count: int = 400) -> list[float]:
        engine = opened(path, noise=spec)
        return [engine.generate(SkipPolicy(), FORMULA.workload.cases[0]).denoise_seconds for _ in range(count)]

    def test_none_by_default(self, formula: Path) -> None:
        assert set(self.times(formula, "")) == {10.0}
        assert LatencyNoise.parse("") == LatencyNoise.parse({}) == LatencyNoise()

    def test_text_and_mapping_are_the_same(self) -> None:
        spec = {"spread": 0.05, "drift": 0.1, "outliers": 0.05, "seed": 1}
        assert LatencyNoise.parse("spread=0.05, drift = 0.1,outliers=0.05,seed=1") == LatencyNoise.parse(spec)

    def test_deterministic_by_seed(self, formula: Path) -> None:
        spec = "spread=0.05,drift=0.1,outliers=0.05,seed={}"
        assert self.times(formula, spec.format(1)) == self.times(formula, spec.format(1))
        assert self.times(formula, spec.format(1)) != self.times(formula, spec.format(2))

    def test_spread(self, formula: Path) -> None:
        times = self.times(formula, "spread=0.05,seed=1")
        assert mean(times) == pytest.approx(10.0, rel=0.01)
        assert stdev(times) == pytest.approx(0.5, rel=0.15)

    def test_drift_is_slow_and_levels_off(self, formula: Path) -> None:
        times = self.times(formula, "drift=0.2")
        assert times == sorted(times)
        assert times[0] == 10.0
        assert times[1] / times[0] < 1.003
        assert times[-1] == pytest.approx(12.0, rel=0.01)

    def test_outliers_are_as_often_as_asked(self, formula: Path) -> None:
        times = self.times(formula, "outliers=0.05,seed=2", 2000)
        outliers = [time for time in times if time != 10.0]
        assert 60 < len(outliers) < 150
        assert 15.0 <= min(outliers) < 16.0 and 29.0 < max(outliers) <= 30.0

    def test_times_stay_above_0(self) -> None:
        noise, rng = LatencyNoise(spread=0.5, outliers=1.0), random.Random(0)
        assert all(noise.factor(rng, 0) > 0.1 for _ in range(10_000))

    def test_quality_is_not_touched(self, formula: Path) -> None:
        engine, case = opened(formula, noise="spread=0.3"), FORMULA.workload.cases[1]
        assert engine.generate(EVERYTHING, case).recorded == engine.generate(EVERYTHING, case).recorded


class TestReuse:
    def test_the_time_is_that_of_the_steps_run(self, formula: Path) -> None:
        engine, case = opened(formula), FORMULA.workload.cases[0]
        whole = engine.generate(EVERYTHING, case, "keep")
        resumed = engine.generate(EVERYTHING, case, "reuse")
        assert resumed.reused_steps == 2
        assert resumed.denoise_seconds == pytest.approx(whole.denoise_seconds / 3)
        assert resumed.end_to_end_seconds - resumed.denoise_seconds == pytest.approx(1.0)
        assert resumed.recorded == whole.recorded

    def test_a_prefix_of_other_layers_is_another(self, formula: Path) -> None:
        engine, case = opened(formula), FORMULA.workload.cases[0]
        engine.generate(EVERYTHING, case, "keep")
        assert engine.generate(HALF, case, "reuse").reused_steps == 0

    def test_steps_in_common_after_a_difference_are_not_shared(self, formula: Path) -> None:
        engine, case = opened(formula), FORMULA.workload.cases[0]
        engine.generate(SkipPolicy.parse("0/", ("fp8",), FORMULA.grid), case, "keep")
        assert engine.generate(EVERYTHING, case, "reuse").reused_steps == 0


class TestShadows:
    def test_they_are_those_beside_native(self, tmp_path: Path) -> None:
        formula = synthetic_landscape(3, 2, prompts=2, seed=3, shadow_noise=0.0)
        formula.write(tmp_path / "x.json")
        engine, case = opened(tmp_path / "x.json"), formula.workload.cases[0]
        shadow = Shadow(1, (0,), "fp8")
        assert engine.generate(SkipPolicy(), case, "none", [shadow]).shadows == {shadow: formula.shadow(shadow, case)}
        assert engine.generate(EVERYTHING, case, "none", [shadow]).shadows == {}

    def test_what_is_not_recorded_is_left_out(self, tmp_path: Path) -> None:
        table, case = tabulated(FORMULA, every_policy(FORMULA.grid)), FORMULA.workload.cases[0]
        recorded, other = Shadow(0, (0, 1), "fp8"), Shadow(0, (1,), "fp8")
        replace(table, shadows={case: {recorded: 0.5}}).write(tmp_path / "x.json")
        engine = opened(tmp_path / "x.json")
        assert engine.describe().shadows
        assert engine.generate(SkipPolicy(), case, "none", [recorded, other]).shadows == {recorded: 0.5}
        second = FORMULA.workload.cases[1]
        assert engine.generate(SkipPolicy(), second, "none", [recorded]).shadows == {}
