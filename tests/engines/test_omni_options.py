"""What a user may set of vLLM-Omni."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fa_tuner.domain.errors import FaTuneError, NotFoundError, UsageError
from fa_tuner.engines.vllm_omni.options import EngineOptions, refuse_what_cannot_be_tuned


def refusal(options: dict[str, Any], kind: type[FaTuneError] = UsageError) -> str:
    with pytest.raises(FaTuneError) as caught:
        EngineOptions.parse(options)
    assert caught.type is kind
    return str(caught.value)


@pytest.fixture
def deploy(tmp_path: Path) -> str:
    path = tmp_path / "deploy.yaml"
    path.write_text("stages: []\n")
    return str(path)


# --- what is taken --------------------------------------------------------------------------------------------------


def test_nothing_given() -> None:
    assert EngineOptions.parse({}) == EngineOptions({}, None, "auto", 4096, 900.0, 3600.0, False)


def test_our_own_options_are_not_handed_on(deploy: str) -> None:
    given = {
        "image": "p.png", "policy_switch": "restart", "prefix_cache_mb": "0", "hang_seconds": "1.5",
        "start_seconds": 60, "as_deployed": True, "deploy_config": deploy, "dtype": "float32",
    }  # fmt: skip
    assert EngineOptions.parse(given) == EngineOptions(
        {"deploy_config": deploy, "dtype": "float32"}, Path("p.png"), "restart", 0, 1.5, 60, True
    )
    assert given["prefix_cache_mb"] == "0", "the caller's own options are left as they are"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("2", 2), ("-1", -1), ("1.5", 1.5), ("1e3", 1000.0), ("true", True), ("True", True), (" FALSE ", False),
        ("null", None), ("None", "None"), ("[1, 2]", [1, 2]), ('{"a": {"b": 1}}', {"a": {"b": 1}}), ('"2"', "2"),
        ("fp8", "fp8"), ("", ""), ("007", "007"), ("{a: 1}", "{a: 1}"), ("a b", "a b"), ("TRUE STORY", "TRUE STORY"),
        ("[" * 100_000, "[" * 100_000), ("9" * 5000, "9" * 5000),
    ],
    ids=lambda value: ascii(value)[:20],
)  # fmt: skip
def test_text_is_json_where_it_reads_as_json(text: str, value: Any) -> None:
    found = EngineOptions.parse({"x": text}).omni["x"]
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize("value", [2, 1.5, True, None, [1], {"a": "1"}], ids=str)
def test_what_is_no_text_is_taken_as_it_is(value: Any) -> None:
    assert EngineOptions.parse({"x": value}).omni["x"] is value


@pytest.mark.parametrize("value", ["auto", "runtime", "restart"])
def test_how_policies_are_switched(value: str) -> None:
    assert EngineOptions.parse({"policy_switch": value}).policy_switch == value


# --- what is refused ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("model", "give --model"),
        ("revision", "give --revision"),
        ("device", "ASCEND_RT_VISIBLE_DEVICES"),
        ("worker_extension_cls", "fa-tune counts attention calls there"),
        ("enable_diffusion_pipeline_profiler", "fa-tune takes the times from it"),
        ("diffusion_kv_cache_dtype", "give --dtype"),
        ("diffusion_kv_cache_skip_steps", "give --try"),
        ("diffusion_kv_cache_skip_layers", "give --try"),
        ("kv_cache_dtype", "give --dtype"),
        ("flow_shift", "give --flow-shift"),
        ("boundary_ratio", "give --boundary-ratio"),
        ("stage_configs_path", "give --deploy-config"),
        ("output_type", "fa-tune compares frames"),
    ],
)
def test_what_fa_tune_sets_itself(name: str, remedy: str) -> None:
    for value in ("x", None):
        said = refusal({"dtype": "float32", name: value})
        assert f"engine option {name!r} is set by fa-tune" in said and remedy in said


@pytest.mark.parametrize("value", ["sometimes", "", "AUTO", "1", "[]", "null"])
def test_another_way_to_switch(value: str) -> None:
    assert "choose auto, runtime, restart" in refusal({"policy_switch": value})


@pytest.mark.parametrize("value", ["soon", "", "-1", "1e9", "NaN", "Infinity", "true", "null", "[1]", True])
@pytest.mark.parametrize("name", ["prefix_cache_mb", "hang_seconds", "start_seconds"])
def test_what_is_no_such_number(name: str, value: Any) -> None:
    assert f"engine option {name} is " in refusal({name: value})


def test_the_least_of_each() -> None:
    found = EngineOptions.parse({"prefix_cache_mb": "0", "hang_seconds": "1", "start_seconds": "1"})
    assert (found.prefix_cache_mb, found.hang_seconds, found.start_seconds) == (0, 1, 1)
    for name in ("hang_seconds", "start_seconds"):
        assert "it must be a number from 1 on" in refusal({name: "0.5"})


def test_a_deploy_configuration_that_is_not_there(deploy: str, tmp_path: Path) -> None:
    for name in (f"{deploy}.none", str(tmp_path), "", "nul\0"):
        assert f"deploy configuration {name} does not exist" in refusal({"deploy_config": name}, NotFoundError)


def test_a_lora_that_is_not_here(tmp_path: Path) -> None:
    """What vLLM-Omni would fetch by its name has no digest here."""
    for name in ("someone/a-lora", f"{tmp_path}/none.safetensors", "nul\0"):
        assert f"LoRA {name} does not exist" in refusal({"lora_path": name}, NotFoundError)
        assert f"LoRA {name} does not exist" in refusal({"lora_path": [str(tmp_path), name]}, NotFoundError)
    (tmp_path / "lora.safetensors").touch()
    for path in (tmp_path, tmp_path / "lora.safetensors"):
        assert EngineOptions.parse({"lora_path": str(path)}).omni == {"lora_path": str(path)}


def test_as_deployed_needs_a_deploy_configuration(deploy: str) -> None:
    assert "give --deploy-config FILE" in refusal({"as_deployed": True})
    assert EngineOptions.parse({"as_deployed": False}).as_deployed is False
    assert EngineOptions.parse({"as_deployed": "true", "deploy_config": deploy}).as_deployed is True
    assert EngineOptions.parse({"deploy_config": deploy}).as_deployed is False


@pytest.mark.parametrize("name", ["stage_overrides", "strategy_config"])
def test_as_deployed_is_as_deployed(deploy: str, name: str) -> None:
    options = {"deploy_config": deploy, name: "{}"}
    EngineOptions.parse(options)
    assert f"{name} would replace what the deploy" in refusal({**options, "as_deployed": True})


# --- what cannot be tuned under -------------------------------------------------------------------------------------

UNTUNABLE = [
    ({"cache_backend": "tea_cache"}, "step cache tea_cache (cache_backend): cached steps run no block"),
    ({"max_num_seqs": 4}, "max_num_seqs is 4: a policy is measured on one request at a time"),
    ({"step_execution": True}, "step_execution runs each step as a request of its own"),
    ({"pipeline_parallel_size": 2}, "pipeline_parallel_size is 2: ranks would hold different layers or requests"),
    ({"data_parallel_size": 4}, "data_parallel_size is 4: ranks would hold different layers or requests"),
    ({"ring_degree": 2}, "ring_degree is 2: vLLM-Omni's quantized attention takes no ring; use ulysses_degree"),
]


@pytest.mark.parametrize(("config", "said"), UNTUNABLE, ids=str)
def test_what_cannot_be_tuned_under(config: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError) as caught:
        refuse_what_cannot_be_tuned({"other": 1, **config})
    assert said in str(caught.value)
    assert said in refusal({name: str(value) for name, value in config.items()})  # as the command line gives it


@pytest.mark.parametrize(
    "config",
    [
        {}, {"cache_backend": None}, {"cache_backend": "none"}, {"cache_backend": ""}, {"max_num_seqs": None},
        {"max_num_seqs": 1}, {"step_execution": False}, {"step_execution": None}, {"ring_degree": 1},
        {"ring_degree": None}, {"ulysses_degree": 4, "tensor_parallel_size": 2, "cfg_parallel_size": 2},
    ],
    ids=str,
)  # fmt: skip
def test_what_can(config: dict[str, Any]) -> None:
    refuse_what_cannot_be_tuned(config)
    assert EngineOptions.parse(config).omni == config
