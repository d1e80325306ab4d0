"""What every engine must do, run over each of them (fa_tuner/engines/base.py)."""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fa_tuner.domain.errors import EngineError, NotFoundError, UsageError
from fa_tuner.domain.policy import DTYPES, NATIVE, Grid, SkipPolicy
from fa_tuner.domain.selector import SkipSelector
from fa_tuner.domain.workload import Case, Workload
from fa_tuner.engines.base import CellCall, Description, Engine, Generation, Shadow
from fa_tuner.engines.registry import engine_class

STEPS = 3
Opened = tuple[type[Engine], Workload, dict[str, str]]


def _replay(request: pytest.FixtureRequest) -> Opened:
    """A table of every fp8 policy, with some shadows."""
    from fa_tuner.engines.replay import ReplayEngine
    from fa_tuner.engines.synthetic import synthetic_landscape
    from tests.support.tables import every_policy, tabulated

    path = request.getfixturevalue("tmp_path_factory").mktemp("replay") / "landscape.json.gz"
    formula = synthetic_landscape(STEPS, 2, prompts=2, psnr_db={"fp8": 30.0})
    answering = synthetic_landscape(STEPS, 2, prompts=2, psnr_db={"fp8": 30.0}, shadow_noise=0.0)
    shadows = {
        case: {shadow: value for shadow in every_shadow(formula.grid) if (value := answering.shadow(shadow, case))}
        for case in formula.workload.cases
    }
    replace(tabulated(formula, every_policy(formula.grid)), shadows=shadows).write(path)
    return ReplayEngine, ReplayEngine.recorded_workload(path), {}


def _replay_formula(request: pytest.FixtureRequest) -> Opened:
    """A formula, with noisy times that count as measured."""
    from fa_tuner.engines.replay import ReplayEngine
    from fa_tuner.engines.synthetic import synthetic_landscape

    path = request.getfixturevalue("tmp_path_factory").mktemp("replay") / "landscape.json"
    synthetic_landscape(STEPS, 3, prompts=2, shadow_noise=0.3, growth=0.2).write(path)
    noise = "spread=0.05,drift=0.1,outliers=0.05,seed=1"
    return ReplayEngine, ReplayEngine.recorded_workload(path), {"noise": noise, "latency": "measured"}


def _diffusers(request: pytest.FixtureRequest) -> Opened:
    from fa_tuner.engines.diffusers import DiffusersEngine

    workload = Workload(
        model=str(request.getfixturevalue("tiny_wan")), prompts=("red digit moving left", "blue digit moving right"),
        height=32, width=32, frames=5, steps=STEPS, guidance=4.0,
    )  # fmt: skip
    return DiffusersEngine, workload, {"device": "cpu", "torch_dtype": "float32"}


def _diffusers_unguided(request: pytest.FixtureRequest) -> Opened:
    """One forward a step."""
    cls, workload, options = _diffusers(request)
    return cls, replace(workload, guidance=1.0), options


def _diffusers_i2v(request: pytest.FixtureRequest) -> Opened:
    from hashlib import sha256

    from PIL import Image

    cls, workload, options = _diffusers(request)
    path: Path = request.getfixturevalue("tmp_path_factory").mktemp("picture") / "picture.png"
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    digest = sha256(path.read_bytes()).hexdigest()
    model = str(request.getfixturevalue("tiny_wan_i2v"))
    return cls, replace(workload, model=model, task="i2v", image=digest), {**options, "image": str(path)}


def _vllm_omni(request: pytest.FixtureRequest) -> Opened:
    """On the emulated NPU, in its own environment."""
    from fa_tuner.engines.vllm_omni.engine import VllmOmniEngine

    workload = Workload(
        model=str(Path(__file__).parents[2] / "studies" / "demo" / "model"),
        prompts=("red digit moving left", "blue digit moving right"),
        height=32, width=32, frames=5, steps=STEPS, guidance=4.0,
    )  # fmt: skip
    return VllmOmniEngine, workload, {"dtype": "float32"}


def _replay_without_shadows(request: pytest.FixtureRequest) -> Opened:
    from fa_tuner.engines.replay import ReplayEngine
    from fa_tuner.engines.synthetic import synthetic_landscape

    path = request.getfixturevalue("tmp_path_factory").mktemp("replay") / "landscape.json"
    synthetic_landscape(STEPS, 2, prompts=2).write(path)
    return ReplayEngine, ReplayEngine.recorded_workload(path), {}


