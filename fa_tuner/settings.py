"""What a user can set: from a flag, else `FA_TUNE_*`, else the study file, else the default.

Read once, at the edge; everything further in gets values as arguments.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import Field, ValidationError, field_validator
from pydantic.fields import FieldInfo
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    InitSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
)

from fa_tuner.documents import read_yaml
from fa_tuner.domain.errors import DocumentError, NotFoundError, UsageError
from fa_tuner.domain.measurement import PRESETS, Aggregate, Constraint, Requirement, check_aggregate
from fa_tuner.domain.policy import parse_dtypes
from fa_tuner.domain.workload import Workload, fingerprint_of, split_holdout
from fa_tuner.engines.model_files import local_path
from fa_tuner.engines.registry import default_engine, engine_names
from fa_tuner.planning import TuneRequest

PREFIX = "FA_TUNE_"
S = TypeVar("S", bound="StoreSettings")
DEFAULT_MIN_PSNR = 30.0
MAX_PROMPTS_BYTES = 4 * 2**20
_SHAPE = (
    "height", "width", "frames", "steps", "guidance", "guidance_2", "negative_prompt", "flow_shift", "boundary_ratio",
)  # fmt: skip


class StoreSettings(BaseSettings):
    """Where results are kept."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, extra="ignore")

    storage: str | None = Field(None, description="database URL; default SQLite in the user's data folder")
    artifacts: str | None = Field(None, description="folder or fsspec URL for frames; default beside the database")
    artifact_quota_mb: int = Field(2048, ge=0, description="frames are kept up to this many MiB")

    @property
    def url(self) -> str:
        from fa_tuner.store.location import default_url

        return self.storage or default_url()

    @property
    def artifact_root(self) -> str:
        from fa_tuner.store.location import default_artifacts

        return self.artifacts or default_artifacts()


class ServiceSettings(StoreSettings):
    """How the service is reached."""

    host: str = Field("127.0.0.1", min_length=1, max_length=255, description="address that the service listens on")
    port: int = Field(8000, ge=0, le=65535, description="its port; 0 takes any that is free")
    allowed_hosts: list[str] = Field(
        default_factory=list, description="names it is asked under beside its addresses; * for any"
    )
    models: list[str] = Field(
        default_factory=list, description="hub ids, folders and landscapes that studies may be asked for"
    )
    max_image_kb: int = Field(16384, ge=1, description="a picture that is sent may have this many KiB")
    ready_without_worker: bool = Field(False, description="whether it is ready where no worker lives")
    max_body_kb: int = Field(1024, ge=1, description="a request's body may have this many KiB")
    session_hours: int = Field(12, ge=1, le=24 * 30, description="how long a login lasts")


class WorkerSettings(StoreSettings):
    """What a worker of the service is; the engine that it has, and its options, are those of `RunSettings`."""

    devices: list[str] = Field(
        default_factory=list, description="a worker process for each: npu:0, cuda:1, npu:0+1 (both for one), cpu"
    )
    max_attempts: int = Field(3, ge=1, le=1000, description="in vain, one after the other, before a study has failed")
    worker_device: str | None = Field(None, description="what the starting process gave this worker")
    worker_parent: int | None = Field(None, description="the process without which this worker ends")


class EngineSettings(StoreSettings):
    """What goes to vLLM-Omni by the name that `vllm serve --omni` has for it; further ones through `engine_args`."""

    deploy_config: Path | None = Field(None, description="vLLM-Omni deploy YAML to start from")
    policy_switch: Literal["auto", "runtime", "restart"] | None = Field(
        None, description="how policies are put in force"
    )
    tensor_parallel_size: int | None = Field(None, ge=1, description="ranks that share each layer")
    ulysses_degree: int | None = Field(None, ge=1, description="ranks that share the sequence")
    cfg_parallel_size: int | None = Field(None, ge=1, le=2, description="2 runs both guidance branches at once")
    vae_patch_parallel_size: int | None = Field(None, ge=1, description="ranks that share the VAE's patches")
    vae_use_tiling: bool | None = Field(None, description="VAE in tiles")
    vae_use_slicing: bool | None = Field(None, description="VAE in slices")
    enable_cpu_offload: bool | None = Field(None, description="swap transformer and encoders")
    enable_layerwise_offload: bool | None = Field(None, description="swap block by block")
    lora_path: Path | None = Field(None, description="LoRA loaded at start")
    lora_scale: float | None = Field(None, description="its scale")
    quantization: str | None = Field(None, description="of the weights, such as fp8")


