"""`POST /images`: the conditioning picture of an image-to-video study."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fastapi import APIRouter, Request
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException

from fa_tuner.engines.pictures import open_picture

from . import schemas
from .backing import Backed
from .links import IMAGES
from .problems import problems

MEDIA_TYPES = ("image/png", "image/jpeg", "image/webp")

router = APIRouter(tags=["jobs"])


@router.post(
    IMAGES, status_code=201, summary="Send a picture", response_model=schemas.Picture,
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {media: {"schema": {"type": "string", "format": "binary"}} for media in MEDIA_TYPES},
        }
    },
    responses=problems(415, 422, 507),
)  # fmt: skip
async def send(request: Request, backing: Backed) -> dict[str, Any]:
    """The same picture has the same id, however often it is sent."""
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type not in MEDIA_TYPES:
        raise HTTPException(415, f"a picture is sent as {', '.join(MEDIA_TYPES)}")
    return await run_in_threadpool(_kept, await request.body(), backing)


def _kept(content: bytes, backing: Backed) -> dict[str, Any]:
    width, height = open_picture(Path("in the body"), content).size
    name = backing.artifacts.put_image(content)
    if name is None:
        raise HTTPException(507, "the artifact quota or the disk is full; `artifact_quota_mb` sets how much is kept")
    return {"image": name, "width": width, "height": height}
