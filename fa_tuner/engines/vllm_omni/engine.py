"""Engine `vllm-omni`: the real engine and its own FP8 attention path, in a process of its own."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import astuple
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from fa_tuner.domain.errors import EngineError, NotQuantizedError, UsageError
from fa_tuner.domain.policy import SkipPolicy
from fa_tuner.domain.workload import Case, Workload
from fa_tuner.engines.base import CellCall, Description, Engine, Generation, Prefix, Shadow
from fa_tuner.engines.fitting import check_pipeline
from fa_tuner.engines.model_files import locate, read_index
from fa_tuner.engines.pictures import open_picture
from fa_tuner.engines.prefixes import step_rows
from fa_tuner.engines.vllm_omni.loaded import Loaded, held_policy
from fa_tuner.engines.vllm_omni.options import EngineOptions
from fa_tuner.engines.vllm_omni.process import EngineProcess, EngineSaidError

_NATIVE = SkipPolicy()

# What vLLM-Omni says where it refuses to quantize; all else is a failure of the run
_REFUSALS = (
    "does not support kv_cache_dtype",
    "NPU attention precision",
    "KV quantization is not compatible with ring",
    "Attention quantization skip_layers requires",
    "Unsupported NPU attention quantization",
    "requires a compatible MindIE-SD",
    "fp8_rotate_quant_fa requires",
)


class VllmOmniEngine(Engine):
    """Options: see `EngineOptions`; all others go to vLLM-Omni as they are. `deployed` is the policy that the engine
    was loaded with: the native one, or that of a deploy configuration."""

    def __init__(self, workload: Workload, options: EngineOptions, folder: Path) -> None:
        self._workload = workload
        self._options = options
        self._folder = folder
        self._process: EngineProcess | None = None
        self._loaded: Loaded | None = None
        self._in_force: SkipPolicy | None = None
        self._closed = False
        self._fresh = True
        try:
            loaded = self._start(None if options.as_deployed else _NATIVE)
            loaded.check(workload, options)
            self._description = loaded.describe(workload, options, folder, self._restarts)
            self.deployed = loaded.policy
        except BaseException:
            self.close()
            raise

    @classmethod
    def unavailable_because(cls) -> str | None:
        missing = [name for name in ("vllm_omni", "vllm") if find_spec(name) is None]
        return f"{', '.join(missing)} missing; install vllm-omni 0.22 or newer for your device" if missing else None

    @classmethod
    def open(cls, workload: Workload, options: Mapping[str, Any]) -> VllmOmniEngine:
        parsed = EngineOptions.parse(options)
        if reason := cls.unavailable_because():
            raise EngineError(f"engine vllm-omni cannot run here: {reason}")
        folder = locate(workload.model, workload.revision)
        check_pipeline(read_index(folder)["_class_name"], workload)
        if workload.guidance_2 is not None and (workload.guidance > 1) != (workload.guidance_2 > 1):
            raise UsageError(
                f"guidance {workload.guidance:g} and {workload.guidance_2:g}: the transformers would make a different "
                "number of attention calls a step, which cannot be proven yet; take both above 1, or none"
            )
        if workload.task == "i2v":
            if parsed.image is None:
                raise UsageError("an image-to-video workload needs the picture itself; give --image PATH")
            open_picture(parsed.image)  # before minutes are spent on loading the model
        return cls(workload, parsed, folder)

    def describe(self) -> Description:
        return self._description

    def generate(
        self, policy: SkipPolicy, case: Case, prefix: Prefix = "none", shadows: Sequence[Shadow] = ()
    ) -> Generation:
        if self._closed:
            raise EngineError("engine vllm-omni is closed")
        policy, work = policy.on(self._description.grid), self._workload
        if self._process is None or (self._restarts and self._in_force != policy):
            self._start(policy if self._restarts else _NATIVE)
        if self._fresh and self._description.latency == "measured":
            self._ask(policy, case, "none")  # untimed: the first request of a process compiles and fills caches
        answer = self._ask(policy, case, prefix if self._description.resumes else "none", self._askable(shadows))
        self._fresh = False
        shape = answer["frames"].shape
        if shape != (work.frames, work.height, work.width, 3):
            raise EngineError(f"vllm-omni returned frames {shape}, not {work.frames} of {work.height}x{work.width}")
        return self._generation(answer)

    def _askable(self, shadows: Sequence[Shadow]) -> list[Shadow]:
        """Those that can be given, as far as can be known beforehand."""
        offered = self._description
        return [s for s in dict.fromkeys(shadows) if offered.shadows and s.fits(offered.grid, offered.dtypes)]

    def _ask(self, policy: SkipPolicy, case: Case, prefix: Prefix, shadows: Sequence[Shadow] = ()) -> dict[str, Any]:
        """One request under the policy, which is put in force where it is not, and read back."""
        as_it_is = self._in_force is not None and self._in_force.on(self._description.grid) == policy
        self._in_force = None  # until it is read back
        answer: dict[str, Any] = self._call(
            {
                "do": "generate",
                "policy": None
                if as_it_is or self._restarts
                else (policy.dtype, str(policy.skip_steps), str(policy.skip_layers)),
                "rows": step_rows(policy, self._workload.steps),
                "prefix": prefix,
                "prompt": case.prompt,
                "negative_prompt": self._workload.negative_prompt,
                "sampling": _sampling(self._workload, case, as_deployed=self._options.as_deployed),
                "shadows": [astuple(shadow) for shadow in shadows],
            },
            self._options.hang_seconds,
        )
        for what in ("begun", "reports"):
            self._check_all_answered(answer[what])
        self._check_in_force(policy, answer["begun"])
        self._in_force = policy
        return answer

    def close(self) -> None:
        self._closed = True
        self._stop()

    def _generation(self, answer: Mapping[str, Any]) -> Generation:
        reports: Sequence[Mapping[str, Any]] = answer["reports"]
        first, aside = reports[0], reports[0]["shadow_seconds"]
        phases = {k.partition(".")[2]: v for k, v in answer["durations"].items() if "." in k}
        phases |= {name: phases[name] - aside for name in ("diffuse", "forward") if name in phases}
        return Generation(
            frames=answer["frames"],
            calls=_counted(first["calls"]),
            denoise_seconds=phases.get("diffuse", 0.0),
            end_to_end_seconds=answer["seconds"] - aside,
            phases=phases,
            cross_attention_quantized=sum(r["cross_attention_quantized"] for r in reports),
            peak_memory_mb=answer["peak_memory_mb"] or None,
            other_ranks=tuple(_counted(r["calls"]) for r in reports[1:]),
            reused_steps=first["start"],
            reused_calls=_counted(first["reused_calls"]),
            step_seconds=tuple(first["step_seconds"]),
            doubts=self._loaded.doubts(first["ignored"]) if self._loaded else (),
            shadows=_answered(reports),
        )

    @property
    def _restarts(self) -> bool:
        wanted = self._options.policy_switch
        return wanted == "restart" or (
            wanted == "auto" and self._loaded is not None and not self._loaded.found["switchable"]
        )

    def _start(self, policy: SkipPolicy | None) -> Loaded:
        """Start the process with `policy` in force; None leaves it to the deploy configuration."""
        self._stop()
        chosen = {} if policy is None else {"diffusion_kv_cache_dtype": "auto"}
        if policy is not None and not policy.is_native:
            chosen = {
                "diffusion_kv_cache_dtype": policy.dtype,
                "diffusion_kv_cache_skip_steps": str(policy.skip_steps),
                "diffusion_kv_cache_skip_layers": str(policy.skip_layers),
            }
        work = self._workload
        # a deploy file is started as it is; there, requests bring these along
        fixed = {} if policy is None else {"flow_shift": work.flow_shift, "boundary_ratio": work.boundary_ratio}
        limit = int(self._options.start_seconds)
        self._process = EngineProcess()
        ranks: Any = self._call(
            {
                "do": "open",
                "model": str(self._folder),
                "options": {
                    "stage_init_timeout": limit,
                    "init_timeout": limit,
                    **self._options.omni,
                    **{name: value for name, value in fixed.items() if value is not None},
                    **chosen,
                },
                "image": str(self._options.image) if self._options.image else None,
                "prefix_cache_mb": self._options.prefix_cache_mb,
            },
            self._options.start_seconds,
        )
        self._loaded, self._fresh, self._in_force = Loaded(ranks[0]), True, None
        try:
            self._check_all_answered(ranks)
        except EngineError:
            self._stop()
            raise
        self._in_force = self._loaded.policy
        return self._loaded

    def _stop(self) -> None:
        if self._process is not None:
            process, self._process = self._process, None
            process.close()

    def _call(self, request: dict[str, Any], quiet_seconds: float) -> Any:
        """Ask the process; one that failed is gone, and the next generation starts another."""
        process, self._process = self._process, None
        assert process is not None
        try:
            answer = process.call(request, quiet_seconds)
        except EngineSaidError as error:
            if "Unknown diffusion config field" in str(error):
                raise UsageError(f"{error}; see `vllm serve --omni --help` for its options") from None
            if any(text in str(error) for text in _REFUSALS):
                doubts = self._loaded.doubts() if self._loaded else ()
                raise NotQuantizedError("; ".join((f"vllm-omni refuses to quantize: {error}", *doubts))) from None
            raise
        self._process = process
        return answer

    def _check_all_answered(self, ranks: Sequence[Any]) -> None:
        """There must be an answer of every rank: one that is silent may run something else."""
        assert self._loaded is not None
        if len(ranks) != (size := self._loaded.found["world_size"]):
            raise EngineError(f"{len(ranks)} of {size} ranks answered; nothing can be proven without the others")

    def _check_in_force(self, policy: SkipPolicy, ranks: Sequence[Mapping[str, Any]]) -> None:
        """What every rank's attention modules hold must be what was asked for."""
        for rank, answer in enumerate(ranks):
            found = [(dtype, tuple(steps), tuple(layers)) for dtype, steps, layers in answer["policies"]]
            if {held_policy(*held).on(self._description.grid) for held in found} != {policy}:
                doubts = self._loaded.doubts() if self._loaded else ()
                raise NotQuantizedError(
                    f"policy {policy} was asked for, and the attention layers of rank {rank} hold {found[:3]}; "
                    + "; ".join(doubts or ("the policy did not take effect",))
                )


