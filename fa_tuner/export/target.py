"""The vLLM-Omni that is to read an export: what it would not take, and what it does with the rest."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from fa_tuner.documents import one_line
from fa_tuner.domain.errors import UsageError
from fa_tuner.domain.study import Recommendation
from fa_tuner.domain.upstream import (
    DEPLOY_READ_SINCE,
    FIRST_WITH_SELECTORS,
    NEWEST_KNOWN,
    PIPELINE_TO_NAME,
    PUBLISHED_SINCE,
    Release,
    model_class,
)

IN_THE_BASE = ""


@dataclass(frozen=True)
class Target:
    """A format and the version that reads it, None where that is not known. `pipeline` is what an existing deploy file
    names itself (`pipeline:`), so that vLLM-Omni reads it for every model; IN_THE_BASE where its base may do so."""

    format: str
    release: Release | None = None
    pipeline: str | None = None

    def check(self, recommendation: Recommendation) -> None:
        """
        Raises:
            UsageError: that version would refuse the export, or ignore it.
        """
        release, dtype = self.release, recommendation.policy.dtype
        if release is None:
            return
        if not release.has_selectors:
            raise UsageError(
                f"vLLM-Omni {release} has no skip selectors, they exist from {Release(*FIRST_WITH_SELECTORS)} on; "
                "serve with a newer one, and give its version"
            )
        if self.format not in release.formats:
            raise UsageError(
                f"vLLM-Omni {release} refuses the format {self.format} (read up to 0.26); "
                f"use --format {' or '.join(release.formats)}"
            )
        if dtype not in release.dtypes:
            raise UsageError(
                f"vLLM-Omni {release} has no dtype {dtype} on an NPU, only {', '.join(release.dtypes)}; "
                "serve with a newer one, or tune with --dtype fp8"
            )
        model = model_class_of(recommendation)
        if self.format == "deploy" and not self._is_read_by(release, model):
            raise UsageError(f"vLLM-Omni {release} ignores a deploy file for {model}, in silence; {_instead(release)}")

    def to_name(self, recommendation: Recommendation) -> dict[str, str]:
        """The keys that the deploy file needs to be read, and that are fa-tune's to write: `pipeline` at the top level
        and `model_class_name` on the stage. Empty where it names another pipeline, or its base may."""
        model = model_class_of(recommendation)
        pipeline = PIPELINE_TO_NAME.get(model)
        if self.format != "deploy" or pipeline is None or self.pipeline not in (None, pipeline):
            return {}
        return {"pipeline": pipeline, "model_class_name": model}

    def why_unread(self, recommendation: Recommendation) -> str:
        """What to do where vLLM-Omni read no policy from a deploy file."""
        model, release = model_class_of(recommendation), self.release or Release(*NEWEST_KNOWN)
        if not self._is_read_by(release, model):
            return f"It ignores a deploy file for {model}, in silence; {_instead(release)}"
        if said := self._asks_the_base(model):
            return said
        return (
            "The keys must stand below platforms: npu: stages: or stages:, on an entry with the stage's stage_id, "
            "and stages: must have such an entry in either case"
        )

    def remarks(self, recommendation: Recommendation) -> str:
        """What to know of that version, or of all, in sentences."""
        release, unsupported = self.release, "Where platform, backend or dtype is unsupported, vLLM-Omni"
        model = model_class_of(recommendation)
        of_pipeline = [_why_named(self.to_name(recommendation)), self._asks_the_base(model)]
        if release is None:
            said = [f"{unsupported} up to 0.28 only warns and runs everything native; 0.30 refuses to start."]
            if recommendation.policy.dtype != "fp8":
                said.append(f"The dtype {recommendation.policy.dtype} needs 0.30.")
            if self.format == "deploy" and (self.pipeline is None or self.pipeline == PIPELINE_TO_NAME.get(model)):
                said += _reading_deploy(model)
            return " ".join(filter(None, [*said, *of_pipeline]))
        does = "only warns and runs everything native" if release.falls_back_silently else "refuses to start"
        said = [f"{unsupported} {release} {does}."]
        if release.drops_unknown_keys and self.format != "flags":
            said.append("It drops a misspelt key of a stage in silence: edit with care.")
        if not release.is_known:
            said.append(f"This version was not looked up; what is said here is what {Release(*NEWEST_KNOWN)} does.")
        return " ".join(filter(None, [*said, *of_pipeline]))

    def _is_read_by(self, release: Release, model: str) -> bool:
        return release.reads_deploy_of(model) if self.pipeline is None else release.knows_pipeline(self.pipeline)

    def _asks_the_base(self, model: str) -> str:
        """What is to be known of a file with a base that fa-tune has not seen."""
        if self.format != "deploy" or self.pipeline != IN_THE_BASE or model not in PIPELINE_TO_NAME:
            return ""
        name, instead = PIPELINE_TO_NAME[model], "use --format flags"
        if self.release is None or self.release.knows_pipeline(name):
            instead = f"add pipeline: {name} and, on the stage, model_class_name: {model}"
        return (
            f"WARNING: vLLM-Omni ignores this file for {model}, in silence, unless its base_config names a pipeline: "
            f"where it does not, {instead}."
        )


def model_class_of(recommendation: Recommendation) -> str:
    """The study's model as model_index.json calls it."""
    return model_class(one_line(str(recommendation.study.spec.environment.get("pipeline", "")), 60))


def _why_named(named: Mapping[str, str]) -> str:
    """That they are there for a reason, and what they change: what vLLM-Omni takes from a command line depends on
    whether it has a registered pipeline."""
    if not named:
        return ""
    return (
        "The keys pipeline and model_class_name are there because vLLM-Omni reads no deploy file for "
        f"{named['model_class_name']} without. With them it ignores --default-sampling-params and --num-gpus, as for "
        "text-to-video: give default_sampling_params on the stage."
    )


def _reading_deploy(pipeline: str) -> list[str]:
    if pipeline not in PUBLISHED_SINCE:
        return []
    if (since := DEPLOY_READ_SINCE.get(pipeline)) is None:
        newest = Release(*NEWEST_KNOWN)
        return [f"WARNING: vLLM-Omni up to {newest} ignores this file for {pipeline}, in silence; {_instead(newest)}."]
    if since == FIRST_WITH_SELECTORS:
        return []
    return [f"Before {Release(*since)} this file is ignored in silence for {pipeline}: use --format flags there."]


def _instead(release: Release) -> str:
    """What works where a deploy file does not."""
    if not release.reads_deploy_of("WanPipeline"):
        return "use --format flags"
    names = " or ".join(sorted(set(PIPELINE_TO_NAME.values())))
    return (
        f"use --format flags, or --into a deploy file that has pipeline: {names} and, on the stage, the model's class "
        "as model_class_name"
    )
