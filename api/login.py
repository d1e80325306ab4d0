"""Logging in from a browser: a form of plain HTML, answered where the page wants a key, and what it sends."""

from __future__ import annotations

import base64
import hashlib
from html import escape
from urllib.parse import parse_qs

from fastapi.responses import HTMLResponse
from starlette.datastructures import Headers
from starlette.types import Receive

from .slow import received

PATH = "/login"
FORM = "application/x-www-form-urlencoded"
MOST_BYTES = 1024  # of the form; a key has 47 characters
STYLE = """
:root { color-scheme: light dark; font: 16px/1.5 system-ui, sans-serif }
body { max-width: 24rem; margin: 15vh auto; padding: 0 1rem }
h1 { font-size: 1.4rem; margin: 0 0 1rem }
label, input, button { display: block; width: 100%; box-sizing: border-box; font: inherit }
input, button { margin: .4rem 0 1rem; padding: .55rem .7rem; border: 1px solid #767676; border-radius: 6px }
button { background: #0b57a4; border-color: #0b57a4; color: #fff; cursor: pointer }
:focus-visible { outline: 3px solid #d98200; outline-offset: 2px }
code { font-size: .9em; overflow-wrap: anywhere }
"""
# its scripts are none, and its style is this very text
POLICY = (
    f"default-src 'none'; style-src 'sha256-{base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()}'; "
    "base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)
PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Log in · fa-tune</title>
<style>{style}</style>
</head>
<body>
<main>
<h1>fa-tune</h1>
<p role="status">{message}</p>
<form method="post" action="/login">
<label for="key">Key</label>
<input id="key" name="key" type="password" required autofocus autocomplete="current-password" spellcheck="false">
<button>Log in</button>
</form>
<p>Whoever runs this service makes a key with <code>fa-tune keys create NAME --scope read</code>.</p>
</main>
</body>
</html>
"""


def wants_form(method: str, path: str, headers: Headers) -> bool:
    """Whether a person looks at what is refused: who opens the page, or has just sent the form."""
    opens = path == "/" and method in ("GET", "HEAD") and "text/html" in headers.get("accept", "")
    return opens or is_form(method, path, headers)


def is_form(method: str, path: str, headers: Headers) -> bool:
    """Whether the request brings its key as the form does."""
    return method == "POST" and path == PATH and headers.get("content-type", "").partition(";")[0].strip() == FORM


async def sent_key(receive: Receive) -> str | None:
    """The key in a form's body, empty where it has none; None for a body that is larger than any form of ours.

    Raises:
        TimeoutError: nothing more came.
    """
    body, more = b"", True
    while more and len(body) <= MOST_BYTES:
        message = await received(receive)
        body += message.get("body", b"")
        more = message.get("more_body", False)
    if len(body) > MOST_BYTES:
        return None
    return parse_qs(body.decode("latin-1"), max_num_fields=16).get("key", [""])[0].strip()


def login_form(status: int, message: str) -> HTMLResponse:
    """The form, under a content policy of its own."""
    content = PAGE.format(style=STYLE, message=escape(message))
    return HTMLResponse(content, status, headers={"Content-Security-Policy": POLICY})


def message_for(status: int, session: bool, sent: bool) -> str:
    """What a person is told who was refused: too many wrong keys, a wrong one `sent`, a `session` that is no more."""
    if status == 429:
        return "Too many wrong keys came from this address. Try again in a minute."
    if sent:
        return "That is no key of this service, or it was revoked."
    return "The session has ended. Log in again." if session else "This service needs a key."
