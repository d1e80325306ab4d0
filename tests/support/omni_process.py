"""An `EngineProcess` that answers as vLLM-Omni's workers do, without a process."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from fa_tuner.domain.errors import EngineError
from fa_tuner.domain.policy import Grid, SkipPolicy
from fa_tuner.domain.selector import SkipSelector
from fa_tuner.engines.base import Generation, Prefix
from fa_tuner.engines.vllm_omni import engine as engine_module
from fa_tuner.engines.vllm_omni.engine import VllmOmniEngine
from fa_tuner.engines.vllm_omni.process import EngineSaidError

Triple = tuple[str, tuple[int, ...], tuple[int, ...]]  # dtype, skipped steps and layers
NATIVE: Triple = ("native", (), ())


def found(**changes: Any) -> dict[str, Any]:
    """What an emulated NPU says of a loaded Wan2.2, but for the policy; `config` is merged."""
    config = {
        "dtype": "torch.bfloat16", "ring_degree": 1, "cfg_parallel_size": 1, "tensor_parallel_size": 1,
        "max_num_seqs": 1, "cache_backend": "none", "step_execution": False, "lora_path": None, "lora_scale": 1.0,
        "boundary_ratio": 0.875, "flow_shift": None, "quantization_config": None, "vae_use_tiling": False, "model": "x",
    }  # fmt: skip
    known = {
        "pipeline": "Wan22Pipeline", "eligible": 4, "layers": [0, 1], "without_layer": 0, "backends": ["FLASH_ATTN"],
        "head_dims": [128], "causal": False, "depths": [2, 2], "dtypes": ["fp8", "mxfp8", "mxfp4"], "platform": "npu",
        "is_npu": False, "emulates": "npu", "device": "cpu", "cann": "", "mindiesd": True, "variables": {},
        "quant_attention": True, "needs_quant_attention": True, "torch_dtype": "bfloat16", "world_size": 1,
        "scheduler": "FlowUniPCMultistepScheduler", "flow_shift": 3.0, "spatial": 8, "temporal": 4,
        "patch_size": [1, 2, 2], "switchable": True, "resumable": True, "shadows": True,
        "changed": ["model", "boundary_ratio"],
    }  # fmt: skip
    return {**known, **changes, "config": {**config, **changes.get("config", {})}}


def found_npu(**changes: Any) -> dict[str, Any]:
    """A real one, whose times count."""
    return found(**{"is_npu": True, "emulates": "", "device": "Ascend910B2", "cann": "8.5.0", **changes})


@dataclass
class Omni:
    """What all processes of a test are like. `deployed` is the policy of its deploy file, `found` what it says of
    itself, on each of `ranks` (as many as it says, unless some are silent), `trouble` what the next requests raise
    (None: nothing), `alter` changes an answer to "generate"."""

    found: dict[str, Any] = field(default_factory=found)
    deployed: Triple = NATIVE
    ranks: int | None = None
    trouble: list[BaseException | None] = field(default_factory=list)
    alter: Callable[[dict[str, Any]], object] = lambda answer: None
    processes: list[FakeProcess] = field(default_factory=list)

    def start(self) -> FakeProcess:
        self.processes.append(FakeProcess(self))
        return self.processes[-1]

    @property
    def running(self) -> list[FakeProcess]:
        return [process for process in self.processes if not process.gone]

    @property
    def requests(self) -> list[dict[str, Any]]:
        return [request for process in self.processes for request in process.requests]

    @property
    def generations(self) -> list[dict[str, Any]]:
        return [request for request in self.requests if request["do"] == "generate"]


@dataclass
class FakeProcess:
    omni: Omni
    gone: bool = False
    requests: list[dict[str, Any]] = field(default_factory=list)
    quiet: list[float] = field(default_factory=list)
    in_force: Triple = NATIVE
    pid: int = 0

    def call(self, request: dict[str, Any], quiet_seconds: float) -> Any:
        assert not self.gone, "a process that failed or was closed is never asked again"
        self.requests.append(request)
        self.quiet.append(quiet_seconds)
        if self.omni.trouble and (error := self.omni.trouble.pop(0)) is not None:
            self.gone = True
            raise error
        arguments = {name: value for name, value in request.items() if name != "do"}
        return {"open": self._open, "generate": self._generate}[request["do"]](**arguments)

    def close(self) -> None:
        self.gone = True

    def _open(self, model: str, options: dict[str, Any], image: str | None, prefix_cache_mb: int) -> list[Any]:
        self.in_force = self.omni.deployed
        if "diffusion_kv_cache_dtype" in options:
            dtype, *skips = (
                options.get(f"diffusion_kv_cache_{name}", "") for name in ("dtype", "skip_steps", "skip_layers")
            )
            self.in_force = _triple("native" if dtype == "auto" else dtype, *skips)
        fixed = {name: options[name] for name in ("flow_shift", "boundary_ratio") if name in options}
        known = {**self.omni.found, "config": {**self.omni.found["config"], **fixed}}
        return [{"policies": [_plain(self.in_force)], **known}] * (self.omni.ranks or known["world_size"])

    def _generate(
        self, policy: tuple[str, str, str] | None, rows: tuple[str, ...], prefix: str, prompt: str,
        negative_prompt: str, sampling: dict[str, Any], shadows: list[tuple[int, tuple[int, ...], str]],
    ) -> dict[str, Any]:  # fmt: skip
        if policy is not None:
            self.in_force = _triple(*policy)
        dtype, steps, layers = self.in_force
        known = self.omni.found
        each = 2 if sampling["guidance_scale"] > 1 and known["config"]["cfg_parallel_size"] == 1 else 1
        calls = [
            [step, layer, "native" if step in steps or layer in layers else dtype, each]
            for step in range(sampling["num_inference_steps"])
            for layer in known["layers"]
        ]
        seed = hashlib.sha256(f"{prompt}{sampling['seed']}".encode()).digest()
        shape = (sampling["num_frames"], sampling["height"], sampling["width"], 3)
        frames = np.random.default_rng(list(seed)).integers(20, 200, shape, dtype=np.uint8)
        quantized = sum(cell[2] != "native" for cell in calls)
        frames[0, 0, :quantized] += np.uint8(30)
        seconds = 10.0 - quantized / 4
        answer = {
            "frames": frames, "seconds": seconds + 2, "peak_memory_mb": 100.0,
            "durations": {"Wan22Pipeline.diffuse": seconds, "Wan22Pipeline.vae.decode": 1.0, "total": 12.0},
            "begun": [{"policies": [_plain(self.in_force)]} for _ in range(known["world_size"])],
            "reports": [
                {
                    "calls": [list(call) for call in calls], "reused_calls": [], "start": 0, "ignored": {},
                    "step_seconds": [seconds / len(rows)] * len(rows), "cross_attention_quantized": 0,
                    "shadows": [[*shadow, 0.5 + shadow[0]] for shadow in shadows], "shadow_seconds": 0.0,
                }
                for _ in range(known["world_size"])
            ],
        }  # fmt: skip
        self.omni.alter(answer)
        return answer


def installed(monkeypatch: pytest.MonkeyPatch) -> Omni:
    """Put in place of the engine's process for one test."""
    omni = Omni()
    monkeypatch.setattr(engine_module, "EngineProcess", omni.start)
    monkeypatch.setattr(VllmOmniEngine, "unavailable_because", classmethod(lambda _: None))
    return omni


def died(how: str = "engine vllm-omni was killed by SIGKILL") -> EngineError:
    return EngineError(f"{how}; its log is /tmp/log")


def it_said(why: str) -> EngineSaidError:
    return EngineSaidError(f"{why}; its log is /tmp/log")


GRID = Grid(3, (0, 1))  # of what is found, and of three steps


def policy(text: str, dtype: str = "fp8") -> SkipPolicy:
    return SkipPolicy.parse(text, (dtype,), GRID)


def run(engine: VllmOmniEngine, asked: SkipPolicy, prompt: int = 0, prefix: Prefix = "none") -> Generation:
    return engine.generate(asked, engine._workload.cases[prompt], prefix)


def _triple(dtype: str, steps: str, layers: str) -> Triple:
    return dtype, SkipSelector.parse(steps).indices, SkipSelector.parse(layers).indices


def _plain(policy: Triple) -> list[Any]:
    """As it comes out of a remote call: no tuples."""
    return [policy[0], list(policy[1]), list(policy[2])]
