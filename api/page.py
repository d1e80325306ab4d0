"""The page at `/` and what it is made of: a fixed list of files, read once."""

from __future__ import annotations

from pathlib import Path

from fastapi import APIRouter, Request
from fastapi.responses import Response
from starlette.exceptions import HTTPException

from .access import Caller
from .tagged import tagged

FOLDER = Path(__file__).parent / "static"
MEDIA_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
FILES = {file.name: file.read_bytes() for file in sorted(FOLDER.iterdir()) if file.suffix in MEDIA_TYPES}
INDEX = FILES.pop("index.html")
LOGGED_IN = INDEX.replace(b'id="logout" hidden', b'id="logout"')  # which the page's own scripts cannot know

router = APIRouter(include_in_schema=False)


@router.get("/")
def index(request: Request) -> Response:
    """With the way to log out for who came by a session."""
    caller: Caller = request.state.caller
    return tagged(request, INDEX if caller.session is None else LOGGED_IN, MEDIA_TYPES[".html"])


@router.get("/static/{name}")
def static(name: str, request: Request) -> Response:
    """What a client sends is only compared with the names of `FILES`."""
    if name not in FILES:
        raise HTTPException(404, "there is no such file")
    return tagged(request, FILES[name], MEDIA_TYPES[Path(name).suffix])
