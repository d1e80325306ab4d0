"""Frames and clips by ids alone."""

from __future__ import annotations

import asyncio
import io
import threading
from typing import Any

import fa_tuner_api.stills
import httpx
import numpy as np
import pytest
from fa_tuner_api.stills import Stills
from PIL import Image

from fa_tuner.domain.study import study_id
from fa_tuner.settings import StoreSettings
from fa_tuner.store.artifacts import Artifacts
from fa_tuner.store.repository import Store
from fa_tuner.store.rows import digest
from tests.support.service import Service, problem, strict_json
from tests.support.stored import add_study

FRAMES = np.random.default_rng(0).integers(0, 256, (3, 8, 16, 3), dtype=np.uint8)
POLICY = "fp8:0/"


@pytest.fixture
def study(settings: StoreSettings, store: Store) -> str:
    """The path of a study of which frames of the baseline and of one policy are kept."""
    path = add_study(store, "s", count=3)
    kept = Artifacts(settings.artifact_root, 2**20)
    for number, key in enumerate(("native", POLICY)):
        assert kept.put_frames("s", key, 0, FRAMES + np.uint8(number))
        assert kept.put_clip("s", key, 0, f"clip of {key}".encode())
    return path


@pytest.mark.parametrize(("number", "key"), [(0, "native"), (1, POLICY)])
def test_what_is_kept_comes_back(service: Service, study: str, number: int, key: str) -> None:
    case = f"{study}/policies/{digest(key)}/cases/0"
    clip, frames = service.get(f"{case}/clip"), service.get(f"{case}/frames")
    assert (clip.content, clip.headers["content-type"]) == (f"clip of {key}".encode(), "video/mp4")
    assert frames.headers["content-type"] == "application/zip"
    assert (np.load(io.BytesIO(frames.content))["frames"] == FRAMES + np.uint8(number)).all()
    assert f'filename="fa-tune-{study_id("s")}-{digest(key)[:16]}-0.npz"' in frames.headers["content-disposition"]
    for part, response in (("clip", clip), ("frames", frames)):
        again = service.get(f"{case}/{part}", headers={"If-None-Match": response.headers["etag"]})
        assert (again.status_code, again.content) == (304, b"")


def test_a_clip_comes_in_parts(service: Service, study: str) -> None:
    path = f"{study}/policies/{digest(POLICY)}/cases/0/clip"
    whole = service.get(path)
    assert whole.headers["accept-ranges"] == "bytes"
    size = len(whole.content)
    for asked, part in (
        ("0-1", slice(0, 2)),
        ("3-", slice(3, None)),
        (f"2-{size + 9}", slice(2, None)),
        ("1-1", slice(1, 2)),
    ):
        answer = service.get(path, headers={"Range": f"bytes={asked}"})
        assert (answer.status_code, answer.content) == (206, whole.content[part])
        first = part.start
        assert answer.headers["content-range"] == f"bytes {first}-{first + len(answer.content) - 1}/{size}"
        for name in ("etag", "content-type", "content-disposition", "cache-control"):
            assert answer.headers[name] == whole.headers[name]
    for headers in (
        {"Range": "bytes=-2"}, {"Range": f"bytes={size}-"}, {"Range": "bytes=3-1"}, {"Range": "bytes=0-1,3-4"},
        {"Range": "lines=0-1"}, {"Range": "bytes=0-1", "If-Range": '"other"'}, {"Range": f"bytes={'9' * 5000}-"},
    ):  # fmt: skip
        answer = service.get(path, headers=headers)
        assert (answer.status_code, answer.content) == (200, whole.content), headers
    both = {"Range": "bytes=0-1", "If-None-Match": whole.headers["etag"]}
    assert service.get(path, headers=both).status_code == 304


@pytest.mark.parametrize(("number", "key"), [(0, "native"), (1, POLICY)])
def test_single_frames_come_back_without_loss(service: Service, study: str, number: int, key: str) -> None:
    case = f"{study}/policies/{digest(key)}/cases/0/frames"
    for index, expected in enumerate(FRAMES + np.uint8(number)):
        answer = service.get(f"{case}/{index}")
        assert answer.headers["content-type"] == "image/png"
        with Image.open(io.BytesIO(answer.content)) as picture:
            assert picture.mode == "RGB" and (np.asarray(picture) == expected).all()
        again = service.get(f"{case}/{index}", headers={"If-None-Match": answer.headers["etag"]})
        assert (again.status_code, again.content) == (304, b"")
    assert "has 3 frames" in problem(service.get(f"{case}/3"), 404, "not-found")
    for index in ("-1", "1.5", "x", "100001"):
        problem(service.get(f"{case}/{index}"), 422, "invalid-request")


