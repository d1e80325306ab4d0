"""The diffusers engine beyond the contract, on a checkpoint with random weights."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fa_tuner.domain.errors import (
    DocumentError,
    EngineError,
    NotFoundError,
    UnsupportedModelError,
    UsageError,
)
from fa_tuner.domain.policy import NATIVE, SkipPolicy
from fa_tuner.domain.workload import Workload
from fa_tuner.engines.base import Shadow
from fa_tuner.engines.diffusers import DiffusersEngine

STEPS = 3
OPTIONS = {"device": "cpu"}
EVERYTHING = SkipPolicy("fp8")


def work_on(model: Path, **changes: Any) -> Workload:
    known = Workload(str(model), ("red digit moving left",), 32, 32, 5, STEPS, guidance=4.0)
    return replace(known, **changes)


def opened(model: Path, **changes: Any) -> DiffusersEngine:
    return DiffusersEngine.open(work_on(model, **changes), OPTIONS)


@pytest.fixture(scope="module")
def engine(tiny_wan: Path) -> Iterator[DiffusersEngine]:
    made = opened(tiny_wan)
    yield made
    made.close()


@pytest.fixture
def copied(tiny_wan: Path, tmp_path: Path) -> Path:
    """A copy that may be written into."""
    return Path(shutil.copytree(tiny_wan, tmp_path / "copy"))


def frames_of(engine: DiffusersEngine, policy: SkipPolicy, work: Workload) -> np.ndarray[Any, Any]:
    frames = engine.generate(policy, work.cases[0]).frames
    assert frames is not None
    return frames


def policy(engine: DiffusersEngine, text: str, dtype: str = "fp8") -> SkipPolicy:
    return SkipPolicy.parse(text, (dtype,), engine.describe().grid)


# --- what is generated ----------------------------------------------------------------------------------------------


def test_everything_quantized_differs_from_native_but_shows_the_same(engine: DiffusersEngine, tiny_wan: Path) -> None:
    work = work_on(tiny_wan)
    native = frames_of(engine, SkipPolicy(), work).astype(int)
    assert native.std() > 5  # a picture, not one grey
    by_dtype = {dtype: frames_of(engine, SkipPolicy(dtype), work).astype(int) for dtype in ("fp8", "mxfp4")}
    error = {dtype: np.square(frames - native).mean() for dtype, frames in by_dtype.items()}
    assert 0 < error["fp8"] < error["mxfp4"] < native.var()


def test_less_quantized_is_nearer_to_native(engine: DiffusersEngine, tiny_wan: Path) -> None:
    work = work_on(tiny_wan)
    native = frames_of(engine, SkipPolicy(), work).astype(int)
    policies = (policy(engine, "0,1/1", "mxfp4"), SkipPolicy("mxfp4"))
    one, everything = (np.square(frames_of(engine, p, work) - native).mean() for p in policies)
    assert 0 < one < everything


def test_a_skipped_step_runs_the_native_processors(
    engine: DiffusersEngine, tiny_wan: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counted where diffusers' own processor and the operator are called, apart from the engine's own counts."""
    from diffusers.models.transformers.transformer_wan import WanAttnProcessor

    from fa_tuner.engines import attention

    ran: Counter[tuple[int, str]] = Counter()
    native, quantized = WanAttnProcessor.__call__, attention.quantized_attention
    board = engine._loop.board

    def watched_native(self: Any, attn: Any, hidden: Any, encoder: Any = None, *rest: Any, **more: Any) -> Any:
        if encoder is None:
            ran[board.step, NATIVE] += 1
        return native(self, attn, hidden, encoder, *rest, **more)

    def watched_operator(*arguments: Any) -> Any:
        ran[board.step, arguments[-1]] += 1
        return quantized(*arguments)

    monkeypatch.setattr(WanAttnProcessor, "__call__", watched_native)
    monkeypatch.setattr(attention, "quantized_attention", watched_operator)
    seen = engine.generate(policy(engine, "1/0"), work_on(tiny_wan).cases[0])
    assert ran == {(0, NATIVE): 2, (0, "fp8"): 2, (1, NATIVE): 4, (2, NATIVE): 2, (2, "fp8"): 2}
    assert sum(seen.calls.values()) == sum(ran.values()) and seen.calls[0, 1, "fp8"] == 2