def _diffusers_without_prefixes(request: pytest.FixtureRequest) -> Opened:
    cls, workload, options = _diffusers(request)
    return cls, workload, {**options, "prefix_cache_mb": "0"}


# vllm-omni changes much of what is installed, so it has an environment of its own: make test-omni
ENGINES = (
    [_vllm_omni]
    if os.environ.get("FA_TUNE_EMULATE_NPU") == "1"
    else [
        _replay, _replay_formula, _replay_without_shadows,
        _diffusers, _diffusers_unguided, _diffusers_i2v, _diffusers_without_prefixes,
    ]
)  # fmt: skip


@pytest.fixture(scope="module", params=ENGINES, ids=lambda make: make.__name__.lstrip("_"))
def setting(request: pytest.FixtureRequest) -> Opened:
    make: Callable[[pytest.FixtureRequest], Opened] = request.param
    return make(request)


@pytest.fixture(scope="module")
def engine(setting: Opened) -> Iterator[Engine]:
    cls, workload, options = setting
    opened = cls.open(workload, options)
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def case(setting: Opened) -> Case:
    return setting[1].cases[0]


def policies_of(description: Description) -> list[SkipPolicy]:
    """Everything, the first or last step or layer kept, the corners, none."""
    grid, dtype = description.grid, description.dtypes[0]
    first, last = grid.layers[0], grid.layers[-1]
    sides = [((), ()), ((0,), ()), ((grid.steps - 1,), ()), ((), (first,)), ((), (last,)), ((0,), (last,))]
    sides += [(tuple(range(1, grid.steps)), grid.layers[1:]), (tuple(range(grid.steps)), ()), ((), grid.layers)]
    return [SkipPolicy(dtype, SkipSelector.of(steps), SkipSelector.of(layers)) for steps, layers in sides]


def expected_calls(policy: SkipPolicy, description: Description) -> Counter[CellCall]:
    grid = description.grid
    return Counter({
        (step, layer, policy.dtype if policy.quantizes(step, layer) else NATIVE): description.calls_per_cell
        for step in range(grid.steps)
        for layer in grid.layers
    })  # fmt: skip


def every_shadow(grid: Grid, dtype: str = "fp8") -> list[Shadow]:
    """Of all layers and of each alone, at every step."""
    sides = [grid.layers, *((layer,) for layer in grid.layers)]
    return [Shadow(step, layers, dtype) for step in range(grid.steps) for layers in sides]


def steps_in_common(one: SkipPolicy, other: SkipPolicy, grid: Grid) -> int:
    """How many first steps of two policies are the same, at most all but the last."""
    for step in range(grid.steps - 1):
        for layer in grid.layers:
            if (one.quantizes(step, layer), one.dtype) != (other.quantizes(step, layer), other.dtype) and (
                one.quantizes(step, layer) or other.quantizes(step, layer)
            ):
                return step
    return grid.steps - 1


def assert_sound(generation: Generation, workload: Workload, case: Case) -> None:
    assert generation.cross_attention_quantized == 0
    assert math.isfinite(generation.denoise_seconds) and generation.denoise_seconds > 0
    assert generation.denoise_seconds <= generation.end_to_end_seconds < math.inf
    assert all(math.isfinite(seconds) and seconds >= 0 for seconds in generation.phases.values())
    assert generation.peak_memory_mb is None or 0 < generation.peak_memory_mb < math.inf
    if generation.frames is None:
        assert generation.recorded is not None and generation.recorded.case == case
    else:
        assert generation.recorded is None
        assert generation.frames.dtype == np.uint8
        assert generation.frames.shape == (workload.frames, workload.height, workload.width, 3)


def same(one: Generation, other: Generation) -> bool:
    if one.frames is None or other.frames is None:
        return one.recorded == other.recorded
    return np.array_equal(one.frames, other.frames)


def test_it_describes_itself(engine: Engine, setting: Opened) -> None:
    description, workload = engine.describe(), setting[1]
    assert description == engine.describe()
    assert description.grid.steps == workload.steps
    assert list(description.grid.layers) == sorted(set(description.grid.layers)) and description.grid.layers[0] >= 0
    assert description.calls_per_cell >= 1
    assert description.dtypes and set(description.dtypes) <= set(DTYPES)
    assert description.latency in ("measured", "projected")
    assert description.operator in ("real", "emulated", "replayed")
    assert description.device and description.pipeline
    assert json.loads(json.dumps(description.environment)) == description.environment