class RunSettings(EngineSettings):
    """Everything that `fa-tune run` takes. Field names are the keys of a study file, and in upper case behind
    `FA_TUNE_` the environment variables (lists there as JSON)."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, extra="forbid", env_ignore_empty=True)

    study_file: Path | None = Field(None, description="YAML file with any of these settings")
    model: str = Field("", description="folder or Hugging Face id of a diffusers pipeline; a landscape for replay")
    revision: str | None = Field(None, description="revision of a hub model")
    engine: str = Field(
        default_factory=default_engine, description="vllm-omni (default where it has an NPU), diffusers or replay"
    )
    engine_args: dict[str, str] = Field(default_factory=dict, description="further options of the engine")
    device: str | None = Field(None, description="cpu, cuda or npu; default the best there is")
    study: str | None = Field(None, max_length=200, description="name under which the study is stored")
    prompts: list[str] = Field(default_factory=list, description="prompts to search on")
    prompts_file: Path | None = Field(None, description="text file with one prompt a line")
    holdout_prompts: list[str] = Field(default_factory=list, description="prompts that only check finalists")
    seeds: list[int] = Field(default_factory=lambda: [0], description="each prompt runs under each seed")
    height: int = Field(480, description="pixels")
    width: int = Field(832, description="pixels")
    frames: int = Field(81, description="frames of a clip")
    steps: int = Field(40, description="denoising steps")
    guidance: float = Field(5.0, description="classifier-free guidance scale; 1 or below runs without")
    guidance_2: float | None = Field(None, description="that of the low-noise transformer")
    negative_prompt: str = Field("", description="for the unguided branch")
    flow_shift: float | None = Field(None, description="scheduler's flow shift; default the model's")
    boundary_ratio: float | None = Field(None, ge=0, le=1, description="where Wan2.2's transformers change over")
    image: Path | None = Field(None, description="conditioning picture; makes it image-to-video")
    dtype: str = Field("fp8", description="fp8, mxfp8 or mxfp4; several as fp8,mxfp4 for one front over them")
    min_psnr: float | None = Field(None, description=f"dB against the native baseline; default {DEFAULT_MIN_PSNR:g}")
    quality: Literal["recommended", "good", "strict"] | None = Field(None, description="vLLM-Omni's thresholds")
    constraints: list[str] = Field(default_factory=list, description="further bounds, such as ssim>=0.95")
    aggregate: Aggregate = Field(
        "worst", description="worst, mean, or a quantile such as p10 of the prompts, before constraints are checked"
    )
    sampler: str = Field("rectangle", description="rectangle, tpe, nsga2, random or brute-force")
    sampler_seed: int = Field(0, ge=0, lt=2**31, description="of the sampler")
    trials: int | None = Field(
        None, ge=1, description="most policies to measure; default 2 x (steps x dtypes + layers) without a budget"
    )
    budget: str | None = Field(None, description="time to search, such as 30m or 1h30m")
    tries: list[str] = Field(default_factory=list, description='own policies, "STEPS/LAYERS" or "DTYPE:STEPS/LAYERS"')
    device_profile: str | None = Field(None, description="project latency from this profile (name or file)")
    repeats: int = Field(3, ge=3, le=100, description="timed repeats where latency is measured")
    time_every_policy: bool = Field(False, description="fit no latency where it can be measured")

    @field_validator("min_psnr")
    @classmethod
    def _finite(cls, value: float | None) -> float | None:
        if value is not None and not 0 <= value <= 100:
            raise ValueError("a PSNR threshold lies between 0 and 100 dB (identical frames count as 100)")
        return value

    @field_validator("aggregate")
    @classmethod
    def _known(cls, value: str) -> Aggregate:
        try:
            return check_aggregate(value)
        except UsageError as error:
            raise ValueError(str(error)) from None

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        assert isinstance(init_settings, InitSettingsSource)
        named = init_settings.init_kwargs.get("study_file") or os.environ.get(f"{PREFIX}STUDY_FILE")
        return init_settings, env_settings, StudyFileSource(settings_cls, Path(named) if named else None)

    def requirement(self) -> Requirement:
        usual = Requirement((Constraint("psnr_db", ">=", DEFAULT_MIN_PSNR),), self.aggregate)
        return requirement(self.min_psnr, self.quality, self.constraints, self.aggregate).beside(usual)

    def workload(self) -> Workload:
        if not self.model:
            raise UsageError("which model? give --model PATH_OR_ID")
        if self.engine not in engine_names():
            raise UsageError(f"engine {self.engine[:40]!r} is unknown; installed are {', '.join(engine_names())}")
        if self.engine == "replay" and not self.prompts and self.prompts_file is None:
            return self._recorded_workload()
        prompts = (*self.prompts, *(_read_prompts(self.prompts_file) if self.prompts_file else ()))
        searched, holdout = split_holdout(tuple(prompts), tuple(self.holdout_prompts))
        image = None
        if self.image is not None:
            from fa_tuner.engines.pictures import picture_digest

            image = picture_digest(self.image)
        return Workload(
            model=model_identity(self.model), revision=self.revision, task="i2v" if image else "t2v", prompts=searched,
            holdout=holdout, seeds=tuple(self.seeds), height=self.height, width=self.width, frames=self.frames,
            steps=self.steps, guidance=self.guidance, guidance_2=self.guidance_2, negative_prompt=self.negative_prompt,
            flow_shift=self.flow_shift, boundary_ratio=self.boundary_ratio, image=image,
        )  # fmt: skip

    def _recorded_workload(self) -> Workload:
        """The landscape's own, with what was given beside it: the engine refuses what was not recorded."""
        from fa_tuner.engines.replay import ReplayEngine

        recorded = ReplayEngine.recorded_workload(Path(model_identity(self.model)))
        given: dict[str, Any] = {name: getattr(self, name) for name in _SHAPE if name in self.model_fields_set}
        if "seeds" in self.model_fields_set:
            given["seeds"] = tuple(self.seeds)
        if self.holdout_prompts:
            given["holdout"] = tuple(self.holdout_prompts)
        return replace(recorded, **given, options=self.engine_args)

    def request(self) -> TuneRequest:
        workload, wanted, dtypes = self.workload(), self.requirement(), parse_dtypes(self.dtype)
        budget = parse_duration(self.budget) if self.budget else None
        identity = {
            "workload": workload.fingerprint, "dtype": ",".join(dtypes), "requirement": str(wanted),
            "engine": self.engine, "sampler": self.sampler, "seed": self.sampler_seed, "profile": self.device_profile,
        }  # fmt: skip
        stem = re.sub(r"[^A-Za-z0-9._-]+", "-", Path(workload.model).name.removesuffix(".gz").removesuffix(".json"))
        options: dict[str, Any] = dict(self.engine_args)
        if self.device:
            options["device"] = self.device
        if self.image:
            options["image"] = str(self.image)
        for name in EngineSettings.model_fields.keys() - StoreSettings.model_fields.keys():
            if (value := getattr(self, name)) is not None:
                options[name] = str(value.resolve()) if isinstance(value, Path) else value
        return TuneRequest(
            study=self.study or f"{stem[:60]}-{'+'.join(dtypes)}-{fingerprint_of(identity)[:8]}",
            workload=workload, engine=self.engine, engine_options=options, requirement=wanted, dtypes=dtypes,
            sampler=self.sampler, sampler_seed=self.sampler_seed, budget_seconds=budget, tries=tuple(self.tries),
            trials=self.trials, profile=self.device_profile,
            repeats=self.repeats, time_every_policy=self.time_every_policy,
        )  # fmt: skip


