"""The application: health, recommendations, studies and the page, on the same functions as the command line.

Run it with `fa-tune serve`, or in a server of your own with `uvicorn --factory fa_tuner_api:create_app`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI

from fa_tuner.settings import ServiceSettings, load

from . import events, images, jobs, page, pictures, recommendations, schemas, studies
from .administration import install_administration
from .backing import Backing
from .problems import install_problem_handlers
from .security import GuardedApp


def create_app(settings: ServiceSettings | None = None) -> GuardedApp:
    """`settings` default to the environment's (`FA_TUNE_STORAGE` and so on). The store is opened once, by the first
    request that needs it."""
    chosen = settings or load(ServiceSettings, {})
    backing = Backing(chosen)

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        yield
        backing.close()

    app = GuardedApp(
        chosen,
        title="fa-tune",
        description="Which skip selectors for this model and workload?",
        version="1",
        lifespan=lifespan,
        redirect_slashes=False,
        docs_url=None,  # these two load scripts from elsewhere
        redoc_url=None,
    )
    app.state.backing = backing
    install_problem_handlers(app)
    recommendations.install_no_match_handler(app)
    install_administration(app)

    # async, so that it never waits for a thread
    @app.get("/healthz", summary="Whether the service runs; asks no database", tags=["health"])
    async def healthz() -> schemas.Health:
        return schemas.Health(status="ok")

    for part in (recommendations, studies, pictures, jobs, events, images, page):
        app.include_router(part.router)
    return app
