"""The conditioning picture of an image-to-video workload."""

from __future__ import annotations

import hashlib
import io
import warnings
from pathlib import Path
from typing import Any

from fa_tuner.domain.errors import DocumentError, NotFoundError

MAX_PIXELS = 64_000_000


def open_picture(path: Path, content: bytes | None = None) -> Any:
    """An RGB PIL image: the file's, or that of the `content` that is called so.

    Raises:
        NotFoundError: there is no such file.
        DocumentError: no picture, a truncated one, or one of more than `MAX_PIXELS` (checked before decoding).
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with warnings.catch_warnings():
            # Pillow's remarks on odd metadata; of its bounds our own, below, is the one that counts
            warnings.simplefilter("ignore")
            with Image.open(path if content is None else io.BytesIO(content)) as image:
                width, height = image.size
                if width * height > MAX_PIXELS:
                    raise DocumentError(
                        f"picture {path} has {width} x {height} pixels; at most {MAX_PIXELS:,} are taken"
                    )
                return image.convert("RGB")
    except FileNotFoundError:
        raise NotFoundError(f"picture {path} does not exist") from None
    except UnidentifiedImageError:  # whose words would name an object in memory
        raise DocumentError(f"picture {path} cannot be read: it is of no known kind") from None
    except (OSError, ValueError, RuntimeError, SyntaxError, Image.DecompressionBombError) as error:
        raise DocumentError(f"picture {path} cannot be read: {error}") from error


def picture_digest(path: Path) -> str:
    """SHA-256 of the file's bytes, in hexadecimal; the same errors as `open_picture`."""
    open_picture(path)
    return hashlib.sha256(path.read_bytes()).hexdigest()
