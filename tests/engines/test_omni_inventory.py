"""What a worker says of what is loaded: plain values, the same in every process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field, make_dataclass
from enum import Enum
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from tests.support.omni_modules import (
    PLATFORM,
    Attention,
    Config,
    Kernel,
    Parallel,
    Pipeline,
    Transformer,
    Worker,
    installed,
)


@pytest.fixture(autouse=True)
def vllm_omni(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in [name for name in os.environ if name.startswith(("MINDIE_", "DIFFUSION_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setitem(sys.modules, "mindiesd", None)
    with installed():
        yield


def found(pipeline: Any = None, config: Any = None) -> dict[str, Any]:
    return Worker(pipeline or Pipeline(), config).found


def test_a_loaded_pipeline() -> None:
    said = found()
    config, changed = said.pop("config"), said.pop("changed")
    assert said == {
        "pipeline": "Pipeline", "eligible": 2, "layers": [0, 1], "without_layer": 0, "backends": ["FLASH_ATTN"],
        "head_dims": [64], "causal": False, "depths": [3], "dtypes": ["fp8", "mxfp8", "mxfp4"], "platform": "npu",
        "is_npu": False, "emulates": "npu", "device": "cpu", "cann": "", "mindiesd": False, "quant_attention": False,
        "needs_quant_attention": False, "torch_dtype": "bfloat16", "world_size": 1, "scheduler": "Scheduler",
        "flow_shift": 3.0, "spatial": 8, "temporal": 4, "patch_size": [1, 2, 2], "variables": {}, "switchable": True,
        "policies": [("native", (), ())], "resumable": True, "shadows": True,
    }  # fmt: skip
    assert (config["dtype"], config["ring_degree"], config["world_size"]) == ("torch.bfloat16", 1, 1)
    assert changed == []


def test_two_experts() -> None:
    pipeline = Pipeline()
    pipeline.transformer_2 = Transformer(Attention(0), Attention(5))
    said = found(pipeline)
    assert (said["depths"], said["layers"], said["eligible"]) == ([3, 2], [0, 1, 5], 4)


def test_only_layers_that_may_run_quantized_count() -> None:
    odd = Attention(9, role="cross", backend="SDPA")
    odd.head_size, odd.causal = 48, True
    said = found(Pipeline(Attention(0), Attention(None), odd, Attention(7, disable=True)))
    assert (said["layers"], said["without_layer"], said["eligible"]) == ([0], 1, 2)
    assert (said["backends"], said["head_dims"], said["causal"]) == (["FLASH_ATTN"], [64], False)


def test_an_older_version_does_not_say_its_head_dim() -> None:
    layer = Attention(0)
    del layer.head_size
    assert found(Pipeline(layer))["head_dims"] == []


def test_a_version_that_cannot_switch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(Attention, "_init_kv_cache_quantization")
    assert found()["switchable"] is False


def test_dtypes_are_those_of_every_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    class Fp8Only(Kernel):
        supported = ("fp8",)

    layer = Attention(1)
    layer.attention = Fp8Only()
    assert found(Pipeline(Attention(0), layer))["dtypes"] == ["fp8"]
    assert found(Pipeline(Attention(0, disable=True)))["dtypes"] == [], "none takes part"
    monkeypatch.setattr(PLATFORM, "device_name", "cuda")
    assert (found()["dtypes"], found()["platform"]) == ([], "cuda")


def test_an_npu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PLATFORM, "is_npu", lambda: True)
    monkeypatch.setattr(PLATFORM, "emulates", "")
    monkeypatch.setattr(torch, "npu", SimpleNamespace(get_device_name=lambda: "Ascend910B2"), raising=False)
    torch_npu = ModuleType("torch_npu")
    torch_npu.version = SimpleNamespace(cann="8.5.0")  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch_npu", torch_npu)
    said = found()
    assert (said["is_npu"], said["emulates"], said["device"], said["cann"]) == (True, "", "Ascend910B2", "8.5.0")


@pytest.mark.parametrize("names", [(), ("quant_attention",)])
def test_mindie_sd(monkeypatch: pytest.MonkeyPatch, names: tuple[str, ...]) -> None:
    module = ModuleType("mindiesd")
    vars(module).update(dict.fromkeys(names))
    monkeypatch.setitem(sys.modules, "mindiesd", module)
    monkeypatch.setattr(Kernel, "_load_quant_runtime", None, raising=False)
    said = found()
    assert (said["mindiesd"], said["quant_attention"], said["needs_quant_attention"]) == (True, bool(names), True)


def test_variables_that_change_what_is_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINDIE_SD_FA_TYPE", "ascend_laser_attention")
    monkeypatch.setenv("DIFFUSION_ATTENTION_BACKEND", "FLASH_ATTN")
    monkeypatch.setenv("NOT_MINDIE_", "x")
    assert found()["variables"] == {
        "DIFFUSION_ATTENTION_BACKEND": "FLASH_ATTN", "MINDIE_SD_FA_TYPE": "ascend_laser_attention",
    }  # fmt: skip


# --- the configuration ----------------------------------------------------------------------------------------------


class Kind(Enum):
    ONE = "one"
    TWO = "two"


@dataclass
class Inner:
    size: int = 1


class Opaque:
    def __init__(self, size: int) -> None:
        self.size, self.hidden = size, object()


class Nameless:
    __slots__ = ()


@dataclass
class Full(Config):
    text: str = "x"
    nothing: str | None = None
    kind: Kind = Kind.ONE
    listed: list[int] = field(default_factory=lambda: [1])
    mapped: dict[str, Any] = field(default_factory=dict)
    chosen: set[int] = field(default_factory=set)
    inner: Inner = field(default_factory=Inner)
    opaque: Any = None
    required: int = field(kw_only=True)


def test_what_was_changed() -> None:
    plain = Full(required=1)
    assert found(config=plain)["changed"] == ["required"], "what has no default is always a choice"
    for name, value, shown in (
        ("text", "y", "y"), ("nothing", "", ""), ("kind", Kind.TWO, "two"), ("listed", (1, 2), [1, 2]),
        ("mapped", {1: {"a": Kind.ONE}}, {"1": {"a": "one"}}), ("chosen", {10, 9}, [10, 9]),
        ("inner", Inner(2), {"class": "Inner", "size": 2}), ("opaque", Opaque(3), {"class": "Opaque", "size": 3}),
    ):  # fmt: skip
        said = found(config=Full(**{"required": 1, name: value}))
        assert set(said["changed"]) == {"required", name}
        assert said["config"][name] == shown
    assert found(config=Full(required=1, kind=Kind.ONE, listed=[1], inner=Inner()))["changed"] == ["required"]


def test_parallel_settings_are_part_of_it() -> None:
    said = found(config=Config(parallel_config=Parallel(world_size=8)))
    assert said["config"]["world_size"] == said["world_size"] == 8 and "world_size" in said["changed"]


def test_everything_can_be_written_down() -> None:
    config = Full(required=1, opaque=Nameless(), mapped={"x": Nameless(), "y": float})
    said = found(config=config)
    assert json.loads(json.dumps(said["config"])) == said["config"]
    assert "0x" not in json.dumps(said["config"]), "an address is another in every process"
    assert said["config"]["opaque"] == {"class": "Nameless"}


ORDER = """
from fa_tuner.engines.vllm_omni.inventory import _plain
print(_plain({"b", "a", "c", "d", "e"}), _plain(frozenset(["x", 1, None])))
"""


def test_sets_have_an_order() -> None:
    printed = {
        subprocess.run(
            [sys.executable, "-c", ORDER], capture_output=True, text=True, check=True,
            env={**os.environ, "PYTHONHASHSEED": seed},
        ).stdout
        for seed in "123"
    }  # fmt: skip
    assert printed == {"['a', 'b', 'c', 'd', 'e'] [1, None, 'x']\n"}


def test_another_dataclass() -> None:
    """As a later version may have it."""
    kind = make_dataclass("Later", [("new", int, field(default=1))], bases=(Config,))
    assert found(config=kind(new=2))["changed"] == ["new"]
