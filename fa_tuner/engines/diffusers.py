"""Engine `diffusers`: Wan pipelines on any torch device, with the emulated attention operator."""

from __future__ import annotations

import contextlib
import gc
import os
import time
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from fa_tuner.domain.errors import EngineError, UnsupportedModelError, UsageError
from fa_tuner.domain.policy import DTYPES, Grid, SkipPolicy
from fa_tuner.domain.workload import Case, Workload
from fa_tuner.engines.base import Description, Engine, Generation, Prefix
from fa_tuner.engines.environment import installed_versions
from fa_tuner.engines.fitting import check_pipeline, check_size
from fa_tuner.engines.model_files import locate, read_index, weights_digest

OPTIONS = ("device", "torch_dtype", "image")


class DiffusersEngine(Engine):
    """Options: `device` (cpu, cuda, npu; default the best there is), `torch_dtype` (float32 on cpu, else
    bfloat16), `image` (the picture's path, for image-to-video)."""

    def __init__(
        self, pipeline: Any, workload: Workload, device: str, torch_dtype: str, folder: Path, image: Any
    ) -> None:
        from fa_tuner.engines.attention import Switchboard, install

        self._pipeline: Any = pipeline
        self._workload = workload
        self._device = device
        self._image = image
        self._switchboard = Switchboard()
        experts = [x for x in (pipeline.transformer, getattr(pipeline, "transformer_2", None)) if x is not None]
        self._description = _describe(pipeline, experts, workload, device, torch_dtype, folder)
        install(experts, self._switchboard)

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
        pipeline = _load(folder, index["_class_name"], workload, device, torch_dtype)
        return cls(pipeline, workload, device, torch_dtype, folder, image)

    def describe(self) -> Description:
        return self._description

    def generate(self, policy: SkipPolicy, case: Case, prefix: Prefix = "none") -> Generation:
        import torch

        if self._pipeline is None:
            raise EngineError("engine diffusers is closed")
        board, pipeline, work = self._switchboard, self._pipeline, self._workload
        board.begin(policy.on(self._description.grid))
        clock = _Clock(self._device, pipeline)
        if self._device.startswith("cuda"):
            torch.cuda.reset_peak_memory_stats()
        image = {} if self._image is None else {"image": self._image}
        try:
            with clock.watching():
                video = pipeline(
                    prompt=case.prompt,
                    negative_prompt=work.negative_prompt,
                    height=work.height,
                    width=work.width,
                    num_frames=work.frames,
                    num_inference_steps=work.steps,
                    guidance_scale=work.guidance,
                    guidance_scale_2=work.guidance_2,
                    generator=torch.Generator("cpu").manual_seed(case.seed),
                    callback_on_step_end=self._next_step(clock),
                    output_type="np",
                    **image,
                ).frames[0]
        except (RuntimeError, ValueError, TypeError, AttributeError, LookupError, MemoryError) as error:
            raise EngineError(f"generation failed under {policy}: {type(error).__name__}: {error}") from error
        finally:
            board.policy = SkipPolicy()
        from fa_tuner.engines.frames import to_uint8

        return Generation(
            frames=to_uint8(video),
            calls=board.calls,
            denoise_seconds=clock.denoise_seconds,
            end_to_end_seconds=clock.total_seconds,
            phases=clock.phases,
            cross_attention_quantized=board.cross_attention_quantized,
            peak_memory_mb=torch.cuda.max_memory_allocated() / 2**20 if self._device.startswith("cuda") else None,
        )

    def close(self) -> None:
        self._pipeline = None
        gc.collect()

    def _next_step(self, clock: _Clock) -> Any:
        def callback(_pipeline: Any, step: int, _timestep: Any, _values: dict[str, Any]) -> dict[str, Any]:
            self._switchboard.step = step + 1
            clock.step_ended()
            return {}

        return callback


class _Clock:
    """Wall-clock seconds of one generation by phase, the device synchronized at every reading."""

    def __init__(self, device: str, pipeline: Any) -> None:
        self._device, self._pipeline = device, pipeline
        self._begun = self._denoising = self._denoised = self._ended = 0.0

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Time what runs inside; denoising starts at the first transformer forward."""
        experts = (self._pipeline.transformer, getattr(self._pipeline, "transformer_2", None))
        hooks = [x.register_forward_pre_hook(self._first_forward) for x in experts if x is not None]
        self._begun = self._now()
        try:
            yield
            self._ended = self._now()
        finally:
            for hook in hooks:
                hook.remove()

    def _first_forward(self, _module: Any, _inputs: Any) -> None:
        if not self._denoising:
            self._denoising = self._now()

    def step_ended(self) -> None:
        self._denoised = self._now()

    def _now(self) -> float:
        import torch

        if not self._device.startswith("cpu"):
            getattr(torch, self._device.split(":")[0]).synchronize()
        return time.perf_counter()

    @property
    def denoise_seconds(self) -> float:
        return self._denoised - self._denoising

    @property
    def total_seconds(self) -> float:
        return self._ended - self._begun

    @property
    def phases(self) -> dict[str, float]:
        return {
            "encode": self._denoising - self._begun,
            "denoise": self.denoise_seconds,
            "decode": self._ended - self._denoised,
        }


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
    )


def _hardware(device: str) -> dict[str, str]:
    """Which accelerator: a baseline of one is none for another."""
    import torch

    kind = device.split(":")[0]
    if kind == "cpu":
        return {}
    return {"accelerator": str(getattr(torch, kind).get_device_name())}


def _open_image(path: str | None) -> Any:
    from fa_tuner.engines.pictures import open_picture

    if path is None:
        raise UsageError("an image-to-video workload needs the picture itself; give --image PATH")
    return open_picture(Path(path))
