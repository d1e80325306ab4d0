"""Who may ask the service what: routes, mounts and methods, hosts, origins, sizes, and what every answer says."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import re
import socket
import threading
import time
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import Any

import fa_tuner_api.access
import fa_tuner_api.slow
import httpx
import hypothesis
import pytest
import uvicorn
from fa_tuner_api import create_app
from fa_tuner_api.access import WRONG_KEYS, Throttle, is_loopback
from fa_tuner_api.links import ROOT
from fa_tuner_api.metrics import METHODS
from fa_tuner_api.security import HEADERS, UNAVAILABLE, GuardedApp
from fastapi import APIRouter
from hypothesis import strategies as st
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, StreamingResponse
from starlette.routing import Mount, Route

from fa_tuner.settings import ServiceSettings
from fa_tuner.store.keys import Keys
from tests.support.service import Service, problem, strict_json

WRONG = "fat_" + "x" * 43
HERE = {"Origin": "http://127.0.0.1"}  # what a browser adds to a change


@pytest.fixture
def keys(settings: ServiceSettings) -> Iterator[Keys]:
    with Keys.open(settings.url) as opened:
        yield opened


def bearer(secret: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {secret}"}


def with_a_mount(app: GuardedApp) -> GuardedApp:
    """Two routes more and an application below a path, as static files would be."""

    async def echoed(request: Request) -> PlainTextResponse:
        return PlainTextResponse(str(len(await request.body())))

    every = list(METHODS)
    app.add_route("/echo", echoed, methods=every)
    app.add_route("/api/v1/keys/{id}", echoed, methods=every)
    app.mount("/mounted", Starlette(routes=[Route("/inside", echoed, methods=every)]))
    router = APIRouter()
    router.add_api_route("/api/v1/undocumented/{id}", echoed, methods=every, include_in_schema=False)
    app.include_router(router)
    return app


def paths_of(routes: Iterable[Any], below: str = "") -> Iterator[str]:
    """The templates of whatever is routed: by the application, by routers included in it, and below mounts, whether
    OpenAPI tells of it or not."""
    for route in routes:
        if isinstance(route, Mount):
            inside = getattr(route.app, "routes", None) or ()
            yield from (f"{below}{route.path}", f"{below}{route.path}/nothing", *paths_of(inside, below + route.path))
        elif included := getattr(route, "effective_route_contexts", None):  # FastAPI keeps included routers whole
            yield from (below + each.path for each in included())
        else:
            yield below + route.path


def every_request(app: GuardedApp) -> list[tuple[str, str]]:
    """Each path that there is, and some that there are not, by each method."""
    templates = set(paths_of(app.routes))
    assert templates >= app.openapi()["paths"].keys() | {"/mounted/inside", "/api/v1/undocumented/{id}"}
    ids = {"study_id": "0" * 16, "policy_id": "0" * 64}
    paths = {re.sub(r"\{([^}:]*)[^}]*\}", lambda part: ids.get(part[1], "1"), path) for path in templates}
    paths |= {"/", "/nothing", "/api", "/docs", "//healthz", "/healthz/", "/HEALTHZ"}
    paths |= {"/healthz/../metrics", "/%68ealthz/x", "/openapi.json", "/api/v1/keys", f"{ROOT}/studies/x/events"}
    return [(method, path) for path in sorted(paths) for method in (*METHODS, "TRACE", "PURGE")]


def is_health(method: str, path: str) -> bool:
    return path == "/healthz" and method in ("GET", "HEAD", "OPTIONS")


# --- keys ---------------------------------------------------------------------------------------------------------


def test_every_route_and_mount_by_every_method(settings: ServiceSettings, keys: Keys, monkeypatch: Any) -> None:
    """Without a key, with a wrong one, a revoked one, and one for reading: all are refused what they may not."""
    monkeypatch.setattr(fa_tuner_api.access, "WRONG_KEYS", 10**9)
    app = with_a_mount(create_app(settings))
    service, requests = Service(app), every_request(app)
    _, read = keys.create("reader", "read")
    _, write = keys.create("writer", "write")
    revoked_key, revoked = keys.create("former", "admin")
    session = keys.start_session(revoked_key.id, 60)
    keys.revoke(revoked_key.id)
    assert len(requests) >= 9 * (len(app.openapi()["paths"]) + 15) > 300, "there are fewer than there were"
    refusals = 0
    for method, path in requests:
        nobodies: tuple[dict[str, str], ...] = (
            {}, bearer(WRONG), {"X-API-Key": WRONG}, bearer(revoked), {"Authorization": f"Basic {read}"},
            {"Cookie": f"fa_tune_session={WRONG}", **HERE}, {"Cookie": f"fa_tune_session={session}", **HERE},
        )  # fmt: skip
        for headers in nobodies:
            answer = service.request(method, path, headers=headers)
            if is_health(method, path):
                assert answer.status_code in (200, 405)
                continue
            assert answer.status_code == 401, (method, path, headers)
            refusals += 1
            assert answer.headers["www-authenticate"].startswith('Bearer realm="fa-tune"')
            assert answer.headers["content-type"] == "application/problem+json"
        changes = method not in ("GET", "HEAD", "OPTIONS") and path not in ("/login", "/logout")
        administers = path.startswith("/api/v1/keys")
        for secret, refused in ((read, changes or administers), (write, administers)):
            answer = service.request(method, path, headers=bearer(secret))
            assert (answer.status_code == 403) == refused, (method, path)
            assert answer.status_code not in (401, 500)
            if refused and method != "HEAD":
                problem(answer, 403, "forbidden")
    print(f"{len(requests)} requests, {refusals} refusals of nobody")
    assert refusals == len(nobodies) * sum(not is_health(*request) for request in requests)


def test_a_key_by_either_header(service: Service, keys: Keys) -> None:
    key, secret = keys.create("ann", "read")
    for headers in (bearer(secret), {"Authorization": f"bearer  {secret} "}, {"X-API-Key": secret}):
        assert service.request("GET", "/readyz", headers=headers).status_code == 200
    (held,) = keys.all()
    assert (held.id, held.used is not None) == (key.id, True)
    keys.revoke(key.id)
    detail = problem(service.request("GET", "/readyz", headers=bearer(secret)), 401, "unauthorized")
    assert "revoked" in detail and secret not in detail


def test_when_it_is_used_is_not_written_each_time(
    service: Service, keys: Keys, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, secret = keys.create("ann", "read")
    written: list[str] = []
    known = Keys.touch
    monkeypatch.setattr(Keys, "touch", lambda self, id: written.append(id) or known(self, id))  # type: ignore[func-returns-value]
    for _ in range(5):
        assert service.request("GET", "/readyz", headers=bearer(secret)).status_code == 200
    assert len(written) == 1


def test_it_is_open_on_loopback_until_there_is_a_key(
    service: Service, keys: Keys, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[bool] = []
    known = Keys.any
    monkeypatch.setattr(Keys, "any", lambda self: asked.append(True) or known(self))  # type: ignore[func-returns-value]
    monkeypatch.setattr(fa_tuner_api.access, "ASKED_EVERY", 1000)
    for _ in range(5):
        assert service.get("/readyz").status_code == 200
        assert service.request("GET", "/readyz", headers={"Cookie": "fa_tune_session=old"}).status_code == 200
    assert len(asked) == 1  # not a query for each request
    problem(service.request("GET", "/readyz", headers=bearer(WRONG)), 401, "unauthorized")
    problem(service.request("POST", "/login"), 409, "conflict")
    key, secret = keys.create("ann", "read")
    assert service.request("GET", "/readyz", headers=bearer(secret)).status_code == 200  # known at once
    monkeypatch.setattr(fa_tuner_api.access, "ASKED_EVERY", 0)
    problem(service.get("/readyz"), 401, "unauthorized")
    keys.revoke(key.id)
    problem(service.get("/readyz"), 401, "unauthorized")
    problem(Service(create_app(service.app.settings)).get("/readyz"), 401, "unauthorized")  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("host", "base"),
    [
        ("0.0.0.0", "http://127.0.0.1"),  # bound to all addresses, asked from here
        ("192.0.2.1", "http://192.0.2.1"),
        ("127.0.0.1", "http://192.0.2.1"),  # another server than ours was told another address
        ("127.0.0.1", "http://tuner.example"),  # a proxy on this machine
    ],
)
def test_it_is_closed_elsewhere_without_any_key(settings: ServiceSettings, host: str, base: str) -> None:
    app = create_app(settings.model_copy(update={"host": host, "allowed_hosts": ["tuner.example"]}))
    problem(ask(app, "GET", f"{base}/readyz"), 401, "unauthorized")
    assert ask(app, "GET", f"{base}/healthz").status_code == 200


def ask(app: GuardedApp, method: str, url: str, **more: Any) -> httpx.Response:
    async def asked() -> httpx.Response:
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport) as client:
            return await client.request(method, url, **more)

    return asyncio.run(asked())


def test_a_store_that_fails_opens_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """And whoever is not let in yet is not told where it is."""
    service = Service(create_app(ServiceSettings(storage="postgresql://root:hunter2secret@127.0.0.1:1/x")))
    for headers in ({}, bearer(WRONG), {"Cookie": f"fa_tune_session={WRONG}"}):
        for path in ("/readyz", "/metrics", "/nothing"):
            detail = problem(service.request("GET", path, headers=headers), 503, "store-unavailable")
            assert detail == UNAVAILABLE
            assert "127.0.0.1:1/x" in caplog.text and "hunter2secret" not in caplog.text
            caplog.clear()


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "127.9.9.9", "::1", "[::1]", "localhost", "LOCALHOST", "::ffff:127.0.0.1"]
)
def test_loopback(host: str) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize(
    "host", ["", "0.0.0.0", "::", "10.0.0.1", "localhost.example", "127.0.0.1.example", "127.1", "0"]
)
def test_no_loopback(host: str) -> None:
    assert not is_loopback(host)


# --- wrong keys ---------------------------------------------------------------------------------------------------


def test_guessing_is_limited(service: Service, keys: Keys) -> None:
    _, known = keys.create("ann", "read")
    _, fresh = keys.create("bob", "read")
    assert service.request("GET", "/readyz", headers=bearer(known)).status_code == 200
    for _ in range(WRONG_KEYS):
        problem(service.request("POST", "/login", headers=bearer(WRONG)), 401, "unauthorized")
    for secret in (WRONG, fresh):  # even if it were guessed now
        answer = service.request("POST", "/login", headers=bearer(secret))
        problem(answer, 429, "too-many-requests")
        assert 0 < int(answer.headers["retry-after"]) <= 61
    assert service.request("GET", "/readyz", headers=bearer(known)).status_code == 200  # who works goes on


def test_wrong_keys_are_forgotten() -> None:
    now = [0.0]
    throttle = Throttle(lambda: now[0])
    for _ in range(WRONG_KEYS):
        assert throttle.wait("a") == 0
        throttle.count("a")
    assert throttle.wait("a") == 60 and throttle.wait("b") == 0
    now[0] = 59
    assert throttle.wait("a") == 1
    now[0] = 60
    assert throttle.wait("a") == 0
    throttle.count("a")
    assert throttle.wait("a") == 0
    for number in range(20_000):
        throttle.count(str(number))
    assert len(throttle._wrong) <= fa_tuner_api.access.MAX_REMEMBERED


# --- sessions -----------------------------------------------------------------------------------------------------


def logged_in(service: Service, secret: str) -> dict[str, str]:
    answer = service.request("POST", "/login", headers=bearer(secret))
    assert answer.status_code == 204, answer.text
    return {"Cookie": answer.headers["set-cookie"].partition(";")[0]}


def test_login_gives_a_cookie_and_logout_ends_it(service: Service, keys: Keys) -> None:
    _, secret = keys.create("ann", "read")
    answer = service.request("POST", "/login", headers=bearer(secret))
    cookie, *flags = answer.headers["set-cookie"].split("; ")
    assert {flag.lower() for flag in flags} == {"httponly", "samesite=strict", "path=/", "max-age=43200"}
    assert secret not in answer.headers["set-cookie"] and answer.content == b""
    session = {"Cookie": cookie}
    assert service.request("GET", "/readyz", headers=session).status_code == 200
    problem(service.request("POST", "/api/v1/x", headers=session | HERE), 403, "forbidden")  # the key's scope
    problem(service.request("POST", "/login", headers=session | HERE), 401, "unauthorized")
    problem(service.request("GET", "/readyz", headers=session | bearer(WRONG)), 401, "unauthorized")
    ended = service.request("POST", "/logout", headers=session | HERE)
    assert ended.status_code == 204 and 'fa_tune_session=""' in ended.headers["set-cookie"]
    problem(service.request("GET", "/readyz", headers=session), 401, "unauthorized")
    problem(service.request("POST", "/logout", headers=session | HERE), 401, "unauthorized")


def test_a_session_over_https_has_a_secure_cookie(service: Service, keys: Keys) -> None:
    _, secret = keys.create("ann", "read")
    answer = ask(service.app, "POST", "https://127.0.0.1/login", headers=bearer(secret))  # type: ignore[arg-type]
    assert "secure" in {flag.lower() for flag in answer.headers["set-cookie"].split("; ")}


def test_a_revoked_key_ends_its_sessions_at_once(service: Service, keys: Keys) -> None:
    key, secret = keys.create("ann", "admin")
    first, second = logged_in(service, secret), logged_in(service, secret)
    for session in (first, second):
        assert service.request("GET", "/readyz", headers=session).status_code == 200
    keys.revoke(key.id)
    for session in (first, second):
        problem(service.request("GET", "/readyz", headers=session), 401, "unauthorized")


def test_a_session_ends_by_itself(service: Service, keys: Keys, monkeypatch: pytest.MonkeyPatch) -> None:
    class Tomorrow(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> datetime:  # type: ignore[override]
            return datetime.now(tz) + timedelta(days=1)

    key, _ = keys.create("ann", "read")
    keys.touch(key.id)  # so that nothing is written below
    session = {"Cookie": f"{fa_tuner_api.access.COOKIE}={keys.start_session(key.id, 3600)}"}
    for _ in range(2):
        assert service.request("GET", "/readyz", headers=session).status_code == 200
    monkeypatch.setattr("fa_tuner.store.keys.datetime", Tomorrow)
    problem(service.request("GET", "/readyz", headers=session), 401, "unauthorized")


def test_another_login_ends_the_former_session(service: Service, keys: Keys) -> None:
    _, secret = keys.create("ann", "read")
    former = logged_in(service, secret)
    assert service.request("POST", "/login", headers=former | bearer(secret)).status_code == 204
    problem(service.request("GET", "/readyz", headers=former), 401, "unauthorized")


# --- the form to log in -------------------------------------------------------------------------------------------

PERSON = {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"}


def form_for(answer: httpx.Response, status: int) -> str:
    """Check that it is the form, under a policy that allows its own style and nothing else; what it says."""
    assert answer.status_code == status and answer.headers["content-type"] == "text/html; charset=utf-8"
    (style,) = re.findall(r"<style>(.*?)</style>", answer.text, flags=re.S)
    hashed = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    policy = answer.headers["content-security-policy"]
    assert f"style-src 'sha256-{hashed}'" in policy and "default-src 'none'" in policy and "unsafe" not in policy
    assert "frame-ancestors 'none'" in policy and "form-action 'self'" in policy
    for name in HEADERS.keys() - {"Content-Security-Policy"}:
        assert answer.headers[name] == HEADERS[name]
    assert '<form method="post" action="/login">' in answer.text and "<script" not in answer.text
    (message,) = re.findall(r'<p role="status">(.*?)</p>', answer.text)
    return str(message)


def test_who_opens_the_page_without_a_key_gets_the_form(service: Service, keys: Keys) -> None:
    keys.create("ann", "read")
    assert "needs a key" in form_for(service.get("/", headers=PERSON), 401)
    ended = service.get("/", headers=PERSON | {"Cookie": f"fa_tune_session={WRONG}"})
    assert "has ended" in form_for(ended, 401)
    for path in ("/static/main.js", "/nothing", "/api/v1/studies"):  # a person does not look at those
        problem(service.get(path, headers=PERSON), 401, "unauthorized")
    problem(service.request("POST", "/", headers=PERSON | HERE), 401, "unauthorized")
    problem(service.get("/"), 401, "unauthorized")


def test_the_form_logs_in(service: Service, keys: Keys) -> None:
    key, secret = keys.create("ann", "read")
    answer = service.request("POST", "/login", headers=HERE, data={"key": f" {secret} "})
    assert (answer.status_code, answer.headers["location"], answer.content) == (303, "/", b"")
    assert "HttpOnly" in answer.headers["set-cookie"] and "SameSite=strict" in answer.headers["set-cookie"]
    session = {"Cookie": answer.headers["set-cookie"].partition(";")[0]}
    assert service.get("/", headers=PERSON | session).status_code == 200
    again = service.request("POST", "/login", headers=HERE | session, data={"key": secret})
    assert again.status_code == 303
    assert "has ended" in form_for(service.get("/", headers=PERSON | session), 401)  # another login ended it
    keys.revoke(key.id)
    assert "revoked" in form_for(service.request("POST", "/login", headers=HERE, data={"key": secret}), 401)


def test_what_the_form_does_not_log_in(service: Service, keys: Keys, settings: ServiceSettings) -> None:
    _, secret = keys.create("ann", "read")
    for given in ({"key": WRONG}, {"key": "<b>"}, {"key": ""}, {"other": secret}, {"Key": secret}):
        message = form_for(service.request("POST", "/login", headers=HERE, data=given), 401)
        assert "no key" in message and "<b>" not in message
    answer = service.request("POST", "/login", headers={"Origin": "https://evil.example"}, data={"key": secret})
    problem(answer, 403, "foreign-origin")
    former = {"Cookie": f"fa_tune_session={WRONG}"}
    problem(service.request("POST", "/login", headers=former, data={"key": secret}), 403, "foreign-origin")
    problem(service.request("POST", "/login", headers=HERE, data={"key": "x" * 2000}), 413, "content-too-large")
    elsewhere = service.request("POST", "/login", headers={"Host": "evil.example"}, data={"key": secret})
    problem(elsewhere, 400, "unknown-host")
    # as a file, in the address, or to another route a key is none
    problem(service.request("POST", "/login", headers=HERE, files={"key": secret.encode()}), 401, "unauthorized")
    problem(service.request("POST", "/login", {"key": secret}, headers=HERE), 401, "unauthorized")
    problem(service.request("POST", "/logout", headers=HERE, data={"key": secret}), 401, "unauthorized")
    # a header counts before the form
    wrong = service.request("POST", "/login", headers=HERE | bearer(WRONG), data={"key": secret})
    assert "set-cookie" not in wrong.headers and wrong.status_code == 401


def test_guessing_by_the_form_is_limited(service: Service, keys: Keys) -> None:
    _, secret = keys.create("ann", "read")
    for _ in range(WRONG_KEYS):
        form_for(service.request("POST", "/login", headers=HERE, data={"key": WRONG}), 401)
    answer = service.request("POST", "/login", headers=HERE, data={"key": secret})  # even if it were guessed now
    assert "Too many" in form_for(answer, 429)
    assert 0 < int(answer.headers["retry-after"]) <= 61
    problem(service.request("POST", "/login", headers=bearer(WRONG)), 429, "too-many-requests")


def test_an_open_service_has_nothing_to_log_in_to(service: Service) -> None:
    assert service.get("/", headers=PERSON).status_code == 200
    form_for(service.request("POST", "/login", headers=HERE, data={"key": WRONG}), 401)


# --- hosts and origins --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.1:9", "localhost:80", "LocalHost", "[::1]:8000"])
def test_hosts_that_lead_here(service: Service, host: str) -> None:
    assert service.request("GET", "/readyz", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "10.0.0.1", "", "[", ":80", "a@127.0.0.1"])
def test_hosts_that_do_not(service: Service, host: str) -> None:
    assert "allowed_hosts" in problem(service.request("GET", "/readyz", headers={"Host": host}), 400, "unknown-host")
    assert service.request("GET", "/healthz", headers={"Host": host}).status_code == 200


def test_two_hosts_are_none(service: Service) -> None:
    twice = [("Host", "127.0.0.1"), ("Host", "evil.example")]
    problem(service.request("GET", "/readyz", headers=twice), 400, "unknown-host")


def test_hosts_of_the_settings(settings: ServiceSettings, keys: Keys) -> None:
    _, secret = keys.create("ann", "read")
    for allowed, host, status in (
        (["tuner.example"], "Tuner.Example:443", 200),
        (["tuner.example"], "evil.example", 400),
        (["*"], "any.example", 200),
    ):
        service = Service(create_app(settings.model_copy(update={"allowed_hosts": allowed})))
        assert service.request("GET", "/readyz", headers={"Host": host, **bearer(secret)}).status_code == status


@pytest.mark.parametrize(
    "origin", ["https://evil.example", "null", "https://127.0.0.1", "http://127.0.0.1:8001", "http://localhost", ""]
)
def test_a_change_from_another_origin_is_refused(service: Service, keys: Keys, origin: str) -> None:
    with_a_mount(service.app)  # type: ignore[arg-type]
    problem(service.request("POST", "/echo", headers={"Origin": origin}), 403, "foreign-origin")  # open, too
    _, secret = keys.create("ann", "write")
    session = logged_in(service, secret)
    for method in ("POST", "PUT", "PATCH", "DELETE"):
        for path in ("/echo", "/mounted/inside"):
            problem(service.request(method, path, headers=session | {"Origin": origin}), 403, "foreign-origin")
            problem(service.request(method, path, headers=bearer(secret) | {"Origin": origin}), 403, "foreign-origin")
            problem(service.request(method, path, headers=session), 403, "foreign-origin")  # a browser says from where
            assert service.request(method, path, headers=session | HERE).status_code == 200
            assert service.request(method, path, headers=bearer(secret)).status_code == 200
    assert service.request("GET", "/echo", headers=session | {"Origin": origin}).status_code == 200
    assert "access-control-allow-origin" not in service.request("OPTIONS", "/echo", headers=session).headers


# --- sizes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/echo", "/mounted/inside"])
def test_bodies_have_a_cap(settings: ServiceSettings, path: str) -> None:
    service = Service(with_a_mount(create_app(settings.model_copy(update={"max_body_kb": 2}))))

    async def pieces(number: int) -> AsyncIterator[bytes]:
        for _ in range(number):
            yield b"x" * 1024

    assert service.request("POST", path, content=b"x" * 2048).text == "2048"
    assert service.request("POST", path, content=pieces(2)).text == "2048"
    assert "max_body_kb" in problem(service.request("POST", path, content=b"x" * 2049), 413, "content-too-large")
    assert "max_body_kb" in problem(service.request("POST", path, content=pieces(3)), 413, "content-too-large")
    for length in ("9" * 5000, "2049"):
        answer = service.request("POST", path, content=pieces(0), headers={"Content-Length": length})
        problem(answer, 413, "content-too-large")


# --- slow clients -------------------------------------------------------------------------------------------------


@contextmanager
def over_a_socket(app: GuardedApp, **more: Any) -> Iterator[int]:
    """A server in a thread of its own; its port."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = uvicorn.Server(uvicorn.Config(app, log_level="critical", ws="none", **more))
        thread = threading.Thread(target=lambda: server.run(sockets=[listener]))
        thread.start()
        try:
            while not server.started:
                assert thread.is_alive()
                time.sleep(0.01)
            yield listener.getsockname()[1]
        finally:
            server.should_exit = True
            thread.join(20)
            assert not thread.is_alive()


