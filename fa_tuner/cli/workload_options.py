"""Options that say what is generated and by what, shared by `run` and `verify`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from fa_tuner.domain.errors import UsageError

MODEL, OMNI, WORK, GOAL, SEARCH = "Model and engine", "vLLM-Omni", "Workload", "Goal", "Search"


def option(*names: str, panel: str, help: str) -> Any:
    return typer.Option(*names, help=help, rich_help_panel=panel, show_default=False)


Model = Annotated[str | None, option("--model", panel=MODEL, help="Folder or hub id of a diffusers pipeline.")]
StudyFile = Annotated[Path | None, option("--study-file", panel=MODEL, help="YAML with any of these settings.")]
Engine = Annotated[
    str | None,
    option("--engine", panel=MODEL, help="vllm-omni (default where it has an NPU), diffusers or replay."),
]
EngineArg = Annotated[list[str] | None, option("--engine-arg", panel=MODEL, help="key=value; repeatable.")]
Device = Annotated[str | None, option("--device", panel=MODEL, help="cpu, cuda or npu; for engine diffusers.")]
Revision = Annotated[str | None, option("--revision", panel=MODEL, help="Of a hub model.")]

DeployConfig = Annotated[Path | None, option("--deploy-config", panel=OMNI, help="Deploy YAML to start from.")]
PolicySwitch = Annotated[
    str | None, option("--policy-switch", panel=OMNI, help="runtime, restart or auto (default): policies in force how.")
]
TensorParallel = Annotated[
    int | None, option("--tensor-parallel-size", "-tp", panel=OMNI, help="Ranks that share each layer.")
]
Ulysses = Annotated[int | None, option("--ulysses-degree", "--usp", panel=OMNI, help="Ranks that share the sequence.")]
CfgParallel = Annotated[int | None, option("--cfg-parallel-size", panel=OMNI, help="2: guidance branches at once.")]
VaePatchParallel = Annotated[
    int | None, option("--vae-patch-parallel-size", panel=OMNI, help="Ranks that share the VAE's patches.")
]
VaeTiling = Annotated[bool | None, option("--vae-use-tiling", panel=OMNI, help="VAE in tiles.")]
VaeSlicing = Annotated[bool | None, option("--vae-use-slicing", panel=OMNI, help="VAE in slices.")]
CpuOffload = Annotated[bool | None, option("--enable-cpu-offload", panel=OMNI, help="Swap transformer and encoders.")]
LayerwiseOffload = Annotated[bool | None, option("--enable-layerwise-offload", panel=OMNI, help="Swap block by block.")]
LoraPath = Annotated[Path | None, option("--lora-path", panel=OMNI, help="LoRA loaded at start.")]
LoraScale = Annotated[float | None, option("--lora-scale", panel=OMNI, help="Its scale.")]
Quantization = Annotated[str | None, option("--quantization", "-q", panel=OMNI, help="Of the weights, such as fp8.")]

Prompt = Annotated[list[str] | None, option("--prompt", panel=WORK, help="Repeatable.")]
PromptsFile = Annotated[Path | None, option("--prompts-file", panel=WORK, help="One prompt a line.")]
Seed = Annotated[list[int] | None, option("--seed", panel=WORK, help="Repeatable.")]
Height = Annotated[int | None, option("--height", panel=WORK, help="Pixels.")]
Width = Annotated[int | None, option("--width", panel=WORK, help="Pixels.")]
Frames = Annotated[int | None, option("--frames", "--num-frames", panel=WORK, help="Frames of a clip.")]
Steps = Annotated[int | None, option("--steps", "--num-inference-steps", panel=WORK, help="Denoising steps.")]
Guidance = Annotated[float | None, option("--guidance", "--guidance-scale", panel=WORK, help="CFG scale.")]
Guidance2 = Annotated[float | None, option("--guidance-2", panel=WORK, help="Of the low-noise transformer.")]
NegativePrompt = Annotated[str | None, option("--negative-prompt", panel=WORK, help="For guidance.")]
FlowShift = Annotated[float | None, option("--flow-shift", panel=WORK, help="Scheduler's.")]
BoundaryRatio = Annotated[float | None, option("--boundary-ratio", panel=WORK, help="Wan2.2's expert boundary.")]
Image = Annotated[Path | None, option("--image", panel=WORK, help="Makes it image-to-video.")]

DeviceProfile = Annotated[
    str | None, option("--device-profile", panel=GOAL, help="Project latency from it (name or file).")
]
Repeats = Annotated[int | None, option("--repeats", panel=GOAL, help="Timed repeats where latency is measured.")]

_SETTINGS = {
    "engine_arg": "engine_args", "prompt": "prompts", "holdout_prompt": "holdout_prompts", "seed": "seeds",
    "constraint": "constraints", "try_": "tries",
}  # fmt: skip


def as_settings(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """A command's parameters by the names of `RunSettings`, only those that were given."""
    from .options import given

    flags = given({_SETTINGS.get(name, name): value for name, value in parameters.items()})
    if "engine_args" in flags:
        flags["engine_args"] = _key_values(flags["engine_args"])
    return flags


def _key_values(pairs: list[str]) -> dict[str, str]:
    for pair in pairs:
        if not pair.partition("=")[0] or "=" not in pair:
            raise UsageError(f"--engine-arg {pair[:60]!r} is not of the form key=value")
    return dict(pair.split("=", 1) for pair in pairs)
