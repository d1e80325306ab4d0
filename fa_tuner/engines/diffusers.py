"""Engine `diffusers`: Wan pipelines on any torch device, with the emulated attention operator."""

from __future__ import annotations

import gc
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from fa_tuner.domain.errors import EngineError, UnsupportedModelError, UsageError
from fa_tuner.domain.policy import DTYPES, Grid, SkipPolicy
from fa_tuner.domain.workload import Case, Workload
from fa_tuner.engines.base import Description, Engine, Generation, Prefix, Shadow
from fa_tuner.engines.environment import installed_versions
from fa_tuner.engines.fitting import check_pipeline, check_size
from fa_tuner.engines.model_files import locate, read_index, weights_digest

OPTIONS = ("device", "torch_dtype", "image", "prefix_cache_mb")
PREFIX_CACHE_MB = 2048
MAX_TOKENS = 512  # of a prompt, which is what the pipelines take unless told


class DiffusersEngine(Engine):
    """Options: `device` (cpu, cuda, npu; default the best there is), `torch_dtype` (float32 on cpu, else
    bfloat16), `image` (the picture's path, for image-to-video), `prefix_cache_mb` (host memory for kept prefixes of
    the denoising; 0 keeps none)."""

    def __init__(
        self, pipeline: Any, workload: Workload, device: str, torch_dtype: str, folder: Path, image: Any,
        prefix_cache_mb: float,
    ) -> None:  # fmt: skip
        from fa_tuner.engines.attention import install
        from fa_tuner.engines.denoising import DenoisingLoop

        self._pipeline: Any = pipeline
        self._workload = workload
        self._device = device
        self._image = image
        self._embeddings: dict[str, dict[str, Any]] = {}
        first, second = pipeline.transformer, getattr(pipeline, "transformer_2", None)
        experts = [x for x in (first, second) if x is not None]
        described = _describe(pipeline, experts, workload, device, torch_dtype, folder)
        self._description = replace(described, resumes=prefix_cache_mb > 0)
        scales = {id(second): workload.guidance if workload.guidance_2 is None else workload.guidance_2}
        self._loop = DenoisingLoop(
            [(x, scales.get(id(x), workload.guidance)) for x in experts],
            workload.guided, described.grid, int(prefix_cache_mb * 2**20),
        )  # fmt: skip
        install(experts, self._loop.board)

    @classmethod
    def unavailable_because(cls) -> str | None:
        needed = ("torch", "diffusers", "transformers", "accelerate", "ftfy")
        missing = [name for name in needed if find_spec(name) is None]
        return f"{', '.join(missing)} missing; pip install {' '.join(missing)}" if missing else None

    @classmethod
    def open(cls, workload: Workload, options: Mapping[str, Any]) -> DiffusersEngine:
        if unknown := set(options) - set(OPTIONS):
            raise UsageError(f"engine diffusers does not know option {min(unknown)!r}; it takes {', '.join(OPTIONS)}")
        # spinning OpenMP threads make the operator's many small kernels ten times slower on a shared CPU; must
        # be set before torch is loaded
        os.environ.setdefault("OMP_WAIT_POLICY", "passive")
        folder = locate(workload.model, workload.revision)
        index = read_index(folder)
        check_pipeline(index["_class_name"], workload)
        device = options.get("device") or _best_device()
        torch_dtype = options.get("torch_dtype") or ("float32" if device.startswith("cpu") else "bfloat16")
        image = _open_image(options.get("image")) if workload.task == "i2v" else None
        cache = _megabytes(options.get("prefix_cache_mb", PREFIX_CACHE_MB))
        pipeline = _load(folder, index["_class_name"], workload, device, torch_dtype)
        return cls(pipeline, workload, device, torch_dtype, folder, image, cache)

    def describe(self) -> Description:
        return self._description

    def generate(
        self, policy: SkipPolicy, case: Case, prefix: Prefix = "none", shadows: Sequence[Shadow] = ()
    ) -> Generation:
        import torch

        from fa_tuner.engines.denoising import Clock
        from fa_tuner.engines.frames import to_uint8

        if self._pipeline is None:
            raise EngineError("engine diffusers is closed")
        loop, pipeline, work, offered = self._loop, self._pipeline, self._workload, self._description
        clock = Clock(self._device, pipeline)
        run = loop.begin(
            policy.on(offered.grid), case, prefix if offered.resumes else "none", shadows if offered.shadows else (),
            clock,
        )  # fmt: skip
        if self._device.startswith("cuda"):
            torch.cuda.reset_peak_memory_stats()
        image = {} if self._image is None else {"image": self._image}
        try:
            with clock.watching():
                video = pipeline(
                    **self._encoded(case.prompt),
                    height=work.height,
                    width=work.width,
                    num_frames=work.frames,
                    num_inference_steps=work.steps,
                    guidance_scale=work.guidance,
                    guidance_scale_2=work.guidance_2,
                    generator=torch.Generator("cpu").manual_seed(case.seed),
                    callback_on_step_end=loop.step_ended,
                    output_type="np",
                    max_sequence_length=MAX_TOKENS,
                    **image,
                ).frames[0]
        except (RuntimeError, ValueError, TypeError, AttributeError, LookupError, MemoryError) as error:
            raise EngineError(f"generation failed under {policy}: {type(error).__name__}: {error}") from error
        finally:
            loop.end()
        return Generation(
            frames=to_uint8(video),
            calls=loop.board.calls,
            denoise_seconds=clock.denoise_seconds,
            end_to_end_seconds=clock.total_seconds,
            phases=clock.phases,
            cross_attention_quantized=loop.board.cross_attention_quantized,
            peak_memory_mb=torch.cuda.max_memory_allocated() / 2**20 if self._device.startswith("cuda") else None,
            reused_steps=run.start,
            reused_calls=run.reused_calls,
            shadows=run.values,
        )

    def _encoded(self, prompt: str) -> dict[str, Any]:
        """The prompt's embeddings, which are the same under every policy."""
        import torch

        if prompt not in self._embeddings:
            with torch.no_grad():
                positive, negative = self._pipeline.encode_prompt(
                    prompt, self._workload.negative_prompt, self._workload.guided, max_sequence_length=MAX_TOKENS
                )
            self._embeddings[prompt] = {"prompt_embeds": positive, "negative_prompt_embeds": negative}
        return self._embeddings[prompt]

    def close(self) -> None:
        self._pipeline = None
        gc.collect()


