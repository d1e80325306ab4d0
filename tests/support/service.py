"""The service, asked in this process."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from typing import Any, NoReturn
from weakref import WeakSet

import httpx
from fa_tuner_api.security import GuardedApp
from fastapi import FastAPI

# httpx.ASGITransport and not fastapi.testclient: that one warns that httpx is no longer what it wants


_MADE: WeakSet[FastAPI] = WeakSet()


def close_services() -> None:
    """Give back what applications hold open, of which hundreds would be more files than a process may have; one that is
    asked again opens it again."""
    for app in list(_MADE):
        app.state.backing.close()
        if isinstance(app, GuardedApp):
            app.access.close()
    _MADE.clear()


@dataclass(frozen=True)
class Service:
    """An application and a client for it. Errors of the application come as what a client would see."""

    app: FastAPI

    def __post_init__(self) -> None:
        _MADE.add(self.app)

    def request(self, method: str, path: str, parameters: Any = None, **more: Any) -> httpx.Response:
        async def sent() -> httpx.Response:
            transport = httpx.ASGITransport(self.app, raise_app_exceptions=False)
            async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
                return await client.request(method, path, params=parameters, **more)

        response = asyncio.run(sent())
        assert "Traceback" not in response.text
        return response

    def get(self, path: str, parameters: Any = None, **more: Any) -> httpx.Response:
        return self.request("GET", path, parameters, **more)

    def recommended(self, **parameters: Any) -> httpx.Response:
        return self.get("/api/v1/recommendations", parameters)


def strict_json(response: httpx.Response) -> Any:
    def refuse(constant: str) -> NoReturn:
        raise AssertionError(f"{constant} is no JSON")

    return json.loads(response.text, parse_constant=refuse)


def problem(response: httpx.Response, status: int, kind: str, *extension: str) -> str:
    """Check that it is a problem document (RFC 9457) of that kind, with these further members; its detail."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    document = strict_json(response)
    assert document.keys() == {"type", "title", "status", "detail", *extension}
    assert (document["type"], document["status"]) == (f"urn:fa-tune:{kind}", status)
    detail: str = document["detail"]
    assert detail
    return detail
