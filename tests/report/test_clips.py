"""Clips and contact sheets hold the pictures that went in."""

from __future__ import annotations

import imageio.v3 as iio
import numpy as np

from fa_tuner.report.clips import contact_sheet, encode_clip


def test_clip_plays_back_with_all_its_frames() -> None:
    frames = np.zeros((5, 32, 48, 3), np.uint8)
    frames[:, :, :, 0] = np.arange(5, dtype=np.uint8)[:, None, None] * 50  # smooth, so that H.264 keeps it
    decoded = iio.imread(encode_clip(frames), extension=".mp4", plugin="pyav")
    assert decoded.shape == frames.shape
    assert np.abs(decoded.astype(int) - frames.astype(int)).mean() < 8


def test_contact_sheet_shows_first_and_last_frame_of_each_row() -> None:
    first, last = np.full((32, 48, 3), 10, np.uint8), np.full((32, 48, 3), 240, np.uint8)
    sheet = np.asarray(contact_sheet([("one", np.stack([first, last])), ("two", np.stack([last, first]))], 2, 1))
    assert sheet.shape[2] == 3
    assert (sheet[16:48, 4:52] == 10).all() and (sheet[16:48, 56:104] == 240).all()
    assert (sheet[68:100, 4:52] == 240).all() and (sheet[68:100, 56:104] == 10).all()