def test_it_is_found_by_its_name(engine: Engine) -> None:
    found = [cls for cls in _installed(engine.describe().engine) if isinstance(engine, cls)]
    if not found:
        pytest.skip("fa-tune is not installed here, so there are no entry points")
    assert found[0].unavailable_because() is None


def test_it_describes_the_same_thing_when_opened_again(engine: Engine, setting: Opened) -> None:
    cls, workload, options = setting
    again = cls.open(workload, options)
    assert again.describe().fingerprint == engine.describe().fingerprint
    again.close()


def test_native_quantizes_nothing(engine: Engine, setting: Opened, case: Case) -> None:
    description = engine.describe()
    generation = engine.generate(SkipPolicy(), case)
    assert_sound(generation, setting[1], case)
    assert generation.calls == expected_calls(SkipPolicy(), description)
    grid = description.grid
    assert generation.calls.total() == grid.steps * len(grid.layers) * description.calls_per_cell
    assert {dtype for _, _, dtype in generation.calls} == {NATIVE}


@pytest.mark.parametrize("index", range(9))
def test_exactly_the_asked_cells_are_quantized(engine: Engine, setting: Opened, case: Case, index: int) -> None:
    policy = policies_of(engine.describe())[index]
    generation = engine.generate(policy, case)
    assert_sound(generation, setting[1], case)
    assert generation.calls == expected_calls(policy, engine.describe())


def test_every_dtype_it_claims_runs(engine: Engine, setting: Opened, case: Case) -> None:
    for dtype in engine.describe().dtypes:
        policy = SkipPolicy(dtype)
        generation = engine.generate(policy, case)
        assert_sound(generation, setting[1], case)
        assert generation.calls == expected_calls(policy, engine.describe())


def test_the_same_run_twice_is_the_same(engine: Engine, setting: Opened) -> None:
    everything = SkipPolicy(engine.describe().dtypes[0])
    for case in setting[1].cases:
        for policy in (SkipPolicy(), everything):
            assert same(engine.generate(policy, case), engine.generate(policy, case))


def test_quantization_changes_the_result(engine: Engine, case: Case) -> None:
    everything = SkipPolicy(engine.describe().dtypes[0])
    assert not same(engine.generate(SkipPolicy(), case), engine.generate(everything, case))


def test_a_policy_that_quantizes_no_cell_is_the_native_one(engine: Engine, case: Case) -> None:
    *_, no_step, no_layer = policies_of(engine.describe())
    native = engine.generate(SkipPolicy(), case)
    for policy in (no_step, no_layer):
        generation = engine.generate(policy, case)
        assert same(generation, native)
        assert {dtype for _, _, dtype in generation.calls} == {NATIVE}


def test_policies_leave_no_residue(engine: Engine, setting: Opened) -> None:
    policies = [SkipPolicy(), *policies_of(engine.describe())[:4]]
    cases = setting[1].cases
    before = {(policy, case): engine.generate(policy, case) for policy in policies for case in cases}
    for policy in reversed(policies):
        for case in reversed(cases):
            again = engine.generate(policy, case)
            assert same(again, before[policy, case])
            assert again.calls == before[policy, case].calls


def test_generations_do_not_share_their_counts(engine: Engine, case: Case) -> None:
    first = engine.generate(SkipPolicy(), case)
    kept = Counter(first.calls)
    engine.generate(SkipPolicy(engine.describe().dtypes[0]), case)
    assert first.calls == kept


# --- kept prefixes --------------------------------------------------------------------------------------------------


@pytest.fixture
def fresh(setting: Opened) -> Iterator[Engine]:
    """With nothing kept yet."""
    cls, workload, options = setting
    opened = cls.open(workload, options)
    yield opened
    opened.close()


def test_a_resumed_run_is_the_whole_one(fresh: Engine, setting: Opened, case: Case) -> None:
    """In its result, and in the calls of what was run and of what was not; and nothing is run that need not be."""
    description, before = fresh.describe(), [SkipPolicy()]
    policies = policies_of(description)
    whole = {policy: fresh.generate(policy, case) for policy in policies}
    kept = fresh.generate(SkipPolicy(), case, "keep")
    assert kept.reused_steps == 0 and kept.calls == expected_calls(SkipPolicy(), description)
    for policy in policies * 2:
        resumed = fresh.generate(policy, case, "reuse")
        assert_sound(resumed, setting[1], case)
        assert same(resumed, whole[policy])
        assert resumed.calls + resumed.reused_calls == expected_calls(policy, description)
        assert {step for step, _, _ in resumed.calls} == set(range(resumed.reused_steps, STEPS))
        canonical = policy.on(description.grid)
        shared = max(steps_in_common(canonical, other, description.grid) for other in before)
        assert resumed.reused_steps == (shared if description.resumes else 0)
        before.append(canonical)


