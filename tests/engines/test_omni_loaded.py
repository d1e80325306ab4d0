"""What the engine vllm-omni refuses before and after loading, and what it says of itself."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from fa_tuner.domain.errors import (
    DocumentError,
    EngineError,
    FaTuneError,
    NotFoundError,
    NotQuantizedError,
    UnsupportedModelError,
    UsageError,
)
from fa_tuner.domain.policy import Grid, SkipPolicy
from fa_tuner.domain.workload import Workload
from fa_tuner.engines.vllm_omni.engine import VllmOmniEngine
from fa_tuner.engines.vllm_omni.process import EngineSaidError
from fa_tuner.evaluate.coverage import prove
from tests.support.omni_process import Omni, died, found, found_npu, it_said

Open = Callable[..., VllmOmniEngine]
PICTURE = "0" * 64


def refusal(kind: type[FaTuneError], opened: Open, *arguments: Any, **changes: Any) -> str:
    with pytest.raises(FaTuneError) as caught:
        opened(*arguments, **changes)
    assert caught.type is kind
    return str(caught.value)


# --- before anything is started -------------------------------------------------------------------------------------


@pytest.fixture
def not_started(omni: Omni) -> Any:
    yield
    assert omni.processes == []


@pytest.mark.parametrize("name", ["FluxPipeline", "WanVACEPipeline"])
def test_another_pipeline(not_started: None, opened: Open, omni_work: Workload, name: str) -> None:
    Path(omni_work.model, "model_index.json").write_text(json.dumps({"_class_name": name}))
    said = refusal(UnsupportedModelError, opened)
    assert f"is a {name}; fa-tune drives WanPipeline and WanImageToVideoPipeline" in said


def test_another_task(not_started: None, opened: Open, omni_work: Workload) -> None:
    assert "takes no --image" in refusal(UsageError, opened, task="i2v", image=PICTURE)
    Path(omni_work.model, "model_index.json").write_text('{"_class_name": "WanImageToVideoPipeline"}')
    assert "needs --image" in refusal(UsageError, opened)


def test_image_to_video_without_its_picture(
    not_started: None, opened: Open, omni_work: Workload, tmp_path: Path
) -> None:
    """Before minutes are spent on loading the model."""
    Path(omni_work.model, "model_index.json").write_text('{"_class_name": "WanImageToVideoPipeline"}')
    i2v = {"task": "i2v", "image": PICTURE}
    assert "give --image PATH" in refusal(UsageError, opened, **i2v)
    assert "does not exist" in refusal(NotFoundError, opened, {"image": str(tmp_path / "none.png")}, **i2v)
    Image.new("RGB", (4, 4)).save(tmp_path / "cut.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "cut.png").read_bytes()[:40])
    assert "cannot be read" in refusal(DocumentError, opened, {"image": str(tmp_path / "cut.png")}, **i2v)


@pytest.mark.parametrize(("guidance", "second"), [(4.0, 1.0), (1.0, 4.0)])
def test_mixed_guidance(not_started: None, opened: Open, guidance: float, second: float) -> None:
    said = refusal(UsageError, opened, guidance=guidance, guidance_2=second)
    assert f"guidance {guidance:g} and {second:g}: the transformers would make a different number" in said


@pytest.mark.parametrize(("guidance", "second", "calls"), [(4.0, 3.0, 2), (1.0, 0.5, 1), (1.0, None, 1)])
def test_guidance_of_one_kind(opened: Open, guidance: float, second: float | None, calls: int) -> None:
    assert opened(guidance=guidance, guidance_2=second).describe().calls_per_cell == calls


def test_options_are_looked_at_first(not_started: None, opened: Open) -> None:
    assert "is set by fa-tune" in refusal(UsageError, opened, {"kv_cache_dtype": "fp8"}, model="/no/such/model")
    assert "does not exist" in refusal(NotFoundError, opened, model="/no/such/model")


def test_what_must_be_installed(omni_work: Workload, monkeypatch: pytest.MonkeyPatch) -> None:
    from fa_tuner.engines.vllm_omni import engine as module

    monkeypatch.setattr(module, "find_spec", lambda name: None if name == "vllm_omni" else object())
    assert VllmOmniEngine.unavailable_because() == "vllm_omni missing; install vllm-omni 0.22 or newer for your device"
    with pytest.raises(EngineError, match="engine vllm-omni cannot run here: vllm_omni missing"):
        VllmOmniEngine.open(omni_work, {})
    monkeypatch.setattr(module, "find_spec", lambda name: object())
    assert VllmOmniEngine.unavailable_because() is None


# --- what was loaded ------------------------------------------------------------------------------------------------

DOUBTS: list[tuple[dict[str, Any], str]] = [
    ({"emulates": "", "platform": "cuda"}, "platform cuda is not an NPU"),
    ({"backends": ["TORCH_SDPA"]}, "attention backend TORCH_SDPA has no quantized kernel that fa-tune knows"),
    (
        {"backends": ["FLASH_ATTN", "SDPA"], "mindiesd": False},
        "attention backend SDPA has no quantized kernel that fa-tune knows, which vLLM-Omni takes on an NPU without "
        "MindIE-SD",
    ),
    ({"quant_attention": False}, "mindiesd.quant_attention is missing: a newer MindIE-SD is needed than PyPI's"),
    ({"without_layer": 3}, "3 attention layers have no layer index"),
    ({"eligible": 0, "dtypes": []}, "every attention layer opts out by disable_kv_quant"),
    ({"causal": True}, "attention is causal"),
    ({"head_dims": [64, 96]}, "head dim 96 is no power of two"),
    ({"dtypes": []}, "backend FLASH_ATTN declares no quantized dtype here"),
]


@pytest.mark.parametrize(
    ("changes", "words"), DOUBTS, ids=lambda value: next(iter(value)) if isinstance(value, dict) else ""
)
def test_nothing_would_run_quantized(omni: Omni, opened: Open, changes: dict[str, Any], words: str) -> None:
    omni.found = found(**changes)
    refused = refusal(NotQuantizedError, opened)
    assert refused.startswith(f"nothing would run quantized: {words}. ") and "fa-tune doctor --model" in refused
    assert omni.processes and not omni.running


def test_every_doubt_is_told(omni: Omni, opened: Open) -> None:
    omni.found = found(causal=True, head_dims=[96], emulates="", platform="cpu")
    said = refusal(NotQuantizedError, opened)
    assert "platform cpu is not an NPU; attention is causal; head dim 96 is no power of two." in said


@pytest.mark.parametrize(
    "changes",
    [{"is_npu": True, "emulates": ""}, {"quant_attention": False, "needs_quant_attention": False}, {"head_dims": []}],
    ids=["an NPU", "a version that calls other kernels", "a version that does not say its head dim"],
)
def test_what_is_no_reason_to_doubt(omni: Omni, opened: Open, changes: dict[str, Any]) -> None:
    omni.found = found(**changes)
    opened()
    assert omni.running


@pytest.mark.parametrize(
    ("changes", "kind", "words"),
    [
        ({"depths": [2, 3]}, UnsupportedModelError, "the two transformers have [2, 3] blocks"),
        ({"spatial": 16}, UsageError, "width 48 does not fit this model"),
        ({"temporal": 3}, UsageError, "5 frames do not fit this model"),
        ({"config": {"cache_backend": "tea_cache"}}, UsageError, "cached steps run no block"),
        ({"config": {"max_num_seqs": 2}}, UsageError, "one request at a time"),
        ({"config": {"ring_degree": 2}}, UsageError, "takes no ring"),
        ({"config": {"data_parallel_size": 2}}, UsageError, "data_parallel_size is 2"),
    ],
    ids=str,
)
def test_what_the_model_or_a_deploy_file_brought(
    omni: Omni, opened: Open, changes: dict[str, Any], kind: type[FaTuneError], words: str
) -> None:
    omni.found = found(**changes)
    assert words in refusal(kind, opened)
    assert omni.processes and not omni.running


@pytest.mark.parametrize(
    ("options", "config", "words"),
    [
        ({"vae_use_tiling": "true"}, {}, "vae_use_tiling was given as True, and vllm-omni made False of it"),
        ({"tensor_parallel_size": "2"}, {}, "tensor_parallel_size was given as 2, and vllm-omni made 1 of it"),
        ({"dtype": "float16"}, {}, "dtype was given as 'float16', and vllm-omni made 'bfloat16' of it"),
        ({"no_such_option": "1"}, {}, "vllm-omni has no option 'no_such_option' for a diffusion stage"),
        ({"quantization": "fp8"}, {}, "quantization 'fp8' was given, and vllm-omni loaded the model without"),
    ],
    ids=str,
)
def test_options_that_did_not_arrive(
    omni: Omni, opened: Open, options: dict[str, str], config: dict[str, Any], words: str
) -> None:
    omni.found = found(config=config)
    assert words in refusal(UsageError, opened, options)
    assert not omni.running


@pytest.mark.parametrize(
    ("options", "config"),
    [
        ({"vae_use_tiling": "true"}, {"vae_use_tiling": True}),
        ({"dtype": "bfloat16"}, {}),
        ({"lora_scale": "1"}, {"lora_scale": 1.0}),
        ({"lora_scale": "null"}, {}),
        ({"quantization": "fp8"}, {"quantization_config": "fp8"}),
        ({"stage_overrides": "{}", "log_stats": "true"}, {}),
    ],
    ids=str,
)
def test_options_that_arrived(omni: Omni, opened: Open, options: dict[str, str], config: dict[str, Any]) -> None:
    omni.found = found(config=config)
    opened(options)
    assert omni.running


def test_a_deploy_file_that_was_not_read(omni: Omni, opened: Open, deploy: str) -> None:
    overlay = (
        "platforms:\n  npu:\n    stages:\n    - {stage_id: 0, diffusion_kv_cache_dtype: fp8, vae_use_tiling: true}\n"
    )
    Path(deploy).write_text(f"stages:\n- {{stage_id: 0, lora_scale: 0.5, model: other}}\n{overlay}")
    options = {"deploy_config": deploy}
    omni.found = found(config={"lora_scale": 0.5, "vae_use_tiling": True})
    opened(options).close()
    omni.found = found(config={"lora_scale": 0.5})
    said = refusal(UsageError, opened, options)
    assert f"{deploy} sets vae_use_tiling to True, and the engine has False" in said
    assert "--engine-arg vae_use_tiling=..." in said and not omni.running
    omni.found = found(platform="cuda", emulates="npu", config={"lora_scale": 0.5})
    opened(options).close()  # an overlay for another platform
    omni.found = found(config={"lora_scale": 0.5, "vae_use_tiling": False})
    opened({**options, "vae_use_tiling": "false"}).close()  # the user's own word counts


# --- vLLM-Omni's own refusals ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "Attention backend SDPA does not support kv_cache_dtype='fp8' on npu.",
        "Unknown NPU attention precision int8",
        "KV quantization is not compatible with ring attention (ring_degree > 1).",
        "Attention quantization skip_layers requires a parseable transformer block index.",
        "Unsupported NPU attention quantization: mxfp4",
        "quant_attention requires a compatible MindIE-SD",
        "fp8_rotate_quant_fa requires torch_npu",
    ],
)
def test_its_own_refusals_are_told_as_such(omni: Omni, opened: Open, text: str) -> None:
    engine = opened()
    engine._loaded.found["head_dims"].append(96)  # type: ignore[union-attr, index]
    omni.trouble = [it_said(f"ValueError: {text}")]
    with pytest.raises(NotQuantizedError) as caught:
        engine.generate(SkipPolicy("fp8"), engine._workload.cases[0])
    refused = str(caught.value)
    assert refused.startswith(f"vllm-omni refuses to quantize: ValueError: {text}; its log is ")
    assert refused.endswith("; head dim 96 is no power of two")


def test_a_refusal_while_it_loads(omni: Omni, opened: Open) -> None:
    omni.trouble = [it_said("ValueError: backend SDPA does not support kv_cache_dtype='fp8'")]
    assert "vllm-omni refuses to quantize" in refusal(NotQuantizedError, opened)


def test_what_stands_in_the_log_of_one_that_died_is_no_refusal(omni: Omni, opened: Open) -> None:
    omni.trouble = [died("engine vllm-omni was killed by SIGKILL: does not support kv_cache_dtype")]
    assert "was killed by SIGKILL" in refusal(EngineError, opened)


def test_any_other_failure_costs_one_run(omni: Omni, opened: Open) -> None:
    omni.trouble = [it_said("RuntimeError: NPU out of memory")]
    assert refusal(EngineSaidError, opened).startswith("RuntimeError: NPU out of memory")


# --- what it says of itself -----------------------------------------------------------------------------------------


def test_the_description(omni: Omni, opened: Open) -> None:
    omni.found = found_npu(variables={"MINDIE_SD_FA_TYPE": "x"})
    described = opened().describe()
    assert (described.engine, described.pipeline, described.operator) == ("vllm-omni", "Wan22Pipeline", "real")
    assert described.grid == Grid(3, (0, 1)) and described.dtypes == ("fp8", "mxfp8", "mxfp4")
    assert (described.calls_per_cell, described.latency, described.resumes) == (2, "measured", True)
    assert described.device == "Ascend910B2 (bfloat16)"
    assert described.versions["cann"] == "8.5.0" and len(described.versions["weights"]) == 16
    assert described.settings == {
        "boundary_ratio": 0.875, "backend": "FLASH_ATTN", "scheduler": "FlowUniPCMultistepScheduler", "flow_shift": 3.0,
        "MINDIE_SD_FA_TYPE": "x",
    }  # fmt: skip
    assert json.loads(json.dumps(described.environment)) == described.environment


def test_several_ranks_are_named(omni: Omni, opened: Open) -> None:
    omni.found = found_npu(world_size=8)
    assert opened().describe().device == "Ascend910B2 x8 (bfloat16)"


def test_an_emulated_npu_never_measures(omni: Omni, opened: Open) -> None:
    omni.found = found(torch_dtype="float32")
    described = opened().describe()
    assert (described.latency, described.operator) == ("projected", "emulated")
    assert described.device == "emulated npu on cpu (float32)" and "cann" not in described.versions
    assert "no NPU: latency is projected, and every result is marked emulated" in described.remarks


def test_guidance_on_two_ranks_makes_one_call_a_cell_on_each(omni: Omni, opened: Open) -> None:
    omni.found = found(world_size=2, config={"cfg_parallel_size": 2})
    engine = opened({"cfg_parallel_size": "2"})
    assert engine.describe().calls_per_cell == 1
    everything = SkipPolicy("fp8")
    prove(engine.describe(), everything, engine.generate(everything, engine._workload.cases[0]))


def test_what_was_set_is_part_of_the_fingerprint(omni: Omni, opened: Open) -> None:
    plain = opened().describe()
    omni.found = found(config={"vae_use_tiling": True}, changed=["model", "boundary_ratio", "vae_use_tiling"])
    tiled = opened({"vae_use_tiling": "true"}).describe()
    assert tiled.settings == {**plain.settings, "vae_use_tiling": True}
    assert tiled.fingerprint != plain.fingerprint
    omni.found = found(config={"model": "elsewhere", "odd": {}}, changed=["model", "boundary_ratio", "odd"])
    assert opened().describe().fingerprint == plain.fingerprint, "where it lies says nothing of what it computes"
    omni.found = found(flow_shift=5.0)
    assert opened().describe().fingerprint != plain.fingerprint


@pytest.mark.parametrize("name", ["lora_path", "deploy_config"])
def test_a_file_goes_by_its_content(omni: Omni, opened: Open, tmp_path: Path, name: str) -> None:
    """Also where it is given by its name alone in a deploy file."""
    path = tmp_path / "file.yaml"
    prints = []
    for content in ("stages: []\n", "stages: [] \n", "stages: []\n"):
        path.write_text(content)
        omni.found = found(config={"lora_path": [str(path)] if name == "lora_path" else None})
        described = opened({name: str(path)} if name == "deploy_config" else {}).describe()
        key = f"lora {path}" if name == "lora_path" else "deploy_config_sha256"
        assert len(described.settings[key]) == 16
        prints.append(described.fingerprint)
    assert prints[0] == prints[2] != prints[1]


def test_a_lora_may_be_a_folder(omni: Omni, opened: Open, tmp_path: Path) -> None:
    (tmp_path / "lora").mkdir()
    prints = []
    for content in (b"one", b"two"):
        (tmp_path / "lora" / "adapter.safetensors").write_bytes(content)
        omni.found = found(config={"lora_path": str(tmp_path / "lora")})
        prints.append(opened({"lora_path": str(tmp_path / "lora")}).describe().fingerprint)
    assert prints[0] != prints[1]


def test_other_weights_are_another_environment(opened: Open, omni_work: Workload) -> None:
    before = opened().describe().fingerprint
    Path(omni_work.model, "more.safetensors").write_bytes(b"weights")
    assert opened().describe().fingerprint != before