def test_skipping_a_step_gives_the_native_latents_of_that_step(tiny_wan: Path) -> None:
    """With one step alone quantized the others' transformers see what they would see natively before it."""
    engine = opened(tiny_wan)
    inputs: dict[str, list[Any]] = {"native": [], "last": []}
    running = "native"
    for expert in (engine._pipeline.transformer, engine._pipeline.transformer_2):
        expert.register_forward_pre_hook(
            lambda _module, _args, kwargs: inputs[running].append(kwargs["hidden_states"].clone()), with_kwargs=True
        )
    case = work_on(tiny_wan).cases[0]
    native = engine.generate(SkipPolicy(), case)
    running = "last"
    last = engine.generate(policy(engine, "0,1/"), case)
    assert len(inputs["native"]) == len(inputs["last"]) == 2 * STEPS
    assert all((a == b).all() for a, b in zip(inputs["native"], inputs["last"], strict=True))
    assert native.frames is not None and last.frames is not None and not np.array_equal(native.frames, last.frames)


def test_both_experts_are_counted_under_one_step_index(tiny_wan: Path) -> None:
    """Wan2.2: the high-noise transformer runs first, the other goes on; step and layer indices do not restart."""
    engine = opened(tiny_wan)
    forwards: list[str] = []
    pipeline = engine._pipeline
    pipeline.transformer.register_forward_pre_hook(lambda *_: forwards.append("high"))
    pipeline.transformer_2.register_forward_pre_hook(lambda *_: forwards.append("low"))
    seen = engine.generate(EVERYTHING, work_on(tiny_wan).cases[0])
    assert set(forwards) == {"high", "low"} and forwards == sorted(forwards)
    assert seen.calls == {(step, layer, "fp8"): 2 for step in range(STEPS) for layer in range(2)}


def test_the_change_over_between_the_experts_can_be_moved(tiny_wan: Path) -> None:
    engine = opened(tiny_wan, boundary_ratio=0.0)
    forwards: list[str] = []
    engine._pipeline.transformer_2.register_forward_pre_hook(lambda *_: forwards.append("low"))
    engine.generate(SkipPolicy(), work_on(tiny_wan).cases[0])
    assert forwards == []


def test_without_guidance_each_cell_runs_once(tiny_wan: Path) -> None:
    engine = opened(tiny_wan, guidance=1.0)
    assert engine.describe().calls_per_cell == 1
    seen = engine.generate(policy(engine, "0/"), work_on(tiny_wan, guidance=1.0).cases[0])
    assert set(seen.calls.values()) == {1}
    assert sum(count for (_, _, dtype), count in seen.calls.items() if dtype == "fp8") == (STEPS - 1) * 2


def test_the_seed_and_the_prompt_matter(engine: DiffusersEngine, tiny_wan: Path) -> None:
    work = work_on(tiny_wan)
    first = frames_of(engine, SkipPolicy(), work)
    for other in (replace(work, seeds=(1,)), replace(work, prompts=("blue digit moving right",))):
        assert not np.array_equal(first, frames_of(engine, SkipPolicy(), other))
    assert np.array_equal(first, frames_of(engine, SkipPolicy(), work))


def test_what_the_workload_says_reaches_the_pipeline(tiny_wan: Path) -> None:
    base = work_on(tiny_wan)
    first = frames_of(opened(tiny_wan), SkipPolicy(), base)
    for change in ({"guidance": 2.0}, {"negative_prompt": "blue"}, {"flow_shift": 12.0}, {"guidance_2": 1.5}):
        assert not np.array_equal(first, frames_of(opened(tiny_wan, **change), SkipPolicy(), base)), change


def test_fused_projections_give_the_same(tiny_wan: Path) -> None:
    """A pipeline that was fused before, as `fuse_qkv_projections` does it: one matrix in place of three."""
    work = work_on(tiny_wan)
    apart, fused = opened(tiny_wan), opened(tiny_wan)
    pipeline = fused._pipeline
    for transformer in (pipeline.transformer, pipeline.transformer_2):
        for block in transformer.blocks:
            block.attn1.fuse_projections()
            assert block.attn1.fused_projections
    for chosen in (SkipPolicy(), EVERYTHING):
        one, other = (frames_of(e, chosen, work).astype(int) for e in (apart, fused))
        assert np.abs(one - other).max() <= 1
    assert not np.array_equal(frames_of(fused, SkipPolicy(), work), frames_of(fused, EVERYTHING, work))


