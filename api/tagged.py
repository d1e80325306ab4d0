"""Contents with a strong ETag, and 304 for who has them."""

from __future__ import annotations

import hashlib

from fastapi import Request
from fastapi.responses import Response

IF_NONE_MATCH = {
    "name": "If-None-Match", "in": "header", "required": False, "schema": {"type": "string"},
    "description": "ETags that the client has; 304 where one of them is still right",
}  # fmt: skip


def tagged(request: Request, content: bytes, media_type: str, filename: str | None = None) -> Response:
    """The whole content, to be saved as `filename` where there is one, or 304 without it."""
    tag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
    headers = {"ETag": tag, "Cache-Control": "private, no-cache"}
    asked = [one.strip().removeprefix("W/") for one in request.headers.get("if-none-match", "").split(",")]
    if tag in asked or asked == ["*"]:
        return Response(status_code=304, headers=headers)
    if filename is not None:
        headers["Content-Disposition"] = f'attachment; filename="{filename}"'
    return Response(content, media_type=media_type, headers=headers)