class StudyFileSource(PydanticBaseSettingsSource):
    """The study file's values; relative paths in it are taken from its own folder where they exist there."""

    paths = ("model", "prompts_file", "image", "device_profile", "deploy_config", "lora_path")

    def __init__(self, settings_cls: type[BaseSettings], path: Path | None) -> None:
        super().__init__(settings_cls)
        self.path = path

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        raise NotImplementedError("values are given all at once by __call__")

    def __call__(self) -> dict[str, Any]:
        if self.path is None:
            return {}
        values = read_yaml(self.path, "study file")
        known = self.settings_cls.model_fields
        if unknown := sorted((key for key in values if key not in known or key == "study_file"), key=str):
            raise DocumentError(f"study file {self.path}: unknown key {unknown[0]!r}; `fa-tune config` lists the keys")
        for name in self.paths:
            if isinstance(values.get(name), str) and (beside := local_path(str(self.path.parent / values[name]))):
                values[name] = str(beside)
        return values


def load_run_settings(flags: Mapping[str, Any]) -> RunSettings:
    """`flags` holds what the command line gave, nothing that it did not.

    Raises:
        UsageError: a value that cannot be taken, with its name and where it may be set.
    """
    return load(RunSettings, flags)


def load(kind: type[S], flags: Mapping[str, Any]) -> S:
    """Settings of one kind; raises as `load_run_settings`."""
    try:
        return kind(**flags)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(map(str, first["loc"]))
        raise UsageError(
            f"setting {name!r} (flag, {PREFIX}{name.upper()} or study file): {first['msg']}; "
            f"given was {str(first['input'])[:60]!r}"
        ) from None
    except SettingsError as error:
        raise UsageError(
            f"an environment variable cannot be read: {error}; lists and maps are written as JSON"
        ) from None