def test_one_transformer_alone(one_thread: None, tmp_path: Path) -> None:
    """Wan2.1."""
    from tests.support.tiny_wan import make_tiny_wan

    engine = opened(make_tiny_wan(tmp_path, layers=3, heads=2, head_dim=16, two_experts=False))
    assert engine.describe().grid.layers == (0, 1, 2)
    seen = engine.generate(policy(engine, "/1"), work_on(tmp_path).cases[0])
    assert {(layer, dtype) for _, layer, dtype in seen.calls} == {(0, "fp8"), (1, NATIVE), (2, "fp8")}


def test_times_add_up(engine: DiffusersEngine, tiny_wan: Path) -> None:
    seen = engine.generate(SkipPolicy(), work_on(tiny_wan).cases[0])
    assert seen.phases["denoise"] == seen.denoise_seconds > 0
    assert sum(seen.phases.values()) == pytest.approx(seen.end_to_end_seconds)
    assert seen.phases["encode"] > 0 and seen.phases["decode"] > 0


def test_embeddings_are_those_that_the_pipeline_makes(tiny_wan: Path) -> None:
    import torch

    from fa_tuner.engines.frames import to_uint8

    engine, work = opened(tiny_wan, negative_prompt="blue"), work_on(tiny_wan, negative_prompt="blue")
    by_itself = engine._pipeline(
        prompt=work.prompts[0], negative_prompt="blue", height=32, width=32, num_frames=5, num_inference_steps=STEPS,
        guidance_scale=4.0, generator=torch.Generator("cpu").manual_seed(0), output_type="np",
    ).frames[0]  # fmt: skip
    for _ in range(2):
        assert np.array_equal(frames_of(engine, SkipPolicy(), work), to_uint8(by_itself))


# --- kept prefixes --------------------------------------------------------------------------------------------------


