"""What a client may ask for: the settings of `fa-tune run` that name no file, no engine option and no place."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path, PurePath
from typing import Any

from pydantic_settings import BaseSettings, PydanticBaseSettingsSource

from fa_tuner.domain.errors import NotFoundError
from fa_tuner.domain.job import Job
from fa_tuner.domain.policy import Grid, SkipPolicy, parse_dtypes
from fa_tuner.domain.study import check_name
from fa_tuner.domain.workload import fingerprint_of
from fa_tuner.settings import RunSettings, load, load_run_settings, parse_duration
from fa_tuner.store.artifacts import Artifacts

ASKED = (
    "model", "revision", "prompts", "holdout_prompts", "seeds", "height", "width", "frames", "steps", "guidance",
    "guidance_2", "negative_prompt", "flow_shift", "boundary_ratio", "dtype", "min_psnr", "quality", "constraints",
    "aggregate", "sampler", "sampler_seed", "trials", "budget", "tries", "repeats",
)  # fmt: skip
TERMS = ("trials", "budget", "min_psnr", "quality", "constraints", "aggregate")  # which a stored study may get anew
_MOST_LAYERS = Grid(1000, tuple(range(1000)))  # how many there are only the engine knows


class _Asked(RunSettings):
    """What was asked for alone: the environment of the process that checks says nothing of the worker's."""

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return (init_settings,)


def check(values: Mapping[str, Any]) -> None:
    """Refuse at once what no worker could run; what hangs on the model or the device is known only there.

    Raises:
        UsageError: and its kin, with what is wrong.
    """
    settings = load(_Asked, {"engine": "diffusers", **values})  # any engine: the worker's own counts
    parse_dtypes(settings.dtype)
    settings.requirement()
    if settings.budget is not None:
        parse_duration(settings.budget)
    for text in settings.tries:
        SkipPolicy.parse(text, parse_dtypes(settings.dtype), _MOST_LAYERS)
    if not settings.prompts:  # a landscape brings its own
        settings = settings.model_copy(update={"prompts": ["a landscape's own"]})
    settings.workload()


def study_name(values: Mapping[str, Any]) -> str:
    """What a study is called that was given no name: the same for the same request."""
    stem = re.sub(r"[^A-Za-z0-9._-]+", "-", PurePath(values["model"]).name).removesuffix(".gz").removesuffix(".json")
    dtypes = "+".join(parse_dtypes(values.get("dtype", "fp8")))
    name = f"{stem[:60]}-{dtypes}-{fingerprint_of(values)[:8]}"
    check_name(name)
    return name


def settings_of(job: Job, artifacts: Artifacts, folder: Path) -> RunSettings:
    """What this worker runs for the job: what was asked for, and its own environment's engine, device and options. A
    picture is put into `folder`.

    Raises:
        UsageError: and its kin: this worker's environment and the request do not go together.
    """
    values = {name: value for name, value in job.request.items() if name in ASKED}
    if (image := job.request.get("image")) is not None:
        values["image"] = _picture(image, artifacts, folder)
    return load_run_settings({**values, "study": job.study})


def _picture(image: str, artifacts: Artifacts, folder: Path) -> Path:
    content = artifacts.image(image)
    if content is None:
        raise NotFoundError(f"picture {image} is not kept any more; send it again, and then ask for the study anew")
    path = folder / image
    path.write_bytes(content)
    return path
