"""Contents with a strong ETag, and 304 for who has them."""

from __future__ import annotations

import hashlib
import re

from fastapi import Request
from fastapi.responses import Response

IF_NONE_MATCH = {
    "name": "If-None-Match", "in": "header", "required": False, "schema": {"type": "string"},
    "description": "ETags that the client has; 304 where one of them is still right",
}  # fmt: skip

RANGE = {
    "name": "Range", "in": "header", "required": False, "schema": {"type": "string"},
    "description": "one range of bytes, such as bytes=0-1; what cannot be met is answered with the whole",
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


def in_part(request: Request, whole: Response) -> Response:
    """Of a whole answer the one range of bytes that was asked for, on which some browsers insist; else itself."""
    whole.headers["Accept-Ranges"] = "bytes"
    asked = re.fullmatch(r"bytes=([0-9]{1,15})-([0-9]{0,15})", request.headers.get("range", ""), re.ASCII)
    same = request.headers.get("if-range", whole.headers["ETag"]) == whole.headers["ETag"]
    if whole.status_code != 200 or asked is None or not same:
        return whole
    content = bytes(whole.body)
    first, last = int(asked[1]), min(int(asked[2] or len(content)), len(content) - 1)
    if first > last:
        return whole
    headers = {name: value for name, value in whole.headers.items() if name != "content-length"}
    headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
    return Response(content[first : last + 1], 206, headers)
