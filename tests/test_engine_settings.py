"""Settings of the engine vllm-omni: how they reach it, and which engine is taken where none is named."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from fa_tuner.domain.errors import DocumentError, UsageError
from fa_tuner.domain.workload import Workload
from fa_tuner.engines import registry
from fa_tuner.engines.diffusers import DiffusersEngine
from fa_tuner.engines.registry import default_engine
from fa_tuner.engines.vllm_omni import npu
from fa_tuner.engines.vllm_omni.npu import Devices
from fa_tuner.engines.vllm_omni.options import EngineOptions
from fa_tuner.settings import EngineSettings, StoreSettings, load_run_settings, sources

FLAGS: dict[str, tuple[str, Any]] = {
    "policy_switch": ("restart", "restart"),
    "tensor_parallel_size": ("2", 2),
    "ulysses_degree": ("4", 4),
    "cfg_parallel_size": ("2", 2),
    "vae_patch_parallel_size": ("2", 2),
    "vae_use_tiling": ("true", True),
    "vae_use_slicing": ("false", False),
    "enable_cpu_offload": ("true", True),
    "enable_layerwise_offload": ("false", False),
    "lora_scale": ("0.5", 0.5),
    "quantization": ("fp8", "fp8"),
}
PATHS = ("deploy_config", "lora_path")


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No variable of whoever runs the tests, and an empty folder to run in."""
    for name in [name for name in os.environ if name.upper().startswith("FA_TUNE_")]:
        monkeypatch.delenv(name)
    (tmp_path / "here").mkdir()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "here")


def options(**flags: Any) -> dict[str, Any]:
    return dict(load_run_settings({"model": "a/b", "prompts": ["a cat"], **flags}).request().engine_options)


# --- how they reach the engine --------------------------------------------------------------------------------------


def test_every_setting_of_the_engine_is_looked_at_here() -> None:
    assert EngineSettings.model_fields.keys() - StoreSettings.model_fields.keys() == {*FLAGS, *PATHS}


def test_what_is_not_set_is_left_to_vllm_omni() -> None:
    assert options() == {}


@pytest.mark.parametrize("name", FLAGS)
def test_a_value_reaches_the_engine_from_wherever_it_comes(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    text, value = FLAGS[name]
    assert options(**{name: value}) == {name: value}
    (tmp_path / "elsewhere" / "study.yaml").write_text(f"{name}: {text}\n")
    named = {"study_file": str(tmp_path / "elsewhere" / "study.yaml")}
    assert options(**named) == {name: value}
    monkeypatch.setenv(f"FA_TUNE_{name.upper()}", text)
    assert options() == {name: value}
    found = load_run_settings({})
    assert sources({}, found)[name] == "environment"


def test_they_are_handed_on_as_they_are() -> None:
    given = {name: value for name, (_, value) in FLAGS.items()}
    parsed = EngineOptions.parse(options(**given))
    assert parsed.policy_switch == "restart"
    assert parsed.omni == {name: value for name, value in given.items() if name != "policy_switch"}


@pytest.mark.parametrize("name", PATHS)
def test_a_path_is_taken_from_here_and_handed_on_whole(name: str, tmp_path: Path) -> None:
    (tmp_path / "here" / "file.yaml").touch()
    assert options(**{name: "file.yaml"}) == {name: str(tmp_path / "here" / "file.yaml")}
    assert options(**{name: "../elsewhere/x"}) == {name: str(tmp_path / "elsewhere" / "x")}


@pytest.mark.parametrize("name", PATHS)
def test_a_path_of_a_study_file_is_taken_from_beside_it(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    beside = tmp_path / "elsewhere" / "file.yaml"
    study = tmp_path / "elsewhere" / "study.yaml"
    study.write_text(f"{name}: file.yaml\n")
    for folder in ("here", "elsewhere"):
        (tmp_path / folder / "file.yaml").touch()
    assert options(study_file=str(study)) == {name: str(beside)}
    assert options(study_file=str(study), **{name: "file.yaml"}) == {name: str(tmp_path / "here" / "file.yaml")}
    beside.unlink()
    assert options(study_file=str(study)) == {name: str(tmp_path / "here" / "file.yaml")}


def test_engine_args_stand_beside_them_and_behind() -> None:
    given = options(engine_args={"hang_seconds": "5", "vae_use_tiling": "no"}, vae_use_tiling=True, device="npu")
    assert given == {"hang_seconds": "5", "vae_use_tiling": True, "device": "npu"}


@pytest.mark.parametrize(
    ("name", "value"),
    [("policy_switch", "sometimes"), ("tensor_parallel_size", 0), ("ulysses_degree", -1), ("cfg_parallel_size", 3),
     ("vae_patch_parallel_size", "many"), ("vae_use_tiling", "perhaps"), ("lora_scale", "much")],
)  # fmt: skip
def test_a_value_that_cannot_be_taken_is_named(name: str, value: Any) -> None:
    with pytest.raises(UsageError, match=rf"setting '{name}' \(flag, FA_TUNE_{name.upper()} or study file\)"):
        options(**{name: value})


def test_a_misspelt_one_is_refused(tmp_path: Path) -> None:
    study = tmp_path / "elsewhere" / "study.yaml"
    study.write_text("tensor_paralel_size: 2\n")
    with pytest.raises(DocumentError, match="unknown key 'tensor_paralel_size'"):
        options(study_file=str(study))


# --- which engine ---------------------------------------------------------------------------------------------------


def installed(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    monkeypatch.setattr(registry, "find_spec", lambda name: object() if name in names else None)


@pytest.mark.parametrize("names", [(), ("vllm_omni",), ("torch_npu",)], ids=str)
def test_without_vllm_omni_or_an_npus_torch_it_is_diffusers(
    monkeypatch: pytest.MonkeyPatch, names: tuple[str, ...]
) -> None:
    installed(monkeypatch, *names)
    monkeypatch.setattr(npu, "ask_devices", lambda: pytest.fail("there is nothing to ask"))
    assert default_engine() == "diffusers" == load_run_settings({}).engine


@pytest.mark.parametrize(
    ("devices", "engine"),
    [
        (Devices(("Ascend910B2",)), "vllm-omni"),
        (Devices(), "diffusers"),
        (Devices(failure="torch_npu fails: libascend_hal.so"), "diffusers"),
        (Devices(failure="no answer", timed_out=True), "diffusers"),
    ],
    ids=["an NPU", "none", "broken", "hanging"],
)
def test_with_both_an_npu_must_answer(monkeypatch: pytest.MonkeyPatch, devices: Devices, engine: str) -> None:
    installed(monkeypatch, "vllm_omni", "torch_npu")
    monkeypatch.setattr(npu, "ask_devices", lambda: devices)
    assert default_engine() == engine == load_run_settings({}).engine
    assert load_run_settings({"engine": "replay"}).engine == "replay"


def test_the_devices_are_not_asked_where_an_engine_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch, "vllm_omni", "torch_npu")
    monkeypatch.setattr(npu, "ask_devices", lambda: pytest.fail("it was named"))
    assert load_run_settings({"engine": "diffusers"}).engine == "diffusers"


@pytest.mark.parametrize("name", FLAGS)
def test_another_engine_refuses_them(name: str, tmp_path: Path) -> None:
    """To drop one in silence would be to measure something else than was asked for."""
    with pytest.raises(
        UsageError, match=f"engine diffusers does not know option '{name}'; it takes device, torch_dtype"
    ):
        DiffusersEngine.open(Workload(str(tmp_path), ("a cat",), 32, 32, 5, 3), options(**{name: FLAGS[name][1]}))
