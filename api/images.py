"""`POST /images`: the conditioning picture of an image-to-video study."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Request
from starlette.exceptions import HTTPException

from fa_tuner.domain.errors import DocumentError
from fa_tuner.engines.pictures import open_picture

from . import schemas
from .backing import Backed
from .links import IMAGES
from .problems import problems

# by media type, how a picture of it begins: nothing else reaches a decoder, and some of Pillow's start programs
MEDIA_TYPES = {"image/png": rb"\x89PNG\r\n\x1a\n", "image/jpeg": rb"\xff\xd8\xff", "image/webp": rb"RIFF.{4}WEBP"}

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
    content = await request.body()
    if re.match(MEDIA_TYPES[media_type], content, re.DOTALL) is None:
        raise DocumentError(f"what was sent is no {media_type}")
    return await backing.few.run(partial(_kept, content, backing))


def _kept(content: bytes, backing: Backed) -> dict[str, Any]:
    width, height = open_picture(Path("in the body"), content).size
    name = backing.artifacts.put_image(content)
    if name is None:
        raise HTTPException(507, "the artifact quota or the disk is full; `artifact_quota_mb` sets how much is kept")
    return {"image": name, "width": width, "height": height}
