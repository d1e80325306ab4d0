"""Errors as RFC 9457 problem documents, from the project's own table."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from fa_tuner.domain.errors import FaTuneError, outcome

from .schemas import Problem

MEDIA_TYPE = "application/problem+json"


def problem_type(kind: str) -> str:
    return f"urn:fa-tune:{kind}"


def problem(status: int, kind: str, detail: str, **extension: Any) -> JSONResponse:
    """`extension` are further members of the document."""
    document = {"type": problem_type(kind), "title": HTTPStatus(status).phrase, "status": status, "detail": detail}
    return JSONResponse({**document, **extension}, status, media_type=MEDIA_TYPE)


def problem_of(error: FaTuneError, **extension: Any) -> JSONResponse:
    _, status, kind = outcome(type(error))
    return problem(status, kind, str(error), **extension)


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """A route's problem responses, as its `responses` has them; 500 and 503 are every route's."""
    return {status: {"model": Problem, "description": HTTPStatus(status).phrase} for status in (*statuses, 500, 503)}


def install_problem_handlers(app: FastAPI) -> None:
    """One shape of error for everything that the application answers."""

    @app.exception_handler(FaTuneError)
    def _own(_request: Request, error: FaTuneError) -> JSONResponse:
        return problem_of(error)

    @app.exception_handler(RequestValidationError)
    def _invalid(_request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"][1:])
        return problem(422, "invalid-request", f"{where}: {first['msg']}")

    @app.exception_handler(HTTPException)
    def _http(request: Request, error: HTTPException) -> JSONResponse:
        response = problem(
            error.status_code, HTTPStatus(error.status_code).name.lower().replace("_", "-"), error.detail
        )
        response.headers.update(error.headers or {})
        if error.status_code == 405:
            response.headers["Allow"] = _allowed(request) or response.headers.get("Allow", "")
        return response

    @app.exception_handler(Exception)
    def _unforeseen(_request: Request, error: Exception) -> JSONResponse:
        # the server's log has the rest; what an unforeseen error says may hold a secret
        _, status, kind = outcome(type(error))
        return problem(status, kind, f"internal error: {type(error).__name__}; the server's log says where")


def _allowed(request: Request) -> str:
    """The methods of all documented routes of a path: the error itself knows of the first alone."""
    template = getattr(request.scope.get("route"), "path", None)
    app: FastAPI = request.app
    return ", ".join(sorted(method.upper() for method in app.openapi()["paths"].get(template, ())))