def watched_forwards(engine: DiffusersEngine, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The step of every forward that reaches the first block of a transformer."""
    ran: list[int] = []
    for expert in (engine._pipeline.transformer, engine._pipeline.transformer_2):
        block = expert.blocks[0]
        monkeypatch.setattr(
            block, "forward", lambda *a, _f=block.forward, **k: (ran.append(engine._loop.board.step), _f(*a, **k))[1]
        )
    return ran


def test_shared_steps_are_not_run(tiny_wan: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = opened(tiny_wan)
    case = work_on(tiny_wan).cases[0]
    ran = watched_forwards(engine, monkeypatch)
    engine.generate(SkipPolicy(), case, "keep")
    assert ran == [0, 0, 1, 1, 2, 2]
    ran.clear()
    assert engine.generate(policy(engine, "0/"), case, "reuse").reused_steps == 1
    assert ran == [1, 1, 2, 2]


def test_a_run_after_a_resumed_one_is_whole(engine: DiffusersEngine, tiny_wan: Path) -> None:
    """The scheduler that the resumed run brought back is as good as the one that was there."""
    case = work_on(tiny_wan).cases[0]
    whole = {p: engine.generate(p, case).frames for p in (SkipPolicy(), EVERYTHING)}
    engine.generate(EVERYTHING, case, "keep")
    assert engine.generate(EVERYTHING, case, "reuse").reused_steps == STEPS - 1
    for p, frames in whole.items():
        assert np.array_equal(engine.generate(p, case).frames, frames)  # type: ignore[arg-type]


def test_a_failed_run_leaves_prefixes_that_hold(tiny_wan: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fa_tuner.engines import attention

    engine, case = opened(tiny_wan), work_on(tiny_wan).cases[0]
    whole = engine.generate(EVERYTHING, case)
    operator = attention.quantized_attention

    def breaks(*arguments: Any) -> Any:
        if engine._loop.board.step == 1:
            raise RuntimeError("the operator broke")
        return operator(*arguments)

    with monkeypatch.context() as patched, pytest.raises(EngineError):
        patched.setattr(attention, "quantized_attention", breaks)
        engine.generate(EVERYTHING, case, "keep")
    after = engine.generate(EVERYTHING, case, "reuse")
    assert after.reused_steps == 1 and np.array_equal(after.frames, whole.frames)  # type: ignore[arg-type]


@pytest.mark.parametrize("megabytes", ["0", 0, "1e-6"])
def test_without_room_everything_is_run(tiny_wan: Path, megabytes: Any) -> None:
    engine = DiffusersEngine.open(work_on(tiny_wan), {**OPTIONS, "prefix_cache_mb": megabytes})
    case = work_on(tiny_wan).cases[0]
    engine.generate(SkipPolicy(), case, "keep")
    assert engine.generate(SkipPolicy(), case, "reuse").reused_steps == 0
    assert engine.describe().resumes == (float(megabytes) > 0)
    assert opened(tiny_wan).describe().fingerprint == engine.describe().fingerprint, "it changes no result"


@pytest.mark.parametrize("megabytes", ["-1", "much", "nan", None, "inf"])
def test_what_is_no_size(tiny_wan: Path, megabytes: Any) -> None:
    with pytest.raises(UsageError, match=r"prefix_cache_mb is .*; it must be a number from 0 on"):
        DiffusersEngine.open(work_on(tiny_wan), {**OPTIONS, "prefix_cache_mb": megabytes})


# --- shadows --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("guidance", [{"guidance": 4.0, "guidance_2": 2.0}, {"guidance": 1.0}], ids=str)
def test_a_shadow_is_the_squared_change_of_the_step(tiny_wan: Path, guidance: dict[str, float]) -> None:
    """Computed a second time from what the scheduler is given: a run that quantizes one step alone has native inputs
    there, so its velocity is native's plus what the shadow saw."""
    work = work_on(tiny_wan, **guidance)
    engine, case = opened(tiny_wan, **guidance), work.cases[0]
    velocities: list[Any] = []
    scheduler = engine._pipeline.scheduler
    step = scheduler.step
    scheduler.step = lambda velocity, *a, **k: (velocities.append(velocity.clone()), step(velocity, *a, **k))[1]
    shadows = [
        Shadow(t, layers, dtype) for t in range(STEPS) for layers in ((0, 1), (1,)) for dtype in ("fp8", "mxfp4")
    ]
    seen = engine.generate(SkipPolicy(), case, "none", shadows).shadows
    native = list(velocities)
    sigmas = [float(sigma) for sigma in scheduler.sigmas]
    for shadow in shadows:
        velocities.clear()
        others = ",".join(str(t) for t in range(STEPS) if t != shadow.step)
        engine.generate(policy(engine, f"{others}/{'' if 0 in shadow.layers else 0}", shadow.dtype), case)
        error = (velocities[shadow.step] - native[shadow.step]).square().mean().item()
        expected = error * (sigmas[shadow.step + 1] - sigmas[shadow.step]) ** 2
        assert seen[shadow] == pytest.approx(expected, rel=1e-3)


def test_shadows_stand_beside_any_policy_and_share_no_calls(tiny_wan: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine, case = opened(tiny_wan), work_on(tiny_wan).cases[0]
    ran = watched_forwards(engine, monkeypatch)
    plain = engine.generate(EVERYTHING, case)
    beside = engine.generate(EVERYTHING, case, "keep", [Shadow(1, (0,), "mxfp4"), Shadow(1, (0, 1), "fp8")])
    assert ran == [0, 0, 1, 1, 2, 2, 0, 0, 1, 1, 1, 1, 1, 1, 2, 2]
    assert beside.calls == plain.calls and np.array_equal(beside.frames, plain.frames)  # type: ignore[arg-type]
    assert beside.shadows[Shadow(1, (0, 1), "fp8")] == 0, "what ran already"
    assert beside.shadows[Shadow(1, (0,), "mxfp4")] > 0


def test_the_time_of_shadows_is_not_the_runs(
    engine: DiffusersEngine, tiny_wan: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import time

    from fa_tuner.engines import attention

    operator = attention.quantized_attention
    monkeypatch.setattr(attention, "quantized_attention", lambda *a: (time.sleep(1.0), operator(*a))[1])
    seen = engine.generate(SkipPolicy(), work_on(tiny_wan).cases[0], "none", [Shadow(0, (0,), "fp8")])
    assert seen.shadows and seen.denoise_seconds < seen.end_to_end_seconds < 2.0
    assert sum(seen.phases.values()) == pytest.approx(seen.end_to_end_seconds)


# --- a picture to start from ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pictures") / "picture.png"
    ramp = np.linspace(0, 255, 32).astype(np.uint8)
    Image.fromarray(
        np.stack([ramp[:, None] + 0 * ramp, 0 * ramp[:, None] + ramp, ramp[::-1, None] + 0 * ramp], -1)
    ).save(path)
    return path


def i2v_work(model: Path, picture: Path) -> Workload:
    return work_on(model, task="i2v", image=sha256(picture.read_bytes()).hexdigest())


def test_image_to_video(tiny_wan_i2v: Path, picture: Path, tmp_path: Path) -> None:
    work = i2v_work(tiny_wan_i2v, picture)
    engine = DiffusersEngine.open(work, {**OPTIONS, "image": str(picture)})
    assert engine.describe().pipeline == "WanImageToVideoPipeline"
    native = frames_of(engine, SkipPolicy(), work)
    assert native.shape == (5, 32, 32, 3)
    assert not np.array_equal(native, frames_of(engine, EVERYTHING, work))
    Image.new("RGB", (32, 32), "white").save(tmp_path / "white.png")
    other = DiffusersEngine.open(work, {**OPTIONS, "image": str(tmp_path / "white.png")})
    assert not np.array_equal(native, frames_of(other, SkipPolicy(), work))


def test_image_to_video_without_its_picture(tiny_wan_i2v: Path, picture: Path, tmp_path: Path) -> None:
    work = i2v_work(tiny_wan_i2v, picture)
    with pytest.raises(UsageError, match="give --image PATH"):
        DiffusersEngine.open(work, OPTIONS)
    with pytest.raises(NotFoundError, match=r"picture .* does not exist"):
        DiffusersEngine.open(work, {**OPTIONS, "image": str(tmp_path / "none.png")})
    (tmp_path / "cut.png").write_bytes(picture.read_bytes()[:60])
    with pytest.raises(DocumentError, match="cannot be read"):
        DiffusersEngine.open(work, {**OPTIONS, "image": str(tmp_path / "cut.png")})


def test_the_kind_of_pipeline_must_be_that_of_the_workload(tiny_wan: Path, tiny_wan_i2v: Path, picture: Path) -> None:
    with pytest.raises(UsageError, match=r"is a WanPipeline \(t2v\) and takes no --image"):
        DiffusersEngine.open(i2v_work(tiny_wan, picture), {**OPTIONS, "image": str(picture)})
    with pytest.raises(UsageError, match=r"is a WanImageToVideoPipeline \(i2v\) and needs --image"):
        opened(tiny_wan_i2v)


# --- a pipeline that fails ------------------------------------------------------------------------------------------


FAILURES: dict[str, Any] = {
    "out of memory": RuntimeError("CUDA out of memory"),
    "no memory": MemoryError(),
    "bad value": ValueError("shapes"),
    "no such operator": NotImplementedError("aten::x"),
    "another version": TypeError("unexpected keyword"),
    "NaN": SimpleNamespace(frames=np.full((1, 5, 32, 32, 3), np.nan)),
    "no frames": SimpleNamespace(frames=[]),
    "an empty clip": SimpleNamespace(frames=np.zeros((1, 0, 32, 32, 3))),
    "nothing": None,
}


@pytest.mark.parametrize("name", FAILURES)
def test_a_failing_pipeline_leaves_a_usable_engine(
    engine: DiffusersEngine, tiny_wan: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    case = work_on(tiny_wan).cases[0]
    native, result = engine._pipeline, FAILURES[name]

    class Failing:
        transformer, transformer_2 = native.transformer, native.transformer_2

        def __call__(self, **_: Any) -> Any:
            if isinstance(result, Exception):
                raise result
            return result

    with monkeypatch.context() as patched, pytest.raises(EngineError):
        patched.setattr(engine, "_pipeline", Failing())
        engine.generate(EVERYTHING, case)
    assert engine._loop.board.policy == SkipPolicy()
    after = engine.generate(SkipPolicy(), case)
    assert {dtype for _, _, dtype in after.calls} == {NATIVE} and set(after.calls.values()) == {2}


def test_a_failure_half_way_leaves_no_residue(
    engine: DiffusersEngine, tiny_wan: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the second step, with half of the calls counted and the clock's hooks in place."""
    from fa_tuner.engines import attention

    case = work_on(tiny_wan).cases[0]
    before = engine.generate(EVERYTHING, case)
    operator = attention.quantized_attention

    def breaks(*arguments: Any) -> Any:
        if engine._loop.board.step == 1:
            raise RuntimeError("the operator broke")
        return operator(*arguments)

    monkeypatch.setattr(attention, "quantized_attention", breaks)
    with pytest.raises(EngineError, match=r"generation failed under fp8.*RuntimeError: the operator broke"):
        engine.generate(EVERYTHING, case)
    monkeypatch.undo()
    assert not engine._pipeline.transformer._forward_pre_hooks
    after = engine.generate(EVERYTHING, case)
    assert after.calls == before.calls and np.array_equal(after.frames, before.frames)  # type: ignore[arg-type]


def test_an_attention_mask_is_refused(engine: DiffusersEngine, tiny_wan: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The operator has none; to drop it silently would be another model."""
    import torch

    processor = engine._pipeline.transformer.blocks[0].attn1.processor
    monkeypatch.setattr(engine._loop.board, "policy", EVERYTHING)
    with pytest.raises(NotImplementedError, match="takes no mask"):
        processor(None, torch.zeros(1, 2, 4), None, torch.ones(2, 2))


# --- what is refused ------------------------------------------------------------------------------------------------


def test_an_unknown_option(tiny_wan: Path) -> None:
    with pytest.raises(UsageError, match="does not know option 'colour'; it takes device, torch_dtype, image"):
        DiffusersEngine.open(work_on(tiny_wan), {**OPTIONS, "colour": "red"})


@pytest.mark.parametrize("name", ["float99", "int8", "nn"])
def test_an_unknown_torch_dtype(tiny_wan: Path, name: str) -> None:
    with pytest.raises(UsageError, match=f"torch_dtype '{name}' is unknown; choose float32"):
        DiffusersEngine.open(work_on(tiny_wan), {**OPTIONS, "torch_dtype": name})


def test_a_device_that_is_not_there(tiny_wan: Path) -> None:
    with pytest.raises(EngineError, match="cannot be loaded on abacus"):
        DiffusersEngine.open(work_on(tiny_wan), {"device": "abacus", "torch_dtype": "float32"})


@pytest.mark.parametrize("name", ["FluxPipeline", "CogVideoXPipeline", "WanVACEPipeline"])
def test_another_pipeline_with_the_reason(tmp_path: Path, name: str) -> None:
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": name}))
    with pytest.raises(UnsupportedModelError) as caught:
        opened(tmp_path)
    said = str(caught.value)
    assert f"is a {name}; fa-tune drives WanPipeline and WanImageToVideoPipeline" in said
    assert "vLLM-Omni publishes no step or layer index for most other pipelines" in said


@pytest.mark.parametrize("changes", [{"height": 48, "width": 16}, {"frames": 1}, {"frames": 9}], ids=str)
def test_sizes_that_fit_come_out_as_asked(tiny_wan: Path, changes: dict[str, Any]) -> None:
    work = work_on(tiny_wan, steps=1, **changes)
    frames = frames_of(opened(tiny_wan, steps=1, **changes), SkipPolicy(), work)
    assert frames.shape == (work.frames, work.height, work.width, 3)


def test_opening_checks_the_size(tiny_wan: Path) -> None:
    with pytest.raises(UsageError, match="such as 32"):
        opened(tiny_wan, height=36)


def test_a_head_dim_that_the_rotation_cannot_take(one_thread: None, tmp_path: Path) -> None:
    from tests.support.tiny_wan import make_tiny_wan

    with pytest.raises(UnsupportedModelError, match="head dim 48 is no power of two"):
        opened(make_tiny_wan(tmp_path, layers=1, head_dim=48))


def test_two_transformers_of_different_depth(copied: Path, one_thread: None, tmp_path: Path) -> None:
    from tests.support.tiny_wan import make_tiny_wan

    deeper = make_tiny_wan(tmp_path / "deeper", layers=3, two_experts=False)
    shutil.rmtree(copied / "transformer_2")
    shutil.copytree(deeper / "transformer", copied / "transformer_2")
    with pytest.raises(UnsupportedModelError, match=r"have \[2, 3\] blocks; one layer index cannot name both"):
        opened(copied)


@pytest.mark.parametrize("damage", ["cut", "empty", "config", "missing config"])
def test_weights_that_cannot_be_loaded(copied: Path, damage: str) -> None:
    weights = copied / "transformer" / "diffusion_pytorch_model.safetensors"
    if damage == "cut":
        weights.write_bytes(weights.read_bytes()[: weights.stat().st_size // 2])
    elif damage == "empty":
        weights.write_bytes(b"")
    elif damage == "config":
        (copied / "transformer" / "config.json").write_text("{")
    else:
        (copied / "transformer" / "config.json").unlink()
    with pytest.raises(EngineError, match="cannot be loaded on cpu"):
        opened(copied)


def test_other_weights_are_another_environment(copied: Path, engine: DiffusersEngine) -> None:
    """A study must not be continued on a model that was trained further."""
    same = opened(copied).describe().fingerprint
    assert same == engine.describe().fingerprint
    weights = copied / "transformer_2" / "diffusion_pytorch_model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-2] ^= 1
    weights.write_bytes(content)
    assert opened(copied).describe().fingerprint != same