def _sampling(work: Workload, case: Case, as_deployed: bool) -> dict[str, Any]:
    """What goes with each request; where the engine runs a deploy file as it is, also what is set there otherwise."""
    brought: dict[str, Any] = {}
    if as_deployed and work.flow_shift is not None:
        brought["extra_args"] = {"flow_shift": work.flow_shift}
    if as_deployed and work.boundary_ratio is not None:
        brought["boundary_ratio"] = work.boundary_ratio
    second = {} if work.guidance_2 is None else {"guidance_scale_2": work.guidance_2, "guidance_scale_2_provided": True}
    return {
        "height": work.height, "width": work.width, "num_frames": work.frames, "num_inference_steps": work.steps,
        "guidance_scale": work.guidance, "guidance_scale_provided": True, **second,
        "seed": case.seed, "output_type": "np", **brought,
    }  # fmt: skip


def _counted(rows: Sequence[Sequence[Any]]) -> Counter[CellCall]:
    return Counter({(step, layer, dtype): count for step, layer, dtype, count in rows})


def _answered(reports: Sequence[Mapping[str, Any]]) -> dict[Shadow, float]:
    """The shadows that ran as asked on every rank. Each rank holds the whole velocity; the first one's value counts."""
    ranks = [{Shadow(step, tuple(layers), dtype): v for step, layers, dtype, v in r["shadows"]} for r in reports]
    return {shadow: value for shadow, value in ranks[0].items() if all(shadow in others for others in ranks)}
