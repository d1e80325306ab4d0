"""Frames as they are compared and kept: uint8 RGB [frames, height, width, 3]."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from fa_tuner.domain.errors import EngineError

if TYPE_CHECKING:
    from fa_tuner.engines.base import Frames


def to_uint8(video: Any) -> Frames:
    """Round a float video in 0..1, [frames, height, width, 3], to uint8.

    Raises:
        EngineError: no frames, another shape, or values that are no numbers.
    """
    array = np.asarray(video)
    if array.ndim != 4 or array.shape[-1] != 3 or 0 in array.shape:
        raise EngineError(f"the pipeline returned frames of shape {array.shape}; expected [frames, height, width, 3]")
    if not np.isfinite(array).all():
        raise EngineError("the pipeline returned frames with NaN or infinite pixels")
    return np.rint(array.clip(0.0, 1.0) * 255.0).astype(np.uint8)
