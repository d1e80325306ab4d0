"""Whether a workload fits a model: its pipeline, and its size."""

from __future__ import annotations

from collections.abc import Sequence

from fa_tuner.domain.errors import UnsupportedModelError, UsageError
from fa_tuner.domain.workload import Workload

PIPELINES = {"WanPipeline": "t2v", "WanImageToVideoPipeline": "i2v"}


def check_pipeline(name: str, workload: Workload) -> None:
    """`name` is the class that the model's model_index.json names.

    Raises:
        UnsupportedModelError: fa-tune does not drive it.
        UsageError: it is for another task than the workload's.
    """
    if name not in PIPELINES:
        raise UnsupportedModelError(
            f"{workload.model} is a {name}; fa-tune drives {' and '.join(PIPELINES)}. vLLM-Omni publishes no step or "
            "layer index for most other pipelines, so skip selectors would do nothing, or quantize everything, silently"
        )
    if PIPELINES[name] != workload.task:
        wanted = "needs --image" if PIPELINES[name] == "i2v" else "takes no --image"
        raise UsageError(f"{workload.model} is a {name} ({PIPELINES[name]}) and {wanted}")


def check_size(workload: Workload, spatial: int, temporal: int, patch: Sequence[int]) -> None:
    """The pipeline rounds a size that does not fit; a figure for another size than asked would be wrong.

    Args:
        spatial, temporal: pixels and frames a latent, of the VAE.
        patch: the transformer's patch size, [frames, height, width] in latents.

    Raises:
        UsageError: with a size near it that fits.
    """
    for what, value, multiple in (
        ("height", workload.height, max(16, spatial * patch[1])),
        ("width", workload.width, max(16, spatial * patch[2])),
    ):
        if value % multiple:
            near = max(multiple, round(value / multiple) * multiple)
            raise UsageError(
                f"{what} {value} does not fit this model; it must be a multiple of {multiple}, such as {near}"
            )
    if (workload.frames - 1) % temporal:
        near = round((workload.frames - 1) / temporal) * temporal + 1
        raise UsageError(
            f"{workload.frames} frames do not fit this model; take a multiple of {temporal} plus 1, such as {near}"
        )
