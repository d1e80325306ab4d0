"""The exporter contract: render, read back, and hand out only what reads back as it was meant."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

from fa_tuner.domain.errors import FaTuneError, NothingQualifiesError, UsageError
from fa_tuner.domain.study import Recommendation
from fa_tuner.domain.upstream import Release
from fa_tuner.export.header import comment_block
from fa_tuner.export.target import Target

DTYPE = "diffusion_kv_cache_dtype"
SKIP_STEPS = "diffusion_kv_cache_skip_steps"
SKIP_LAYERS = "diffusion_kv_cache_skip_layers"
KEYS = (DTYPE, SKIP_STEPS, SKIP_LAYERS)
MAX_STAGE_ID = 999


class Exporter(ABC):
    """One way to tell vLLM-Omni a policy. `note` goes into the comment block."""

    name: ClassVar[str]
    note: ClassVar[str] = ""

    def export(self, recommendation: Recommendation, stage_id: int = 0, release: Release | None = None) -> str:
        """The policy with its evidence as comments, ending in a newline; the same input gives the same text.
        With a `release` of vLLM-Omni, what the comments say holds for that one.

        Raises:
            NothingQualifiesError: the policy quantizes nothing, or was not timed where it could have been.
            UsageError: `stage_id` is out of range, or `release` would refuse the text or ignore it.
        """
        values, target = values_for(recommendation, stage_id), Target(self.name, release)
        target.check(recommendation)
        block = comment_block(recommendation, stage_id, target, self.note_for(release))
        text = block + self.render(values, stage_id, target.to_name(recommendation))
        found = self.read_back(text, stage_id)
        if not (all(type(found.get(key)) is str for key in KEYS) and found == values):
            raise FaTuneError(f"the {self.name} export reads back as {dict(found)}, not {values}; please report it")
        return text

    def note_for(self, release: Release | None) -> str:
        """The note, for one version where that is known."""
        return self.note

    @abstractmethod
    def render(self, values: Mapping[str, str], stage_id: int, named: Mapping[str, str]) -> str:
        """The three `KEYS` with their values, without comments; `named` is what `Target.to_name` gives."""

    @abstractmethod
    def read_back(self, text: str, stage_id: int) -> dict[str, Any]:
        """What another program reads for the three `KEYS` from an exported text."""


def values_for(recommendation: Recommendation, stage_id: int) -> dict[str, str]:
    """The three keys as vLLM-Omni takes them; an empty selector is "".

    Raises:
        NothingQualifiesError, UsageError: as `Exporter.export`.
    """
    if type(stage_id) is not int or not 0 <= stage_id <= MAX_STAGE_ID:
        raise UsageError(f"stage id is {stage_id}; it must be a whole number from 0 to {MAX_STAGE_ID}")
    policy = recommendation.policy
    if policy.on(recommendation.study.spec.grid).is_native:
        raise NothingQualifiesError(
            "the native policy quantizes nothing, so there is nothing to export; relax the requirement, "
            "or leave diffusion_kv_cache_dtype out of the deploy file"
        )
    if recommendation.measurement.latency.source == "fitted":
        raise NothingQualifiesError(
            f"the latency of {policy} is only fitted, and a prediction is not exported; run the study again, which "
            "times what is worth it"
        )
    return {DTYPE: policy.dtype, SKIP_STEPS: str(policy.skip_steps), SKIP_LAYERS: str(policy.skip_layers)}
