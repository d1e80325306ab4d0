"""Pages of what is listed, each led to by a cursor of ours."""

from __future__ import annotations

import base64
import re
from urllib.parse import urlencode

from pydantic import BaseModel, ConfigDict, Field

from fa_tuner.domain.errors import UsageError


class Page(BaseModel):
    model_config = ConfigDict(extra="forbid")

    limit: int = Field(20, ge=1, le=100)
    cursor: str | None = Field(None, max_length=64, description="`next_cursor` of the page before")


def next_page(last: int | None, path: str, limit: int, filters: dict[str, str | None]) -> dict[str, str]:
    """What leads to the next page; nothing on the last one."""
    if last is None:
        return {}
    cursor = base64.urlsafe_b64encode(str(last).encode()).decode().rstrip("=")
    given = {name: value for name, value in filters.items() if value is not None}
    return {"next_cursor": cursor, "next": f"{path}?{urlencode({'limit': limit, 'cursor': cursor, **given})}"}


def position(cursor: str | None) -> int | None:
    """
    Raises:
        UsageError: it is none of ours.
    """
    if cursor is None:
        return None
    try:
        text = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True).decode()
    except ValueError:
        text = ""
    if re.fullmatch(r"[0-9]{1,18}", text, re.ASCII) is None:
        raise UsageError(f"cursor {cursor!r} is not one that this service gave; begin without")
    return int(text)
