"""Frames as people look at them: MP4 clips and contact sheets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fa_tuner.engines.base import Frames

FRAMES_A_SECOND = 16  # Wan's own rate


def encode_clip(frames: Frames) -> bytes:
    """H.264 in MP4 of uint8 RGB [frames, height, width, 3] (height and width even, as every Wan size is)."""
    import io

    import av  # not through imageio, which collects garbage at every file: half a second with torch loaded

    clip = io.BytesIO()
    with av.open(clip, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=FRAMES_A_SECOND)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return clip.getvalue()


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
