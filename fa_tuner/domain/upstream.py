"""What vLLM-Omni does with a policy, by its version."""

from __future__ import annotations

import re
from dataclasses import dataclass

from fa_tuner.domain.errors import UsageError

FIRST_WITH_SELECTORS = (0, 22)
NEWEST_KNOWN = (0, 30)
_VERSION = re.compile(r"v?([0-9]{1,3})\.([0-9]{1,3})(?:\..{1,40})?", re.ASCII)

# Pipelines by the class name in model_index.json, with the first version that publishes the denoising step index and
# passes the block index as a prefix. Selectors do nothing on any other, or quantize everything. WanS2VPipeline
# publishes the step from 0.26 on, but passes no prefix in any version.
PUBLISHED_SINCE = {
    "WanPipeline": (0, 22),
    "WanImageToVideoPipeline": (0, 22),
    "WanVACEPipeline": (0, 22),
    "WanT2VDMD2Pipeline": (0, 22),
    "WanI2VDMD2Pipeline": (0, 22),
    "WanDMDPipeline": (0, 28),
    "HunyuanImage3ForCausalMM": (0, 22),
    "LingBotWorldCausalDMDPipeline": (0, 28),
    "MiniMaxH3Pipeline": (0, 28),
    "MiniMaxH3ModularPipeline": (0, 28),
}

# Of those, the ones whose deploy file is read as fa-tune writes it, with the first such version. For any other a deploy
# file is ignored in silence, unless it names a registered pipeline itself (`pipeline:`). LingBot-World goes by the
# model folder's name.
DEPLOY_READ_SINCE = {
    "WanPipeline": (0, 26),
    "WanImageToVideoPipeline": (0, 26),
    "WanDMDPipeline": (0, 28),
    "HunyuanImage3ForCausalMM": (0, 22),
    "LingBotWorldCausalDMDPipeline": (0, 30),
}

# Of those, the ones that have no registered pipeline of their own, with the one that a deploy file must name for them,
# beside the class itself on the stage (`model_class_name`). Seen in the resolved configurations of 0.26, 0.28 and 0.30:
# the other pipeline's layout is the same, one diffusion stage that returns a video, and it sets nothing of the model.
PIPELINE_TO_NAME = {"WanImageToVideoPipeline": "wan2_2_ti2v"}

# The registered pipelines that fa-tune knows of, with the first version that does.
PIPELINE_SINCE = {"wan2_2_ti2v": (0, 26)}

# What a model is called in model_index.json, by the class that vLLM-Omni runs it as.
_MODEL_CLASS = {
    "Wan22Pipeline": "WanPipeline",
    "Wan22I2VPipeline": "WanImageToVideoPipeline",
    "Wan22VACEPipeline": "WanVACEPipeline",
    "HunyuanImage3Pipeline": "HunyuanImage3ForCausalMM",
}


def model_class(pipeline: str) -> str:
    """The class name of a model's model_index.json, for that or for vLLM-Omni's own class name."""
    return _MODEL_CLASS.get(pipeline, pipeline)


@dataclass(frozen=True, order=True)
class Release:
    """A vLLM-Omni release line, such as 0.30; only even minors exist."""

    major: int
    minor: int

    @classmethod
    def parse(cls, text: str) -> Release:
        """Read "0.30", "0.30.0" or "v0.30.0rc1".

        Raises:
            UsageError: anything else.
        """
        match = _VERSION.fullmatch(text.strip())
        if match is None:
            raise UsageError(f"vLLM-Omni version {text[:40]!r} is no version; write it as 0.30 or 0.30.0")
        return cls(int(match[1]), int(match[2]))

    def __str__(self) -> str:
        return f"{self.major}.{self.minor}"

    @property
    def has_selectors(self) -> bool:
        return (self.major, self.minor) >= FIRST_WITH_SELECTORS

    @property
    def is_known(self) -> bool:
        """Whether its behaviour was looked up; a newer one is taken to behave as the newest known."""
        return FIRST_WITH_SELECTORS <= (self.major, self.minor) <= NEWEST_KNOWN

    @property
    def dtypes(self) -> tuple[str, ...]:
        """What backend FLASH_ATTN declares for an NPU."""
        if not self.has_selectors:
            return ()
        return ("fp8", "mxfp8", "mxfp4") if self >= Release(0, 30) else ("fp8",)

    @property
    def formats(self) -> tuple[str, ...]:
        """The export formats that it reads; `deploy` not for every pipeline, see `reads_deploy_of`."""
        if not self.has_selectors:
            return ()
        return ("deploy", "stage-args", "flags") if self <= Release(0, 26) else ("deploy", "flags")

    def reads_deploy_of(self, pipeline: str) -> bool:
        """Whether it reads a deploy file for a model of this class, where the file names what `PIPELINE_TO_NAME` says
        and no other pipeline; taken to be so for a class that nothing is known of."""
        if pipeline not in PUBLISHED_SINCE:
            return self.has_selectors
        since = DEPLOY_READ_SINCE.get(pipeline)
        return since is not None and (self.major, self.minor) >= since

    def knows_pipeline(self, name: str) -> bool:
        """Whether a deploy file may name this pipeline; taken to be so for one that nothing is known of."""
        return (self.major, self.minor) >= PIPELINE_SINCE.get(name, FIRST_WITH_SELECTORS)

    @property
    def drops_unknown_keys(self) -> bool:
        """Whether a misspelt key of a stage is dropped in silence, where later ones refuse it."""
        return self <= Release(0, 28)

    @property
    def falls_back_silently(self) -> bool:
        """Whether an unsupported platform, backend or dtype runs native after one warning, where later ones refuse."""
        return self <= Release(0, 28)
