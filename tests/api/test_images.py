"""Conditioning pictures that clients send."""

from __future__ import annotations

import hashlib
import io
import struct
import zlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import httpx
import numpy as np
import pytest
from fa_tuner_api import create_app
from PIL import Image

from fa_tuner.settings import ServiceSettings
from fa_tuner.store.artifacts import Artifacts
from fa_tuner.store.repository import Store
from tests.support.service import Service, problem, strict_json
from tests.support.stored import HUB_MODEL, STUDIES

IMAGES = "/api/v1/images"
KINDS = ("png", "jpeg", "webp")


def picture(kind: str = "png", width: int = 32, height: int = 16) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def bomb(width: int, height: int) -> bytes:
    """A PNG that says it is that large and has next to nothing in it."""
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")


def send(service: Service, content: bytes | AsyncIterator[bytes], media_type: str = "image/png") -> httpx.Response:
    return service.request("POST", IMAGES, content=content, headers={"Content-Type": media_type})


@pytest.mark.parametrize("kind", KINDS)
def test_a_picture_goes_by_the_digest_of_its_bytes(service: Service, settings: ServiceSettings, kind: str) -> None:
    content = picture(kind)
    name = hashlib.sha256(content).hexdigest()
    for media_type in (f"image/{kind}", f"IMAGE/{kind.upper()}; x=y"):
        answer = send(service, content, media_type)
        assert answer.status_code == 201, answer.text
        assert strict_json(answer) == {"image": name, "width": 32, "height": 16}
    kept = Artifacts(settings.artifact_root, 2**20)
    assert kept.image(name) == content
    assert kept.used_bytes() == len(content)


@pytest.mark.parametrize("media_type", ["", "image/gif", "image/*", "image/svg+xml", "text/html", "application/json"])
def test_another_media_type(service: Service, media_type: str) -> None:
    answer = send(service, picture(), media_type)
    assert "image/png" in problem(answer, 415, "unsupported-media-type")


@pytest.mark.parametrize(
    "content",
    [
        b"", b"x", b"\x89PNG\r\n\x1a\n", b"\x89PNG\r\n\x1a\n" + b"x" * 100, b"<svg/>", b"%!PS-Adobe-3.0 EPSF-3.0\n",
        picture("jpeg"), picture("gif"), picture("bmp"), picture()[:800], picture()[:200], picture()[1:],
        picture().replace(b"IDAT", b"IDAX"), b"RIFFxxxxWEBP",
    ],
    ids=lambda content: f"{len(content)} bytes {content[:4]!a}",
)  # fmt: skip
def test_what_is_no_picture_of_its_media_type(service: Service, settings: ServiceSettings, content: bytes) -> None:
    detail = problem(send(service, content), 422, "invalid-document")
    assert "0x" not in detail and len(detail) < 300
    assert Artifacts(settings.artifact_root, 2**20).used_bytes() == 0


@pytest.mark.parametrize("kind", ["jpeg", "webp"])
def test_a_truncated_picture(service: Service, kind: str) -> None:
    content = picture(kind, 64, 64)
    problem(send(service, content[: len(content) // 2], f"image/{kind}"), 422, "invalid-document")


@pytest.mark.parametrize(("width", "height"), [(50_000, 50_000), (2**31 - 1, 2**31 - 1), (64_000_001, 1), (0, 5)])
def test_a_picture_of_too_many_pixels_is_not_decoded(service: Service, width: int, height: int) -> None:
    problem(send(service, bomb(width, height)), 422, "invalid-document")


def test_a_picture_has_a_cap_of_its_own(settings: ServiceSettings) -> None:
    service = Service(create_app(settings.model_copy(update={"max_image_kb": 64, "max_body_kb": 1})))

    async def pieces(content: bytes) -> AsyncIterator[bytes]:
        for start in range(0, len(content), 1000):
            yield content[start : start + 1000]

    content = picture("png", 128, 128)
    assert 1024 < len(content) < 64 * 1024
    assert send(service, content).status_code == 201
    assert send(service, pieces(content)).status_code == 201
    large = content + bytes(64 * 1024)
    assert "max_image_kb" in problem(send(service, large), 413, "content-too-large")
    assert "max_image_kb" in problem(send(service, pieces(large)), 413, "content-too-large")
    elsewhere = service.request("POST", STUDIES, content=content, headers={"Content-Type": "application/json"})
    assert "max_body_kb" in problem(elsewhere, 413, "content-too-large")


def test_the_quota_is_full(settings: ServiceSettings) -> None:
    content, small = picture("png", 600, 600), picture()
    service = Service(create_app(settings.model_copy(update={"artifact_quota_mb": 1})))
    assert send(service, small).status_code == 201
    detail = problem(send(service, content), 507, "insufficient-storage")
    assert "artifact_quota_mb" in detail
    assert send(service, small).status_code == 201  # is there
    missing = {"model": HUB_MODEL, "prompts": ["x"], "image": hashlib.sha256(content).hexdigest()}
    problem(service.request("POST", STUDIES, json=missing), 422, "invalid-request")


def test_artifacts_that_cannot_be_written(settings: ServiceSettings, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    service = Service(create_app(settings.model_copy(update={"artifacts": str(tmp_path / "file" / "below")})))
    problem(send(service, picture()), 507, "insufficient-storage")


def test_a_picture_makes_it_image_to_video(
    settings: ServiceSettings, tiny_wan_i2v: Path, work: Callable[..., str], store: Store,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Sent, asked for, and tuned by a worker that has it from the artifacts alone."""
    service = Service(create_app(settings.model_copy(update={"models": [str(tiny_wan_i2v)]})))
    image = strict_json(send(service, picture("png", 32, 32)))["image"]
    body = {
        "model": str(tiny_wan_i2v), "image": image, "prompts": ["red digit"], "height": 32, "width": 32, "frames": 5,
        "steps": 3, "guidance": 1, "trials": 2, "min_psnr": 5, "study": "s",
    }  # fmt: skip
    asked = service.request("POST", STUDIES, json=body)
    assert asked.status_code == 202, asked.text
    monkeypatch.setenv("FA_TUNE_DEVICE", "cpu")
    monkeypatch.setenv("FA_TUNE_DEVICE_PROFILE", "ascend-pr2640")
    said = work(engine="diffusers")
    found = strict_json(service.get(asked.headers["location"]))
    assert (found["job"]["state"], found["workload"]["task"], found["workload"]["image"]) == (
        "finished",
        "i2v",
        image,
    ), said
    assert found["evaluated"] >= 1
    assert found["job"]["request"]["image"] == image


def test_a_picture_that_went_missing(
    settings: ServiceSettings, service: Service, landscape: str, work: Callable[..., str]
) -> None:
    image = strict_json(send(service, picture()))["image"]
    asked = service.request("POST", STUDIES, json={"model": landscape, "image": image})
    assert asked.status_code == 202, asked.text
    (Path(settings.artifact_root) / "images" / image).unlink()
    work()
    failed = strict_json(service.get(asked.headers["location"]))["job"]
    assert (failed["state"], failed["problem"]) == ("failed", "urn:fa-tune:not-found")
    assert image in failed["reason"] and "again" in failed["reason"]