def sources(flags: Mapping[str, Any], settings: StoreSettings) -> dict[str, str]:
    """By field, where its value comes from: flag, environment, study file or default."""
    kind = type(settings)
    from_env = EnvSettingsSource(kind)()
    from_file = StudyFileSource(kind, settings.study_file)() if isinstance(settings, RunSettings) else {}
    return {
        name: "flag"
        if name in flags
        else "environment"
        if name in from_env
        else "study file"
        if name in from_file
        else "default"
        for name in kind.model_fields
    }


def requirement(min_psnr: float | None, quality: str | None, constraints: list[str], how: Aggregate) -> Requirement:
    """A preset's bounds, with its PSNR replaced by `min_psnr` if both are given, and further constraints."""
    bounds = {c.metric: c for c in (PRESETS[quality] if quality else ())}
    if min_psnr is not None:
        bounds["psnr_db"] = Constraint("psnr_db", ">=", min_psnr)
    for constraint in map(Constraint.parse, constraints):
        bounds[constraint.metric] = constraint
    return Requirement(tuple(bounds.values()), how)


def asked_for(
    min_psnr: float | None, quality: str | None, constraints: list[str], how: Aggregate | None
) -> Requirement | None:
    """The requirement of a question about stored results; None for each study's own."""
    if min_psnr is None and quality is None and not constraints and how is None:
        return None
    return requirement(min_psnr, quality, constraints, "worst" if how is None else how)


def model_identity(model: str) -> str:
    """A local model goes by its absolute path, so that it is found again from any folder."""
    path = local_path(model)
    return str(path.resolve()) if path else model


def parse_duration(text: str) -> float:
    """Seconds of "90s", "30m", "1h30m".

    Raises:
        UsageError: anything else, and nothing at all.
    """
    match = re.fullmatch(r"(?:(\d{1,4})h)?(?:(\d{1,5})m)?(?:(\d{1,6})s)?", text.strip(), re.ASCII)
    parts = [int(part or 0) for part in match.groups()] if match else []
    seconds = sum(part * unit for part, unit in zip(parts, (3600, 60, 1), strict=False))
    if not seconds:
        raise UsageError(f"budget {text[:40]!r} is no time; write 90s, 30m or 1h30m")
    return float(seconds)


def _read_prompts(path: Path) -> tuple[str, ...]:
    """One prompt a line; empty lines and lines that begin with # are passed over."""
    try:
        if path.stat().st_size > MAX_PROMPTS_BYTES:
            raise DocumentError(f"prompts file {path} is larger than {MAX_PROMPTS_BYTES} bytes")
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError:
        raise NotFoundError(f"prompts file {path} does not exist") from None
    except (OSError, ValueError) as error:  # ValueError: not UTF-8, or a NUL in the path
        raise DocumentError(f"prompts file {path} cannot be read as UTF-8 text: {error}") from error
    prompts = tuple(line.strip() for line in lines if line.strip() and not line.startswith("#"))
    if not prompts:
        raise DocumentError(f"prompts file {path} holds no prompt")
    return prompts
