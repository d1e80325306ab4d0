"""The engine vllm-omni on a process that answers as vLLM-Omni's workers do: what is started, asked and given back."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from fa_tuner.domain.errors import EngineError, UsageError
from fa_tuner.domain.policy import SkipPolicy
from fa_tuner.domain.selector import SkipSelector
from fa_tuner.domain.workload import Workload
from fa_tuner.engines.base import Shadow
from fa_tuner.engines.vllm_omni.engine import VllmOmniEngine
from fa_tuner.evaluate.coverage import prove
from tests.support.omni_process import Omni, died, found, found_npu, it_said, policy, run

NATIVE, EVERYTHING = SkipPolicy(), SkipPolicy("fp8")
Open = Callable[..., VllmOmniEngine]


# --- how it is started ----------------------------------------------------------------------------------------------


def test_it_starts_native_with_the_users_options(omni: Omni, opened: Open, omni_work: Workload) -> None:
    opened({"vae_use_tiling": "false", "start_seconds": "50"}, flow_shift=3.0)
    (process,) = omni.processes
    (request,) = process.requests
    assert request == {
        "do": "open", "model": omni_work.model, "image": None, "prefix_cache_mb": 4096,
        "options": {
            "stage_init_timeout": 50, "init_timeout": 50, "vae_use_tiling": False, "flow_shift": 3.0,
            "diffusion_kv_cache_dtype": "auto",
        },
    }  # fmt: skip
    assert process.quiet == [50]


def test_the_boundary_is_the_workloads(omni: Omni, opened: Open) -> None:
    opened(boundary_ratio=0.5)
    assert omni.requests[0]["options"]["boundary_ratio"] == 0.5
    opened()
    assert "boundary_ratio" not in omni.requests[1]["options"], "left out, vLLM-Omni takes the model's own"


def test_one_that_cannot_start(omni: Omni, opened: Open) -> None:
    omni.trouble = [died("engine vllm-omni ended with 1: no device")]
    with pytest.raises(EngineError, match="ended with 1: no device; its log is"):
        opened()
    assert not omni.running


def test_ranks_that_do_not_answer_when_it_starts(omni: Omni, opened: Open) -> None:
    omni.found, omni.ranks = found(world_size=4), 1
    with pytest.raises(EngineError, match="1 of 4 ranks answered; nothing can be proven without the others"):
        opened()
    assert omni.processes and not omni.running


def test_a_picture_is_handed_on(omni: Omni, opened: Open, omni_work: Workload, tmp_path: Path) -> None:
    Path(omni_work.model, "model_index.json").write_text('{"_class_name": "WanImageToVideoPipeline"}')
    path = tmp_path / "picture.png"
    Image.new("RGB", (4, 4)).save(path)
    opened({"image": str(path)}, task="i2v", image=sha256(path.read_bytes()).hexdigest())
    assert omni.requests[0]["image"] == str(path)


# --- what is generated ----------------------------------------------------------------------------------------------


def test_a_request_says_everything(omni: Omni, opened: Open) -> None:
    engine = opened({"hang_seconds": "12"}, guidance_2=3.0, negative_prompt="grey")
    generation = run(engine, policy("1/0"), prefix="keep")
    assert omni.generations == [{
        "do": "generate", "policy": ("fp8", "1", "0"), "rows": ("fp8/0", "native", "fp8/0"), "prefix": "keep",
        "prompt": "a cat", "negative_prompt": "grey",
        "sampling": {
            "height": 32, "width": 48, "num_frames": 5, "num_inference_steps": 3, "guidance_scale": 4.0,
            "guidance_scale_provided": True, "guidance_scale_2": 3.0, "guidance_scale_2_provided": True, "seed": 7,
            "output_type": "np",
        },
        "shadows": [],
    }]  # fmt: skip
    assert omni.processes[0].quiet[1] == 12
    assert generation.frames.shape == (5, 32, 48, 3)
    prove(engine.describe(), policy("1/0"), generation)


def test_one_guidance_for_both_transformers_is_not_given_twice(omni: Omni, opened: Open) -> None:
    run(opened(), NATIVE)
    assert "guidance_scale_2" not in omni.generations[0]["sampling"]


@pytest.mark.parametrize(
    ("asked", "rows"),
    [
        (NATIVE, ("native",) * 3),
        (EVERYTHING, ("fp8/",) * 3),
        (policy("0,1/"), ("native", "native", "fp8/")),
        (policy("/1", "mxfp4"), ("mxfp4/1",) * 3),
    ],
    ids=str,
)
def test_rows_that_compute_the_same_are_equal(
    omni: Omni, opened: Open, asked: SkipPolicy, rows: tuple[str, ...]
) -> None:
    run(opened(), asked)
    assert omni.generations[0]["rows"] == rows


def test_a_policy_that_quantizes_no_cell_is_the_native_one(omni: Omni, opened: Open) -> None:
    engine = opened()
    for steps, layers in (((0, 1, 2), ()), ((), (0, 1)), ((0, 1, 2, 9), (7,))):
        run(engine, SkipPolicy("fp8", SkipSelector(steps), SkipSelector(layers)))
    assert [request["policy"] for request in omni.generations] == [None] * 3
    assert {request["rows"] for request in omni.generations} == {("native",) * 3}


def test_prefixes_only_where_it_resumes(omni: Omni, opened: Open) -> None:
    run(opened({"prefix_cache_mb": "0"}), NATIVE, prefix="keep")
    omni.found = found(resumable=False)
    engine = opened()
    run(engine, NATIVE, prefix="reuse")
    assert [request["prefix"] for request in omni.generations] == ["none", "none"]
    assert not engine.describe().resumes
    assert "this pipeline cannot resume: every generation runs in full" in engine.describe().remarks


def test_shadows_are_handed_on_and_back(omni: Omni, opened: Open) -> None:
    engine = opened()
    asked = [Shadow(0, (0, 1), "fp8"), Shadow(2, (1,), "mxfp4")]
    odd = [Shadow(3, (0,), "fp8"), Shadow(0, (2,), "fp8"), Shadow(0, (), "fp8"), Shadow(0, (0,), "fp6")]
    generation = engine.generate(NATIVE, engine._workload.cases[0], "keep", [*asked, *odd, asked[0]])
    assert omni.generations[0]["shadows"] == [(0, (0, 1), "fp8"), (2, (1,), "mxfp4")]
    assert generation.shadows == {asked[0]: 0.5, asked[1]: 2.5}
    assert run(engine, NATIVE).shadows == {} and omni.generations[1]["shadows"] == []


def test_shadows_only_where_policies_are_switched_and_the_pipeline_offers_them(omni: Omni, opened: Open) -> None:
    assert opened().describe().shadows
    for options, changes in (
        ({"policy_switch": "restart"}, {}), ({}, {"switchable": False}), ({}, {"shadows": False}),
    ):  # fmt: skip
        omni.found = found(**changes)
        engine = opened(options)
        assert not engine.describe().shadows
        asked = engine.generate(NATIVE, engine._workload.cases[0], "none", [Shadow(0, (0,), "fp8")])
        assert asked.shadows == {} and omni.generations[-1]["shadows"] == []


def test_the_untimed_generation_has_no_shadows(omni: Omni, opened: Open) -> None:
    omni.found = found_npu()
    engine = opened()
    engine.generate(NATIVE, engine._workload.cases[0], "none", [Shadow(0, (0,), "fp8")])
    assert [len(request["shadows"]) for request in omni.generations] == [0, 1]


def test_a_shadow_counts_where_it_ran_as_asked_on_every_rank(omni: Omni, opened: Open) -> None:
    omni.found = found(world_size=2)
    asked = [Shadow(0, (0,), "fp8"), Shadow(1, (0,), "fp8")]

    def one_is_missing(answer: dict[str, Any]) -> None:
        first, second = answer["reports"]
        first["shadows"][0][3] = 7.0
        second["shadows"].pop(1)

    omni.alter = one_is_missing
    engine = opened()
    assert engine.generate(NATIVE, engine._workload.cases[0], "none", asked).shadows == {asked[0]: 7.0}


def test_what_shadows_took_is_in_no_time(omni: Omni, opened: Open) -> None:
    def took(answer: dict[str, Any]) -> None:
        answer["durations"]["Wan22Pipeline.forward"] = 11.5
        answer["reports"][0]["shadow_seconds"] = 4.0

    omni.alter = took
    generation = run(opened(), NATIVE)
    assert (generation.denoise_seconds, generation.end_to_end_seconds) == (6.0, 8.0)
    assert generation.phases == {"diffuse": 6.0, "forward": 7.5, "vae.decode": 1.0}


def test_what_a_generation_carries(omni: Omni, opened: Open) -> None:
    def resumed(answer: dict[str, Any]) -> None:
        (report,) = answer["reports"]
        moved = [call for call in report["calls"] if call[0] == 0]
        report.update(calls=[c for c in report["calls"] if c[0]], reused_calls=moved, start=1, step_seconds=[2.0, 3.0])
        report["ignored"] = {"FLASH_ATTN": 4}
        answer["peak_memory_mb"] = 0.0

    omni.alter = resumed
    engine = opened()
    generation = run(engine, EVERYTHING)
    assert generation.calls == {(step, layer, "fp8"): 2 for step in (1, 2) for layer in (0, 1)}
    assert generation.reused_calls == {(0, 0, "fp8"): 2, (0, 1, "fp8"): 2} and generation.reused_steps == 1
    assert generation.step_seconds == (2.0, 3.0)
    assert (generation.denoise_seconds, generation.end_to_end_seconds) == (8.5, 10.5)
    assert generation.phases == {"diffuse": 8.5, "vae.decode": 1.0}
    assert generation.peak_memory_mb is None
    assert generation.doubts == (
        "backend FLASH_ATTN was asked for a quantized dtype in 4 calls and ran another kernel",
    )


def test_a_generation_without_the_profilers_time_has_none(omni: Omni, opened: Open) -> None:
    """0 is refused where it is evaluated; a guess would not be."""
    omni.alter = lambda answer: answer["durations"].clear()
    assert run(opened(), NATIVE).denoise_seconds == 0.0


def test_other_ranks_are_counted(omni: Omni, opened: Open) -> None:
    omni.found = found(world_size=3)

    def one_differs(answer: dict[str, Any]) -> None:
        answer["reports"][2]["calls"][0][3] -= 1
        answer["reports"][1]["cross_attention_quantized"] = 5

    omni.alter = one_differs
    generation = run(opened(), EVERYTHING)
    whole = Counter({(step, layer, "fp8"): 2 for step in range(3) for layer in (0, 1)})
    assert generation.calls == generation.other_ranks[0] == whole
    assert generation.other_ranks[1] == whole - Counter({(0, 0, "fp8"): 1})
    assert generation.cross_attention_quantized == 5


@pytest.mark.parametrize("what", ["begun", "reports"])
def test_a_rank_that_does_not_answer(omni: Omni, opened: Open, what: str) -> None:
    omni.found = found(world_size=2)
    omni.alter = lambda answer: answer[what].pop()
    with pytest.raises(EngineError, match="1 of 2 ranks answered; nothing can be proven without the others"):
        run(opened(), EVERYTHING)


@pytest.mark.parametrize(
    "alter",
    [
        lambda frames: frames[:-1],
        lambda frames: frames[:, :16],
        lambda frames: frames[:, :, :16],
        lambda frames: frames[..., :1],
        lambda frames: frames[0],
    ],
    ids=["a frame less", "lower", "narrower", "grey", "one picture"],
)
def test_frames_of_another_shape(omni: Omni, opened: Open, alter: Callable[[Any], Any]) -> None:
    omni.alter = lambda answer: answer.update(frames=alter(answer["frames"]))
    engine = opened()
    with pytest.raises(EngineError, match=r"vllm-omni returned frames \(.*\), not 5 of 32x48"):
        run(engine, NATIVE)
    omni.alter = lambda answer: None
    run(engine, NATIVE)
    assert len(omni.processes) == 1


# --- warming up -----------------------------------------------------------------------------------------------------


def test_the_first_request_of_a_process_is_not_timed(omni: Omni, opened: Open) -> None:
    """It compiles and fills caches, and keeps nothing: it is another run."""
    omni.found = found_npu()
    engine = opened()
    seconds = iter([99.0, 5.0, 6.0])
    omni.alter = lambda answer: answer["durations"].update({"Wan22Pipeline.diffuse": next(seconds)})
    timed = [run(engine, policy("0/"), prompt, "keep").denoise_seconds for prompt in (0, 1)]
    assert timed == [5.0, 6.0]
    assert [(r["prompt"], r["prefix"], r["policy"]) for r in omni.generations] == [
        ("a cat", "none", ("fp8", "0", "")), ("a cat", "keep", None), ("a dog", "keep", None),
    ]  # fmt: skip


def test_nor_is_that_of_each_process_where_policies_restart_it(omni: Omni, opened: Open) -> None:
    omni.found = found_npu(switchable=False)
    engine = opened()
    for asked in (NATIVE, EVERYTHING, EVERYTHING):
        run(engine, asked)
    assert [len(process.requests) - 1 for process in omni.processes] == [2, 3]


def test_a_process_after_a_failure_is_warmed_too(omni: Omni, opened: Open) -> None:
    omni.found = found_npu()
    engine = opened()
    omni.trouble = [None, died()]
    with pytest.raises(EngineError):
        run(engine, NATIVE)
    run(engine, NATIVE)
    assert [len(process.requests) - 1 for process in omni.processes] == [2, 2]


# --- failures -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("option", ["runtime", "restart"])
def test_after_a_failure_the_next_generation_starts_anew(omni: Omni, opened: Open, option: str) -> None:
    engine = opened({"policy_switch": option})
    run(engine, NATIVE)
    omni.trouble = [died()] if option == "runtime" else [None, died()]
    with pytest.raises(EngineError, match="was killed by SIGKILL; its log is"):
        run(engine, EVERYTHING)
    assert not omni.running
    before = len(omni.processes)
    for asked in (EVERYTHING, NATIVE):
        prove(engine.describe(), asked, run(engine, asked))
    assert len(omni.processes) == before + (1 if option == "runtime" else 2)
    assert omni.processes[before].requests[0]["options"]["diffusion_kv_cache_dtype"] == (
        "auto" if option == "runtime" else "fp8"
    )


def test_a_restart_that_fails_is_tried_again(omni: Omni, opened: Open) -> None:
    engine = opened({"policy_switch": "restart"})
    omni.trouble = [died("engine vllm-omni hangs")]
    with pytest.raises(EngineError, match="hangs"):
        run(engine, EVERYTHING)
    prove(engine.describe(), EVERYTHING, run(engine, EVERYTHING))
    assert len(omni.processes) == 3 and omni.running == omni.processes[2:]


def test_a_restart_that_ranks_do_not_answer(omni: Omni, opened: Open) -> None:
    omni.found = found(world_size=2)
    engine = opened({"policy_switch": "restart"})
    omni.ranks = 1
    with pytest.raises(EngineError, match="1 of 2 ranks answered"):
        run(engine, EVERYTHING)
    assert not omni.running
    omni.ranks = None
    prove(engine.describe(), EVERYTHING, run(engine, EVERYTHING))


def test_ctrl_c_leaves_no_process_in_use(omni: Omni, opened: Open) -> None:
    engine = opened()
    omni.trouble = [KeyboardInterrupt()]
    with pytest.raises(KeyboardInterrupt):
        run(engine, NATIVE)
    run(engine, NATIVE)
    assert len(omni.processes) == 2


def test_closed_is_closed(omni: Omni, opened: Open) -> None:
    engine = opened()
    engine.close()
    engine.close()
    assert not omni.running
    with pytest.raises(EngineError, match="engine vllm-omni is closed"):
        run(engine, NATIVE)
    assert len(omni.processes) == 1


def test_unknown_options_of_vllm_omni_are_the_users(omni: Omni, opened: Open) -> None:
    omni.trouble = [it_said("ValueError: Unknown diffusion config field(s) for stage 0: ['vae_tilling']")]
    with pytest.raises(UsageError, match=r"vae_tilling.*vllm serve --omni --help"):
        opened({"vae_tilling": True})
    assert not omni.running