def said_to(port: int, *pieces: bytes, pause: float = 0.0) -> tuple[bytes, bytes]:
    """Head and body of what the server answers to these pieces until it closes the connection."""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as client:
        for piece in pieces:
            client.sendall(piece)
            time.sleep(pause)
        answer = b"".join(iter(lambda: client.recv(4096), b""))
    head, _, body = answer.partition(b"\r\n\r\n")
    return head, body


@pytest.mark.parametrize("length", [b"Content-Length: 9", b"Transfer-Encoding: chunked"])
def test_who_sends_no_more_is_told_so(
    settings: ServiceSettings, monkeypatch: pytest.MonkeyPatch, length: bytes
) -> None:
    monkeypatch.setattr(fa_tuner_api.slow, "SECONDS", 0.4)
    form = b"Content-Type: application/x-www-form-urlencoded"
    picture, document = b"Content-Type: image/png", b"Content-Type: application/json"
    with over_a_socket(with_a_mount(create_app(settings))) as port:
        for path, kind in (
            (b"/echo", document), (b"/mounted/inside", document), (b"/login", form),
            (b"/api/v1/studies", document), (b"/api/v1/images", picture),
        ):  # fmt: skip
            head = b"POST %b HTTP/1.1\r\nHost: 127.0.0.1\r\n%b\r\n%b\r\n\r\n" % (path, kind, length)
            status, body = said_to(port, head, b"1" if b"Length" in length else b"1\r\n1\r\n")
            assert status.startswith(b"HTTP/1.1 408 ") and b"application/problem+json" in status, (path, status)
            assert json.loads(body)["type"] == "urn:fa-tune:request-timeout"


