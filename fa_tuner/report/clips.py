"""Frames as people look at them: MP4 clips and contact sheets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fa_tuner.engines.base import Frames

FRAMES_A_SECOND = 16  # Wan's own rate


def encode_clip(frames: Frames) -> bytes:
    """H.264 in MP4 of uint8 RGB [frames, height, width, 3] (height and width even, as every Wan size is)."""
    import imageio.v3 as iio

    clip: bytes = iio.imwrite("<bytes>", frames, extension=".mp4", plugin="pyav", codec="libx264", fps=FRAMES_A_SECOND)
    return clip


def contact_sheet(rows: Sequence[tuple[str, Frames]], columns: int = 5, scale: int = 2) -> Any:
    """A PIL image with a row a clip: its label, then `columns` frames spread over its length."""
    import numpy as np
    from PIL import Image, ImageDraw

    height, width = (side * scale for side in rows[0][1].shape[1:3])
    label, gap = 16, 4
    sheet = Image.new("RGB", (columns * (width + gap) + gap, len(rows) * (height + label + gap)), "white")
    draw = ImageDraw.Draw(sheet)
    for row, (text, frames) in enumerate(rows):
        top = row * (height + label + gap)
        draw.text((gap, top + 2), text, fill="black")
        for column, index in enumerate(np.linspace(0, len(frames) - 1, columns).round().astype(int)):
            picture = Image.fromarray(frames[index]).resize((width, height), Image.Resampling.NEAREST)
            sheet.paste(picture, (gap + column * (width + gap), top + label))
    return sheet
