"""The conditioning picture: whatever the file holds, a picture or a clear refusal."""

from __future__ import annotations

import io
import random
import struct
import tracemalloc
import zlib
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fa_tuner.domain.errors import DocumentError, NotFoundError
from fa_tuner.engines.pictures import MAX_PIXELS, open_picture, picture_digest

PIXELS = np.random.default_rng(0).integers(0, 256, (20, 24, 3), dtype=np.uint8)


def encoded(form: str, mode: str = "RGB", **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(PIXELS).convert(mode).save(buffer, form, **options)
    return buffer.getvalue()


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and has one row's worth of nothing."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0" * 16)) + chunk(b"IEND", b"")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "picture.png"


def refusal(path: Path) -> str:
    with pytest.raises(DocumentError) as caught:
        open_picture(path)
    assert str(path) in str(caught.value)
    return str(caught.value)


def test_a_picture_comes_as_rgb(path: Path) -> None:
    path.write_bytes(encoded("PNG"))
    image = open_picture(path)
    assert image.mode == "RGB" and np.array_equal(np.asarray(image), PIXELS)


@pytest.mark.parametrize("mode", ["L", "1", "P", "RGBA", "LA", "CMYK", "I;16"])
def test_so_does_every_other_kind(path: Path, mode: str) -> None:
    form = "TIFF" if mode == "CMYK" else "PNG"
    path.write_bytes(encoded(form, mode))
    image = open_picture(path)
    assert image.mode == "RGB" and image.size == (24, 20)


def test_a_palette_with_transparency_is_no_warning(path: Path) -> None:
    path.write_bytes(encoded("PNG", "P", transparency=bytes(range(200))))
    assert open_picture(path).mode == "RGB"


def test_the_digest_is_of_the_file(path: Path) -> None:
    path.write_bytes(encoded("PNG"))
    assert picture_digest(path) == sha256(path.read_bytes()).hexdigest()


def test_there_is_no_such_file(path: Path) -> None:
    for ask in (open_picture, picture_digest):
        with pytest.raises(NotFoundError, match="does not exist"):
            ask(path)


def test_a_folder_is_no_picture(tmp_path: Path) -> None:
    assert "cannot be read" in refusal(tmp_path)


@pytest.mark.parametrize("content", [b"", b"dear diary", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"<svg/>", b"\0" * 4096])
def test_what_is_no_picture(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    assert "cannot be read" in refusal(path)
    with pytest.raises(DocumentError):
        picture_digest(path)


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "BMP", "TIFF"])
@pytest.mark.parametrize("keep", [0.05, 0.3, 0.7, 0.95])
def test_a_truncated_one(path: Path, form: str, keep: float) -> None:
    whole = encoded(form)
    path.write_bytes(whole[: int(len(whole) * keep)])
    assert "cannot be read" in refusal(path)


@pytest.mark.parametrize(("width", "height"), [(50_000, 50_000), (2**31 - 1, 2**31 - 1), (8001, 8000), (10**6, 100)])
def test_an_enormous_one_is_refused_before_it_is_decoded(path: Path, width: int, height: int) -> None:
    path.write_bytes(png_header(width, height))
    refusal(path)  # what Pillow loads at its first use is not counted
    tracemalloc.start()
    said = refusal(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert "pixels" in said
    assert peak < 5 * 2**20


def test_the_bound_is_ours_and_not_pillows(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    path.write_bytes(png_header(50_000, 50_000))
    assert f"50000 x 50000 pixels; at most {MAX_PIXELS:,}" in refusal(path)


def test_pillows_warning_is_none(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 400)
    path.write_bytes(encoded("PNG"))  # 480 pixels: above the bound that warns, below that which raises
    assert open_picture(path).size == (24, 20)


@pytest.mark.parametrize("form", ["PNG", "JPEG", "GIF", "TIFF", "WEBP", "PPM", "ICO"])
def test_damaged_in_any_place(path: Path, form: str) -> None:
    """A picture or a refusal, never another error, never a warning."""
    whole, rng = encoded(form), random.Random(form)
    for _ in range(60):
        content = bytearray(whole)
        for _ in range(rng.choice([1, 2, 5])):
            content[rng.randrange(min(len(content), rng.choice([40, 10**6])))] = rng.randrange(256)
        path.write_bytes(content[: rng.choice([None, rng.randrange(len(content))])])
        try:
            assert open_picture(path).mode == "RGB"
        except DocumentError as error:
            assert str(path) in str(error)
