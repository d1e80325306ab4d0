"""The guard around the whole application: every route, every mount, and what answers their errors.

In this order: the host that was asked for, the origin of a change, the key or session and what it may do, the size of
the body. What is refused is refused before any route is looked for, so that nobody learns what exists.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace
from functools import partial
from typing import Any

from fastapi import FastAPI
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fa_tuner.domain.errors import FaTuneError, outcome
from fa_tuner.settings import ServiceSettings
from fa_tuner.store.keys import Scope as KeyScope

from . import slow
from .access import Access, Caller, Credentials, TooManyWrongKeys, WrongKey, address_of, is_loopback
from .links import IMAGES
from .login import MOST_BYTES, is_form, login_form, message_for, sent_key, wants_form
from .metrics import Metered, Metrics
from .openapi import HEALTH, complete
from .problems import problem
from .slow import received
from .turns import Turns

log = logging.getLogger("uvicorn.error")  # the server's
UNAVAILABLE = "the store is not available; the server's log says why"  # and where it is, which a stranger is not told
SAFE = ("GET", "HEAD", "OPTIONS")
KEYS = "/api/v1/keys"
READERS_TOO = ("/login", "/logout")  # changes that every key may make
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'; object-src 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",  # no-referrer would make a form's Origin null
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}

RAW_HEADERS = [(name.lower().encode(), value.encode()) for name, value in HEADERS.items()]  # as ASGI has them


class GuardedApp(FastAPI):
    """An application that the guard and the metrics surround; what a route sets of `HEADERS` itself is kept.

    `request.state.caller` is the `Caller`.
    """

    def __init__(self, settings: ServiceSettings, **more: Any) -> None:
        super().__init__(**more)
        self.settings, self.access, self.metrics = settings, Access(settings.url), Metrics()
        self.streams, self.closing = 0, False  # who listens to events; no longer where the service is to end

    def openapi(self) -> dict[str, Any]:
        if not self.openapi_schema:
            self.openapi_schema = complete(super().openapi())
        return self.openapi_schema

    def build_middleware_stack(self) -> ASGIApp:
        # outside of FastAPI's own outermost layer, which answers what nobody foresaw
        return Metered(Guard(super().build_middleware_stack(), self.access, self.settings), self.metrics)


class Refused(Exception):
    """What a request gets instead of an answer."""

    def __init__(self, status: int, kind: str, detail: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(detail)
        self.status, self.kind, self.detail, self.headers = status, kind, detail, headers or {}


class Guard:
    """Pure ASGI, so that streams stay streams."""

    def __init__(self, app: ASGIApp, access: Access, settings: ServiceSettings) -> None:
        self.app, self.access = app, access
        self._cap, self._image_cap = settings.max_body_kb * 1024, settings.max_image_kb * 1024
        self._near = is_loopback(settings.host)
        self._names = {name.lower().strip("[]") for name in (settings.host, *settings.allowed_hosts)}
        self._touching: set[str] = set()
        self._identifying = Turns[Caller | None](access.version)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            try:
                await self.app(scope, receive, send)
            finally:
                await run_in_threadpool(self.access.close)
            return
        if scope["type"] != "http":  # there are no websockets
            await send({"type": "websocket.close", "code": 1008})
            return

        cap = self._image_cap if scope["path"] == IMAGES else self._cap
        body = _Body(receive, cap)

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = list(message.get("headers", ()))
                given = {name for name, _ in headers}
                message["headers"] = headers + [each for each in RAW_HEADERS if each[0] not in given]
            await send(message)

        try:
            scope.setdefault("state", {})["caller"] = await self._admitted(scope, receive, cap)
        except Refused as refused:
            answer = _answer(refused, scope)
            await answer(scope, receive, send_guarded)
        except FaTuneError as error:
            log.error("nobody can be let in: %s", error)
            _, status, kind = outcome(type(error))
            await problem(status, kind, UNAVAILABLE)(scope, receive, send_guarded)
        else:
            try:
                await self.app(scope, body.receive, body.unless_refused(send_guarded))
            except Exception:
                if body.refused is None:
                    raise
            if body.refused is not None and not body.answered:
                await _answer(body.refused, scope)(scope, receive, send_guarded)

    async def _admitted(self, scope: Scope, receive: Receive, cap: int) -> Caller:
        """
        Raises:
            Refused: it may not pass.
            StoreError: the database failed.
        """
        headers, method, path = Headers(scope=scope), scope["method"], scope["path"]
        if path == HEALTH and method in SAFE:
            return Caller(None)
        host = self._host(scope, headers)
        given = Credentials.of(headers)
        origin = headers.get("origin")
        if method not in SAFE and (origin is not None or (given.session and not given.secret)):
            self._check_origin(origin, f"{scope['scheme']}://{headers['host']}")
        if given.secret is None and is_form(method, path, headers):
            try:
                sent = await sent_key(receive)
            except TimeoutError:
                raise _too_slow() from None
            if sent is None:
                raise Refused(413, "content-too-large", f"a form to log in may have up to {MOST_BYTES} bytes")
            given = replace(given, secret=sent)
        caller = await self._caller(given, scope, host)
        if caller.key is not None and not caller.key.may(wanted := scope_for(method, path)):
            raise Refused(
                403, "forbidden", f"this key may {caller.key.scope}, and this needs the scope {wanted}",
                {"WWW-Authenticate": f'Bearer realm="fa-tune", error="insufficient_scope", scope="{wanted}"'},
            )  # fmt: skip
        length = headers.get("content-length", "")
        if len(length) > 15 or (length.isdecimal() and int(length) > cap):
            raise _too_large(cap)
        return caller

    async def _caller(self, given: Credentials, scope: Scope, host: str) -> Caller:
        server = (scope.get("server") or ("", None))[0]
        # a proxy on this machine is asked under another name: what stands behind it needs a key
        near = self._near and is_loopback(server) and is_loopback(host)
        if given.secret is None and given.session is None and near and self.access.known() is False:
            return Caller(None)
        address = (scope.get("client") or ("", 0))[0]
        try:
            found = await self._identified(given, address)
        except WrongKey:
            raise _unauthorized("this is no key, or a revoked one", "invalid_token") from None
        except TooManyWrongKeys as error:
            raise Refused(
                429, "too-many-requests", "too many wrong keys came from this address; try again later",
                {"Retry-After": str(int(error.seconds) + 1)},
            ) from None  # fmt: skip
        if found is not None:
            self._touch(found)
            return found
        if near and not await run_in_threadpool(self.access.created):
            return Caller(None)
        raise _unauthorized("this needs a key: send it as `Authorization: Bearer KEY` or `X-API-Key: KEY`")

    async def _identified(self, given: Credentials, address: str) -> Caller | None:
        """As `Access.identify`; who brings the same key at once is looked up once, but each guess at one counts."""
        look = partial(self.access.identify, given, address)
        if given.secret is None:
            return await self._identifying.get((given, address), look, keep=False)  # a session ends by itself
        if (digest := self.access.was_right(given.secret)) is None:
            return await run_in_threadpool(look)
        return await self._identifying.get((digest, address), look)

    def _touch(self, caller: Caller) -> None:
        key = caller.key
        if key is not None and not key.used_lately() and key.id not in self._touching:
            self._touching.add(key.id)
            written = asyncio.get_running_loop().run_in_executor(None, self.access.touch, key)
            written.add_done_callback(lambda _: self._touching.discard(key.id))

    def _host(self, scope: Scope, headers: Headers) -> str:
        """The host that was asked for, without its port. A page on another name that leads here (DNS rebinding) is
        refused; an address that leads here is no such name."""
        given = headers.getlist("host")
        host = (given[0] if len(given) == 1 else "").lower()
        name = host.partition("]")[0].strip("[") if host.startswith("[") else host.partition(":")[0]
        address = address_of(name)
        here = address is not None and address == address_of((scope.get("server") or ("", None))[0])
        if not name or not (here or is_loopback(name) or name in self._names or "*" in self._names):
            raise Refused(
                400,
                "unknown-host",
                "this host is not served here; `allowed_hosts` (FA_TUNE_ALLOWED_HOSTS) names others",
            )
        return name

    def _check_origin(self, origin: str | None, own: str) -> None:
        if origin is None or origin.lower() != own.lower():
            raise Refused(403, "foreign-origin", "a change is only taken from a page of this service")


class _Body:
    """Counts a body of unknown length as it comes. What is answered after it was too large or too slow is dropped."""

    def __init__(self, receive: Receive, cap: int) -> None:
        self.refused: Refused | None = None
        self.answered = self._whole = False
        self._receive, self._cap, self._received = receive, cap, 0

    async def receive(self) -> Message:
        if self._whole:  # what comes then is that the client leaves, and it may stay
            return await self._receive()
        try:
            message = await received(self._receive)
        except TimeoutError:
            raise self._no(_too_slow()) from None
        self._whole = not message.get("more_body", False)
        self._received += len(message.get("body", b""))
        if self._received > self._cap:
            raise self._no(_too_large(self._cap))
        return message

    def _no(self, refused: Refused) -> HTTPException:
        self.refused = refused
        return HTTPException(refused.status)  # which no framework takes for an error of its own

    def unless_refused(self, send: Send) -> Send:
        async def sent(message: Message) -> None:
            if self.answered or self.refused is None:
                self.answered = True
                await send(message)

        return sent


def scope_for(method: str, path: str) -> KeyScope:
    """What a key must be allowed to do for this."""
    if path == KEYS or path.startswith(f"{KEYS}/"):
        return "admin"
    return "read" if method in SAFE or path in READERS_TOO else "write"


def _too_large(cap: int) -> Refused:
    detail = f"a body may have up to {cap} bytes; `max_body_kb`, and `max_image_kb` for a picture, set how many"
    return Refused(413, "content-too-large", detail)


def _too_slow() -> Refused:
    detail = f"nothing more of the body came for {slow.SECONDS:g} seconds"
    return Refused(408, "request-timeout", detail, {"Connection": "close"})


def _answer(refused: Refused, scope: Scope) -> Response:
    """A problem document, or the form to log in with where that would help."""
    headers, method, path = Headers(scope=scope), scope["method"], scope["path"]
    answer: Response
    if refused.status in (401, 429) and wants_form(method, path, headers):
        session, sent = Credentials.of(headers).session is not None, is_form(method, path, headers)
        answer = login_form(refused.status, message_for(refused.status, session, sent))
    else:
        answer = problem(refused.status, refused.kind, refused.detail)
    answer.headers.update(refused.headers)
    return answer


def _unauthorized(detail: str, error: str = "") -> Refused:
    challenge = 'Bearer realm="fa-tune"' + (f', error="{error}"' if error else "")
    return Refused(401, "unauthorized", detail, {"WWW-Authenticate": challenge})