def test_the_archives_looked_at_last_are_held(monkeypatch: pytest.MonkeyPatch) -> None:
    """For a while, and up to a bound."""
    read: list[int] = []
    now = [0.0]

    def load(study: str, key: str, case: int) -> Any:
        read.append(case)
        return FRAMES if case < 9 else None

    stills = Stills(load, lambda: now[0])
    monkeypatch.setattr(fa_tuner_api.stills, "MOST_BYTES", 2 * FRAMES.nbytes)
    for case in (0, 1, 0, 1, 2, 1, 0, 2):
        assert stills.frames("s", "k", case) is FRAMES
    assert read == [0, 1, 2, 0, 2]
    assert stills.frames("t", "k", 2) is FRAMES and len(read) == 6
    assert stills.frames("t", "k", 9) is None and stills.frames("t", "k", 9) is None and len(read) == 8
    now[0] = fa_tuner_api.stills.BELIEVED
    stills.frames("t", "k", 2)
    assert len(read) == 9
    monkeypatch.setattr(fa_tuner_api.stills, "MOST_BYTES", 1)
    assert stills.frames("t", "k", 2) is FRAMES and stills.frames("t", "k", 2) is FRAMES  # too large to be held
    assert len(read) == 10


def test_a_recommendation_links_to_its_evidence(service: Service, study: str) -> None:
    answer = strict_json(service.recommended(model="wan", min_psnr=39))
    assert answer["policy"]["id"] == digest(POLICY)
    (evidence,) = answer["links"]["evidence"]
    assert service.get(evidence["clip"]).content == f"clip of {POLICY}".encode()
    assert service.get(evidence["baseline_clip"]).content == b"clip of native"
    for link in (evidence["frames"], evidence["baseline_frames"]):
        assert service.get(link).status_code == 200


def test_who_wants_pictures_keeps_nobody_else_waiting(
    service: Service, study: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More of each kind than there are threads for everything, none of which gets on."""
    going_on = threading.Event()
    begun: list[str] = []

    def waiting(of: Any, name: str) -> None:
        known = getattr(of, name)

        def slow(*given: Any) -> Any:
            begun.append(name)
            assert going_on.wait(20)
            return known(*given)

        monkeypatch.setattr(of, name, slow)

    for name in ("frames", "clip", "packed_frames", "put_image"):
        waiting(Artifacts, name)
    case = f"{study}/policies/{digest(POLICY)}/cases/0"
    picture = io.BytesIO()
    Image.fromarray(FRAMES[0]).save(picture, "png")

    async def asked() -> None:
        transport = httpx.ASGITransport(service.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            slow = [client.get(f"{case}/{part}") for _ in range(15) for part in ("frames/0", "clip", "frames")]
            sent = {"content": picture.getvalue(), "headers": {"Content-Type": "image/png"}}
            slow += [client.post("/api/v1/images", **sent) for _ in range(15)]  # type: ignore[arg-type]
            waited = asyncio.gather(*slow)
            try:
                await asyncio.sleep(0.5)
                for path in ("/readyz", study):
                    assert (await asyncio.wait_for(client.get(path), 10)).status_code == 200
                assert 0 < len(begun) <= fa_tuner_api.stills.MOST_AT_ONCE
            finally:
                going_on.set()
            assert {answer.status_code for answer in await waited} == {200, 201}

    asyncio.run(asked())


@pytest.mark.parametrize("part", ["clip", "frames", "frames/0"])
def test_what_is_not_kept(service: Service, study: str, store: Store, part: str) -> None:
    known, other = digest(POLICY), digest("fp8:/")
    for path in (f"{known}/cases/1", f"{other}/cases/0", f"{digest('fp8:9/9')}/cases/0"):
        problem(service.get(f"{study}/policies/{path}/{part}"), 404, "not-found")
    add_study(store, "t", count=3)  # its policies are the same, its frames are not kept
    problem(service.get(f"/api/v1/studies/{study_id('t')}/policies/{known}/cases/0/{part}"), 404, "not-found")


@pytest.mark.parametrize("part", ["clip", "frames", "frames/0"])
def test_nothing_that_a_client_sends_becomes_a_path(service: Service, study: str, part: str) -> None:
    known = digest(POLICY)
    for path in (
        f"{known}/cases/-1", f"{known}/cases/0.mp4", f"{known}/cases/99999999999999999999", f"{known}/cases/..",
        f"{known[:-1]}/cases/0", f"{known.upper()}/cases/0", "..%2F..%2Fetc/cases/0", f"{known}%00/cases/0",
        f"%2E%2E%2F{known}/cases/0", f"{known}/cases/0%2F..%2F0", "native/cases/0",
    ):  # fmt: skip
        response = service.get(f"{study}/policies/{path}/{part}")
        assert response.status_code in (404, 422), path
        assert response.headers["content-type"] == "application/problem+json"