def _best_device() -> str:
    import torch

    if find_spec("torch_npu") is not None:
        import torch_npu

        if torch_npu.npu.is_available():
            return "npu"
    return "cuda" if torch.cuda.is_available() else "cpu"


def _load(folder: Path, class_name: str, workload: Workload, device: str, torch_dtype: str) -> Any:
    import diffusers
    import torch
    import transformers

    diffusers.utils.logging.set_verbosity_error()
    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    dtype = getattr(torch, torch_dtype, None)
    if dtype not in (torch.float32, torch.bfloat16, torch.float16):
        raise UsageError(f"torch_dtype {torch_dtype!r} is unknown; choose float32, bfloat16 or float16")
    try:
        # Wan's VAE loses visible quality below float32, so upstream's examples keep it there
        vae = diffusers.AutoencoderKLWan.from_pretrained(folder, subfolder="vae", dtype=torch.float32)
        pipeline = getattr(diffusers, class_name).from_pretrained(folder, vae=vae, dtype=dtype)
        pipeline.set_progress_bar_config(disable=True)
        if workload.flow_shift is not None:
            pipeline.scheduler = type(pipeline.scheduler).from_config(
                pipeline.scheduler.config, flow_shift=workload.flow_shift
            )
        if workload.boundary_ratio is not None:
            pipeline.register_to_config(boundary_ratio=workload.boundary_ratio)
        pipeline.to(device)
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RuntimeError, ImportError) as error:
        raise EngineError(f"{workload.model} cannot be loaded on {device}: {type(error).__name__}: {error}") from error
    return pipeline


def _describe(
    pipeline: Any, experts: list[Any], workload: Workload, device: str, torch_dtype: str, folder: Path
) -> Description:
    """Check what the selectors and the pipeline would otherwise take silently, and describe the rest."""
    depths = {len(expert.blocks) for expert in experts}
    if len(depths) != 1:
        raise UnsupportedModelError(
            f"the two transformers have {sorted(depths)} blocks; one layer index cannot name both"
        )
    if workload.guidance_2 is not None and getattr(pipeline.config, "boundary_ratio", None) is None:
        raise UsageError(f"{workload.model} has one transformer; guidance_2 is for the second of two")
    head_dim = experts[0].config.attention_head_dim
    if head_dim & (head_dim - 1):
        raise UnsupportedModelError(f"head dim {head_dim} is no power of two, which the operator's rotation needs")
    check_size(
        workload,
        pipeline.vae_scale_factor_spatial,
        pipeline.vae_scale_factor_temporal,
        experts[0].config.patch_size,
    )
    pipeline.scheduler.set_timesteps(workload.steps)
    if len(pipeline.scheduler.timesteps) != workload.steps:
        raise UsageError(
            f"the scheduler makes {len(pipeline.scheduler.timesteps)} steps of {workload.steps}; "
            "step indices would not match vLLM-Omni's"
        )
    return Description(
        engine="diffusers",
        grid=Grid(workload.steps, tuple(range(depths.pop()))),
        calls_per_cell=2 if workload.guided else 1,
        dtypes=DTYPES,
        latency="projected",
        operator="emulated",
        device=f"{device} ({torch_dtype})",
        pipeline=type(pipeline).__name__,
        versions={
            **installed_versions("torch", "torch-npu", "diffusers", "transformers"),
            **_hardware(device),
            "weights": weights_digest(folder),
        },
        shadows=len(getattr(pipeline.scheduler, "sigmas", ())) == workload.steps + 1,
    )


def _hardware(device: str) -> dict[str, str]:
    """Which accelerator: a baseline of one is none for another."""
    import torch

    kind = device.split(":")[0]
    if kind == "cpu":
        return {}
    return {"accelerator": str(getattr(torch, kind).get_device_name())}


def _megabytes(value: Any) -> float:
    try:
        megabytes = float(value)
    except (TypeError, ValueError):
        megabytes = math.nan
    if not 0 <= megabytes <= 10**7:
        raise UsageError(f"engine option prefix_cache_mb is {value!r}; it must be a number from 0 on")
    return megabytes


def _open_image(path: str | None) -> Any:
    from fa_tuner.engines.pictures import open_picture

    if path is None:
        raise UsageError("an image-to-video workload needs the picture itself; give --image PATH")
    return open_picture(Path(path))