def test_a_run_that_may_not_neither_keeps_nor_resumes(fresh: Engine, case: Case) -> None:
    everything, resumes = SkipPolicy(fresh.describe().dtypes[0]), fresh.describe().resumes
    fresh.generate(everything, case, "none")
    assert fresh.generate(everything, case, "reuse").reused_steps == 0
    for prefix, reused in (("none", 0), ("keep", 0), ("reuse", STEPS - 1)):
        again = fresh.generate(everything, case, prefix)  # type: ignore[arg-type]
        assert again.reused_steps == (reused if resumes else 0)
        assert again.calls + again.reused_calls == expected_calls(everything, fresh.describe())


def test_a_prefix_is_that_of_its_case(fresh: Engine, setting: Opened) -> None:
    one, other = setting[1].cases
    fresh.generate(SkipPolicy(), one, "keep")
    assert fresh.generate(SkipPolicy(), other, "reuse").reused_steps == 0


# --- shadows --------------------------------------------------------------------------------------------------------


def test_shadows_change_nothing_of_the_run(fresh: Engine, setting: Opened, case: Case) -> None:
    description = fresh.describe()
    shadows = every_shadow(description.grid, description.dtypes[0])
    alone, beside = fresh.generate(SkipPolicy(), case), fresh.generate(SkipPolicy(), case, "keep", shadows)
    assert_sound(beside, setting[1], case)
    assert same(beside, alone) and beside.calls == alone.calls
    assert alone.shadows == {} and set(beside.shadows) == set(shadows if description.shadows else ())
    assert all(0 < value < math.inf for value in beside.shadows.values())
    assert fresh.generate(SkipPolicy(), case, "none", shadows).shadows == beside.shadows
    assert same(fresh.generate(SkipPolicy(), case), alone), "they leave no residue"


def test_shadows_that_cannot_be_given_are_left_out(fresh: Engine, case: Case) -> None:
    """Of what is not in the grid, and of steps that are not run."""
    description = fresh.describe()
    grid, dtype = description.grid, description.dtypes[0]
    odd = [Shadow(grid.steps, grid.layers, dtype), Shadow(-1, grid.layers, dtype), Shadow(0, (), dtype)]
    odd += [Shadow(0, (grid.layers[-1] + 1,), dtype), Shadow(0, grid.layers, "fp6"), Shadow(0, grid.layers, NATIVE)]
    assert fresh.generate(SkipPolicy(), case, "keep", odd).shadows == {}
    resumed = fresh.generate(SkipPolicy(), case, "reuse", every_shadow(grid, dtype))
    started = range(resumed.reused_steps, STEPS)
    assert {shadow.step for shadow in resumed.shadows} == (set(started) if description.shadows else set())


def test_shadows_are_of_their_case(fresh: Engine, setting: Opened) -> None:
    description = fresh.describe()
    shadows = every_shadow(description.grid, description.dtypes[0])
    one, other = (fresh.generate(SkipPolicy(), case, "none", shadows).shadows for case in setting[1].cases)
    assert one != other if description.shadows else one == other == {}


# --- the end --------------------------------------------------------------------------------------------------------


def test_closed_is_closed(setting: Opened, case: Case) -> None:
    cls, workload, options = setting
    engine = cls.open(workload, options)
    engine.generate(SkipPolicy(), case)
    engine.close()
    engine.close()
    with pytest.raises(EngineError):
        engine.generate(SkipPolicy(), case)


def test_an_unknown_option_is_refused(setting: Opened) -> None:
    cls, workload, options = setting
    with pytest.raises(UsageError, match="no_such_option"):
        cls.open(workload, {**options, "no_such_option": "1"})


def test_a_model_that_is_not_there_is_not_found(setting: Opened, tmp_path: Path) -> None:
    cls, workload, options = setting
    with pytest.raises(NotFoundError):
        cls.open(replace(workload, model=str(tmp_path / "no" / "such" / "model")), options)


def _installed(name: str) -> list[type[Engine]]:
    try:
        return [engine_class(name)]
    except UsageError:
        return []
