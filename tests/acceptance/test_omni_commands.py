"""`fa-tune run` and `fa-tune verify` with the engine vllm-omni, whose process answers as vLLM-Omni's workers do."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.command import FaTune, Result
from tests.support.omni_process import NATIVE, Omni, found, found_npu, installed

SIZE = ("--height", "32", "--width", "48", "--num-frames", "5", "--num-inference-steps", "3", "--guidance-scale", "4")
NEW = ("--prompt", "a bird")
Verify = Callable[..., Result]


@pytest.fixture
def omni(monkeypatch: pytest.MonkeyPatch) -> Omni:
    return installed(monkeypatch)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model_index.json").write_text('{"_class_name": "WanPipeline"}')
    return tmp_path / "model"


@pytest.fixture
def deploy(tmp_path: Path, omni: Omni) -> Path:
    """A deploy file, and the engine as it is loaded from it."""
    omni.deployed = ("fp8", (0,), ())
    (tmp_path / "deploy.yaml").write_text("stages: []\n")
    return tmp_path / "deploy.yaml"


@pytest.fixture
def verify(fa_tune: FaTune, omni: Omni, model: Path, deploy: Path) -> Verify:
    """`fa-tune verify` of that file on a workload of three steps; the engine is closed afterwards."""

    def run(*arguments: str | Path, work: tuple[str, ...] = SIZE, prompts: tuple[str, ...] = NEW) -> Result:
        result = fa_tune("verify", "--deploy-config", deploy, "--model", model, *work, *prompts, *arguments)
        assert not omni.running
        return result

    return run


@pytest.fixture
def study(fa_tune: FaTune, omni: Omni, model: Path) -> str:
    """A finished study "s" of two prompts and a held-out one."""
    prompts = ("--prompt", "a cat", "--prompt", "a dog", "--holdout-prompt", "a fish")
    run = ("run", "--engine", "vllm-omni", "--model", model, *SIZE, *prompts)
    fa_tune(*run, "--study", "s", "--trials", "3", "--min-psnr", "20").succeeded()
    assert not omni.running
    return "s"


# --- run ------------------------------------------------------------------------------------------------------------


def test_flags_reach_vllm_omni(fa_tune: FaTune, omni: Omni, model: Path, tmp_path: Path) -> None:
    lora, file = tmp_path / "lora.safetensors", tmp_path / "deploy.yaml"
    lora.write_bytes(b"weights")
    file.write_text("stages: []\n")
    set_ = {
        "tensor_parallel_size": 2, "ulysses_degree": 4, "cfg_parallel_size": 2, "vae_patch_parallel_size": 3,
        "vae_use_tiling": True, "vae_use_slicing": True, "enable_cpu_offload": True,
        "enable_layerwise_offload": True, "lora_path": str(lora), "lora_scale": 0.5,
    }  # fmt: skip
    omni.found = found(config={**set_, "quantization_config": "fp8"}, world_size=2)
    fa_tune(
        "run", "--engine", "vllm-omni", "--model", model, *SIZE, "--prompt", "a cat", "--dry-run",
        "--deploy-config", file.name, "--policy-switch", "restart", "-tp", "2", "--usp", "4",
        "--cfg-parallel-size", "2", "--vae-patch-parallel-size", "3", "--vae-use-tiling", "--vae-use-slicing",
        "--enable-cpu-offload", "--enable-layerwise-offload", "--lora-path", lora.name, "--lora-scale", "0.5",
        "-q", "fp8", "--engine-arg", "start_seconds=60", "--engine-arg", "prefix_cache_mb=7", "--flow-shift", "3",
    ).succeeded()  # fmt: skip
    (opened, _) = omni.requests
    assert opened["options"] == {
        **set_, "deploy_config": str(file), "quantization": "fp8", "stage_init_timeout": 60, "init_timeout": 60,
        "flow_shift": 3.0, "diffusion_kv_cache_dtype": "auto",
    }  # fmt: skip
    assert opened["prefix_cache_mb"] == 7 and not omni.running


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--policy-switch", "sometimes"), ("policy_switch", "sometimes")),
        (("-tp", "0"), ("tensor_parallel_size",)),
        (("--cfg-parallel-size", "3"), ("cfg_parallel_size",)),
        (("--engine-arg", "cache_backend=tea_cache"), ("cached steps run no block",)),
        (("--engine-arg", "hang_seconds=soon"), ("hang_seconds", "number")),
        (("--device", "npu"), ("'device' is set by fa-tune", "ASCEND_RT_VISIBLE_DEVICES")),
        (("--guidance-2", "1"), ("guidance 4 and 1",)),
    ],
)
def test_bad_usage(
    fa_tune: FaTune, omni: Omni, model: Path, arguments: tuple[str, ...], words: tuple[str, ...]
) -> None:
    run = ("run", "--engine", "vllm-omni", "--model", model, *SIZE, "--prompt", "a cat")
    fa_tune(*run, *arguments).refused(2, *words)
    assert omni.processes == [] and fa_tune("studies", "--json").document == []


def test_files_that_are_not_there(fa_tune: FaTune, omni: Omni, model: Path) -> None:
    run = ("run", "--engine", "vllm-omni", "--model", model, *SIZE, "--prompt", "a cat")
    fa_tune(*run, "--deploy-config", "none.yaml").refused(3, "deploy configuration", "none.yaml")
    fa_tune(*run, "--lora-path", "none.safetensors").refused(3, "LoRA", "none.safetensors")
    assert omni.processes == []


def test_other_engines_refuse_the_flags(fa_tune: FaTune, model: Path) -> None:
    run = ("run", "--engine", "diffusers", "--model", model, *SIZE, "--prompt", "a cat")
    fa_tune(*run, "--ulysses-degree", "2").refused(2, "engine diffusers does not know option 'ulysses_degree'")


def test_a_study_goes_on_only_in_the_same_environment(fa_tune: FaTune, omni: Omni, model: Path, study: str) -> None:
    prompts = ("--prompt", "a cat", "--prompt", "a dog", "--holdout-prompt", "a fish")
    run = ("run", "--engine", "vllm-omni", "--model", model, *SIZE, *prompts, "--study", study, "--min-psnr", "20")
    ran = fa_tune(*run, "--trials", "4", "--json").succeeded().document
    assert (ran["state"], ran["evaluated"]) == ("finished", 4)
    omni.found = found(config={"vae_use_tiling": True}, changed=["boundary_ratio", "vae_use_tiling"])
    refused = fa_tune(*run, "--trials", "5", "--vae-use-tiling")
    refused.refused(4, "environment settings vae_use_tiling (stored: absent, asked: True). Give")
    assert "scheduler" not in refused.err and not omni.running


# --- verify: what is asked ------------------------------------------------------------------------------------------


def test_verify_needs_a_file(fa_tune: FaTune, omni: Omni, model: Path) -> None:
    fa_tune("verify", "--model", model, *SIZE, *NEW).refused(2, "--deploy-config")
    fa_tune("verify", "--deploy-config", "none.yaml", "--model", model, *SIZE, *NEW).refused(3, "none.yaml")
    assert omni.processes == []


def test_verify_needs_a_workload(fa_tune: FaTune, omni: Omni, model: Path, deploy: Path) -> None:
    fa_tune("verify", "--deploy-config", deploy).refused(2, "--model")
    fa_tune("verify", "--deploy-config", deploy, "--model", model, *SIZE).refused(2, "--prompt")
    fa_tune("verify", "--deploy-config", deploy, "--study", "none").refused(3, "none", "fa-tune studies")
    assert omni.processes == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--quality", "best"), ("best", "strict")),
        (("--aggregate", "median"), ("median",)),
        (("--min-psnr", "101"), ("101",)),
        (("--engine-arg", "as_deployed"), ("key=value",)),
        (("--engine-arg", "stage_overrides={}"), ("stage_overrides would replace what the deploy configuration says",)),
        (("--engine-arg", "kv_cache_dtype=fp8"), ("is set by fa-tune",)),
        (("--repeats", "1"), ("repeats",)),
    ],
)
def test_verify_bad_usage(verify: Verify, omni: Omni, arguments: tuple[str, ...], words: tuple[str, ...]) -> None:
    verify(*arguments).refused(2, *words)
    assert omni.processes == []


def test_a_prompt_that_was_searched_on(fa_tune: FaTune, omni: Omni, study: str, deploy: Path) -> None:
    before = len(omni.processes)
    ask = ("verify", "--deploy-config", deploy, "--study", study)
    fa_tune(*ask, "--prompt", "a bird", "--prompt", "a dog").refused(2, "'a dog' was searched on in study s")
    Path("prompts.txt").write_text("a bird\na cat\n")
    fa_tune(*ask, "--prompts-file", "prompts.txt").refused(2, "'a cat' was searched on")
    assert len(omni.processes) == before


def test_a_study_that_held_no_prompt_out(fa_tune: FaTune, omni: Omni, model: Path, deploy: Path) -> None:
    omni.deployed = NATIVE
    run = ("run", "--engine", "vllm-omni", "--model", model, *SIZE, "--prompt", "a cat", "--min-psnr", "20")
    fa_tune(*run, "--study", "s", "--trials", "2").succeeded()
    omni.deployed = ("fp8", (), ())
    fa_tune("verify", "--deploy-config", deploy, "--study", "s").refused(2, "study s held no prompt out", "--prompt")
    fa_tune("verify", "--deploy-config", deploy, "--study", "s", *NEW).succeeded()


# --- verify: what was loaded ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("deployed", "code", "words"),
    [
        (NATIVE, 7, ("deploy.yaml: the engine loaded from it quantizes nothing", "matching stage_id")),
        (("fp8", (0, 7), ()), 2, ("deploy.yaml skips step 7, and this workload has 3 steps",)),
        (("fp8", (), (2,)), 2, ("skips layer 2, and this workload has 2 layers",)),
        (("fp8", (0, 1, 2), ()), 7, ("skips every step or every layer of 3 steps x 2 layers",)),
        (("fp8", (), (0, 1)), 7, ("quantizes nothing",)),
        (("mxfp8", (), ()), 2, ("mxfp8", "profile")),
    ],
    ids=str,
)
def test_a_policy_that_cannot_be_verified(
    verify: Verify, omni: Omni, deployed: Any, code: int, words: tuple[str, ...]
) -> None:
    omni.deployed = deployed
    verify().refused(code, *words)
    assert omni.generations == []


def test_another_environment_than_the_studys(fa_tune: FaTune, omni: Omni, study: str, deploy: Path) -> None:
    omni.found = found(scheduler="EulerScheduler")
    ask = ("verify", "--deploy-config", deploy, "--study", study)
    fa_tune(*ask).refused(4, "another environment", "settings scheduler", "FlowUniPC", "EulerScheduler")
    omni.found = found(variables={"MINDIE_SD_FA_TYPE": "x"})
    fa_tune(*ask).refused(4, "environment: settings MINDIE_SD_FA_TYPE (study: absent, here: x). Give")
    assert not omni.running


# --- verify: what comes out -----------------------------------------------------------------------------------------


def test_a_file_that_passes(verify: Verify, omni: Omni) -> None:
    verdict = verify("--min-psnr", "20", "--json").succeeded().document
    assert verdict["passed"] is True and verdict["misses"] == []
    assert verdict["policy"]["skip_steps"] == "0" and verdict["requirement"] == "psnr_db>=20 (worst prompt)"
    assert verdict["environment"]["operator"] == "emulated" and verdict["noise_floor_db"] == 100.0
    first, *others = omni.generations
    assert first["policy"] is None, "the file's policy runs first, as it was loaded"
    assert [request["policy"] for request in others] == [("native", "", ""), None, ("fp8", "0", "")]
    assert omni.requests[0]["options"].keys() == {"stage_init_timeout", "init_timeout", "deploy_config"}
    printed = verify("--min-psnr", "20").succeeded().out
    assert printed.rstrip().endswith("passed") and 'loaded      fp8, skip steps "0"' in printed
    assert "coverage    proven: 8 quantized attention calls, 4 native" in printed


def test_the_studys_workload_and_requirement(fa_tune: FaTune, omni: Omni, study: str, deploy: Path) -> None:
    before = len(omni.generations)
    verdict = fa_tune("verify", "--deploy-config", deploy, "--study", study, "--json").succeeded().document
    assert verdict["requirement"] == "psnr_db>=20 (worst prompt)"
    assert {request["prompt"] for request in omni.generations[before:]} == {"a fish"}
    stricter = fa_tune(
        "verify", "--deploy-config", deploy, "--study", study, "--constraint", "mae<=0.0001", *NEW, "--json"
    )
    stricter.refused(6, "mae<=0.0001 is missed by")
    assert "psnr_db>=20" in stricter.out and "mae<=0.0001" in stricter.out
    assert {"a bird"} == {request["prompt"] for request in omni.generations[-4:]}


def test_a_file_that_misses_a_bound(verify: Verify) -> None:
    missed = verify("--min-psnr", "95")
    missed.refused(6, "does not pass", "psnr_db>=95 is missed by")
    assert "not passed: psnr_db>=95 is missed by" in missed.out


def test_a_gain_within_the_noise(verify: Verify, omni: Omni) -> None:
    omni.found = found_npu()
    verify("--min-psnr", "20").succeeded()
    omni.alter = lambda answer: answer["durations"].update({"Wan22Pipeline.diffuse": 10.0})
    verify("--min-psnr", "20").refused(6, "a gain of 0.0% is within the timing noise of ±0.0%")


def test_what_was_loaded_is_not_what_was_measured(verify: Verify, omni: Omni) -> None:
    def first(answer: dict[str, Any]) -> None:
        if len(omni.generations) == 1:
            answer["frames"] = np.roll(answer["frames"], 1, axis=2)

    omni.alter = first
    verify("--min-psnr", "20").refused(7, "the policy as loaded and the same one switched to agree to", "100.00 dB")


def test_what_was_loaded_did_not_run(verify: Verify, omni: Omni) -> None:
    """Though the layers hold it."""

    def fell_back(answer: dict[str, Any]) -> None:
        for call in answer["reports"][0]["calls"]:
            call[2] = "native"

    omni.alter = fell_back
    verify("--min-psnr", "20").refused(7, 'under policy fp8, skip steps "0"', "nothing ran quantized")
    assert len(omni.generations) == 1


def test_a_bound_above_the_noise_floor(verify: Verify, omni: Omni) -> None:
    rng = np.random.default_rng(0)

    def noisy(answer: dict[str, Any]) -> None:
        answer["frames"] = answer["frames"] + rng.integers(0, 9, answer["frames"].shape, dtype=np.uint8)

    omni.alter = noisy
    verify("--min-psnr", "60").refused(2, "60 dB", "noise floor")
