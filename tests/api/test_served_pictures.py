"""Frames and clips by ids alone."""

from __future__ import annotations

import io

import numpy as np
import pytest

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


def test_a_recommendation_links_to_its_evidence(service: Service, study: str) -> None:
    answer = strict_json(service.recommended(model="wan", min_psnr=39))
    assert answer["policy"]["id"] == digest(POLICY)
    (evidence,) = answer["links"]["evidence"]
    assert service.get(evidence["clip"]).content == f"clip of {POLICY}".encode()
    assert service.get(evidence["baseline_clip"]).content == b"clip of native"
    for link in (evidence["frames"], evidence["baseline_frames"]):
        assert service.get(link).status_code == 200


@pytest.mark.parametrize("part", ["clip", "frames"])
def test_what_is_not_kept(service: Service, study: str, store: Store, part: str) -> None:
    known, other = digest(POLICY), digest("fp8:/")
    for path in (f"{known}/cases/1", f"{other}/cases/0", f"{digest('fp8:9/9')}/cases/0"):
        problem(service.get(f"{study}/policies/{path}/{part}"), 404, "not-found")
    add_study(store, "t", count=3)  # its policies are the same, its frames are not kept
    problem(service.get(f"/api/v1/studies/{study_id('t')}/policies/{known}/cases/0/{part}"), 404, "not-found")


@pytest.mark.parametrize("part", ["clip", "frames"])
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
