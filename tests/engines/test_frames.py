"""A pipeline's float video to the uint8 frames that are compared."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fa_tuner.domain.errors import EngineError
from fa_tuner.engines.frames import to_uint8


def a_video(value: float, dtype: Any = np.float32) -> np.ndarray[Any, Any]:
    return np.full((1, 2, 2, 3), value, dtype)


@pytest.mark.parametrize(
    ("value", "sample"),
    [(0.0, 0), (1.0, 255), (0.5, 128), (1 / 255, 1), (0.49 / 255, 0), (0.51 / 255, 1), (254.6 / 255, 255),
     (-0.2, 0), (1.7, 255)],
)  # fmt: skip
def test_values_are_rounded_and_clipped(value: float, sample: int) -> None:
    frames = to_uint8(a_video(value))
    assert frames.dtype == np.uint8 and frames.shape == (1, 2, 2, 3)
    assert (frames == sample).all()


@given(st.integers(0, 255), st.sampled_from([np.float32, np.float64]))
def test_every_sample_survives(sample: int, dtype: Any) -> None:
    assert (to_uint8(a_video(sample / 255, dtype)) == sample).all()


def test_the_order_of_axes_is_kept() -> None:
    video = np.linspace(0, 1, 2 * 3 * 4 * 3).reshape(2, 3, 4, 3)
    assert np.array_equal(to_uint8(video), np.rint(video * 255).astype(np.uint8))


def test_the_video_is_not_changed() -> None:
    video = a_video(2.0)
    to_uint8(video)
    assert (video == 2.0).all()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_no_number_is_refused(value: float) -> None:
    video = np.zeros((2, 4, 4, 3))
    video[1, 2, 3, 0] = value
    with pytest.raises(EngineError, match="NaN or infinite"):
        to_uint8(video)


@pytest.mark.parametrize("shape", [(0, 4, 4, 3), (2, 0, 4, 3), (4, 4, 3), (1, 2, 4, 4, 3), (2, 3, 4, 4), ()])
def test_another_shape_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(EngineError, match=r"expected \[frames, height, width, 3\]"):
        to_uint8(np.zeros(shape))
