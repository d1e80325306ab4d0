"""Routes of the service itself: is it ready, what has it done, who is logged in."""

from __future__ import annotations

from typing import Annotated

from fastapi import Cookie, Request
from fastapi.responses import Response
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException

from fa_tuner.domain.errors import ConflictError
from fa_tuner.store.jobs import Jobs

from . import schemas
from .access import COOKIE, Caller
from .login import is_form
from .problems import problems
from .security import GuardedApp


def install_administration(app: GuardedApp) -> None:
    access, settings = app.access, app.settings

    @app.get(
        "/readyz",
        tags=["health"],
        responses=problems(),
        summary="Whether studies can be asked for: the database is there, with the schema it knows, and a worker lives",
    )
    def readyz() -> schemas.Ready:
        """A service that is only to answer from what is stored is ready without a worker where its setting
        `ready_without_worker` says so."""
        access.database.check()
        living = len(Jobs(access.database).workers())
        if not living and not settings.ready_without_worker:
            raise HTTPException(
                503,
                "no worker lives: start `fa-tune worker`, or `fa-tune serve --with-worker`; `ready_without_worker` "
                "(FA_TUNE_READY_WITHOUT_WORKER) is for a service that needs none",
            )
        return schemas.Ready(status="ready", workers=living)

    @app.get(
        "/metrics", tags=["health"], summary="Figures for Prometheus", response_class=Response, responses=problems()
    )
    def metrics() -> Response:
        return Response(app.metrics.text(access.database), media_type=CONTENT_TYPE_LATEST)

    @app.post(
        "/login",
        tags=["session"],
        status_code=204,
        summary="A session cookie for the key that the request brings",
        responses={303: {"description": "To the page, for who sent the form"}, **problems(409, 422)},
    )
    def login(
        request: Request, former: Annotated[str | None, Cookie(alias=COOKIE, include_in_schema=False)] = None
    ) -> Response:
        """The key comes in a header, or as `key` of a form (application/x-www-form-urlencoded)."""
        caller: Caller = request.state.caller
        if caller.key is None:
            raise ConflictError("no key was created, so this service is open and there is nothing to log in to")
        if caller.session is not None:
            raise HTTPException(401, "a session starts with a key, not with another session")
        if former is not None:
            access.keys.end_session(former)
        seconds = settings.session_hours * 3600
        secret = access.keys.start_session(caller.key.id, seconds)
        by_form = is_form(request.method, request.url.path, request.headers)
        response = Response(status_code=303, headers={"Location": "/"}) if by_form else Response(status_code=204)
        response.set_cookie(
            COOKIE, secret, max_age=seconds, httponly=True, samesite="strict", secure=request.url.scheme == "https"
        )
        return response

    @app.post("/logout", tags=["session"], status_code=204, summary="End the session", responses=problems())
    def logout(request: Request) -> Response:
        caller: Caller = request.state.caller
        if caller.session is not None:
            access.keys.end_session(caller.session)
        response = Response(status_code=204)
        response.delete_cookie(COOKIE, httponly=True, samesite="strict", secure=request.url.scheme == "https")
        return response