def test_who_sends_slowly_is_served(settings: ServiceSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fa_tuner_api.slow, "SECONDS", 0.5)
    head = b"POST /echo HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\nContent-Length: 8\r\n\r\n"
    with over_a_socket(with_a_mount(create_app(settings))) as port:
        status, body = said_to(port, head, *[b"x"] * 8, pause=0.1)
    assert status.startswith(b"HTTP/1.1 200 ") and body == b"8"


# --- what every answer says ---------------------------------------------------------------------------------------


def test_security_headers_are_on_every_answer(
    settings: ServiceSettings, keys: Keys, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = with_a_mount(create_app(settings))
    app.add_route("/broken", lambda _: 1 / 0)
    app.add_route("/kept", lambda _: PlainTextResponse("", headers={"Cache-Control": "max-age=9"}))
    service = Service(app)
    _, secret = keys.create("ann", "read")
    statuses = set()
    for path, headers in (
        ("/healthz", {}), ("/readyz", {}), ("/readyz", bearer(secret)), ("/broken", bearer(secret)),
        ("/nothing", bearer(secret)), ("/mounted/inside", bearer(secret)), ("/readyz", {"Host": "evil.example"}),
        ("/api/v1/recommendations", bearer(secret)), ("/api/v1/keys", bearer(secret)),
    ):  # fmt: skip
        answer = service.request("GET", path, headers=headers)
        statuses.add(answer.status_code)
        for name, value in HEADERS.items():
            assert answer.headers[name] == value, (path, name)
        assert "server" not in answer.headers
    assert statuses == {200, 400, 401, 403, 404, 422, 500}
    policy = answer.headers["content-security-policy"]
    assert "unsafe" not in policy and "frame-ancestors 'none'" in policy and "default-src 'self'" in policy
    assert service.request("GET", "/kept", headers=bearer(secret)).headers["cache-control"] == "max-age=9"


def test_a_stream_stays_a_stream(settings: ServiceSettings) -> None:
    """The first event arrives before the last one is made."""
    app = create_app(settings)
    arrived = threading.Event()

    async def events() -> AsyncIterator[bytes]:
        yield b"first"
        assert await asyncio.to_thread(arrived.wait, 10)
        yield b"last"

    app.add_route("/events", lambda _: StreamingResponse(events()))
    received: list[bytes] = []

    async def send(message: Any) -> None:
        received.append(message.get("body", b""))
        if b"first" in received:
            arrived.set()

    async def receive() -> Any:
        await asyncio.sleep(60)

    scope = {
        "type": "http", "method": "GET", "path": "/events", "raw_path": b"/events", "query_string": b"",
        "scheme": "http", "headers": [(b"host", b"127.0.0.1")], "server": ("127.0.0.1", 80),
        "client": ("127.0.0.1", 1), "asgi": {},
    }  # fmt: skip
    asyncio.run(asyncio.wait_for(app(scope, receive, send), 20))
    assert received[:3] == [b"", b"first", b"last"]


HEARD = ("authorization", "x-api-key", "cookie", "origin", "host", "content-length")
ODD = st.binary(max_size=40) | st.sampled_from(
    [
        b"Bearer " + b"x" * 5000,
        b"Bearer",
        b"bearer \xff",
        b"[::1",
        b"[]:1",
        b'fa_tune_session=;;="',
        b"127.0.0.1",
        b"-1",
    ]
)


@hypothesis.settings(max_examples=200, deadline=None)
@hypothesis.given(
    st.lists(st.tuples(st.sampled_from(HEARD), ODD)), st.sampled_from([*METHODS, "X"]), st.text(max_size=20)
)
def test_nothing_that_is_sent_gets_in_or_breaks_it(
    closed: GuardedApp, headers: list[tuple[str, bytes]], method: str, path: str
) -> None:
    hypothesis.assume(path != "healthz")
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        return {"type": "http.request", "body": b"", "more_body": False}

    given = [(b"host", b"127.0.0.1"), *((name.encode(), value) for name, value in headers)]
    scope = {
        "type": "http", "method": method, "path": f"/{path}", "raw_path": b"/", "query_string": b"", "scheme": "http",
        "headers": given, "server": ("127.0.0.1", 80), "client": ("127.0.0.1", 1), "asgi": {},
    }  # fmt: skip
    asyncio.run(closed(scope, receive, send))
    assert sent[0]["status"] in (400, 401, 403, 429)


@pytest.fixture(scope="module")
def closed(tmp_path_factory: pytest.TempPathFactory) -> GuardedApp:
    """One that has a key, which nobody knows."""
    settings = ServiceSettings(storage=f"sqlite:///{tmp_path_factory.mktemp('closed')}/fa-tune.db")
    with Keys.open(settings.url) as opened:
        opened.create("ann", "admin")
    return create_app(settings)


def test_there_are_no_websockets(settings: ServiceSettings) -> None:
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        return {"type": "websocket.connect"}

    asyncio.run(create_app(settings)({"type": "websocket", "path": "/", "headers": []}, receive, send))
    assert sent == [{"type": "websocket.close", "code": 1008}]


def test_no_page_loads_scripts_from_elsewhere(service: Service) -> None:
    for path in ("/docs", "/redoc"):
        problem(service.get(path), 404, "not-found")
    schema = strict_json(service.get("/openapi.json"))
    assert "/login" in schema["paths"]
    ways = {name for way in schema["security"] for name in way}
    assert ways == schema["components"]["securitySchemes"].keys() == {"bearer", "header", "session"}
