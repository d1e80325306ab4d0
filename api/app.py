"""The application: health and the recommendation query, on the same functions as the command line.

Run it with `fa-tune serve`, or in a server of your own with `uvicorn --factory fa_tuner_api:create_app`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from fastapi import Depends, Query, Request
from pydantic import BaseModel, ConfigDict, Field

from fa_tuner.domain.measurement import AGGREGATE, PRESETS
from fa_tuner.recommend.question import Question, recommend
from fa_tuner.report.documents import recommendation_document
from fa_tuner.settings import ServiceSettings, asked_for, load
from fa_tuner.store.repository import Store

from .administration import install_administration
from .problems import install_problem_handlers
from .security import GuardedApp


class RecommendationQuery(BaseModel):
    """Which selectors for this model and workload? A field left out matches any value."""

    model_config = ConfigDict(extra="forbid")

    model: str = Field(min_length=1, max_length=4096, description="hub id, or a local model's absolute path")
    min_psnr: float | None = Field(None, ge=0, le=100, description="dB; default: what each study asked for")
    quality: Literal["recommended", "good", "strict"] | None = Field(None, description=f"preset: {', '.join(PRESETS)}")
    constraint: list[str] = Field(default_factory=list, max_length=16, description="such as ssim>=0.95")
    aggregate: str | None = Field(
        None, pattern=f"^({AGGREGATE})$", description="over prompts: worst, mean, or a quantile from p1 to p50"
    )
    dtype: Literal["fp8", "mxfp8", "mxfp4"] | None = None
    steps: int | None = Field(None, ge=1, le=1000)
    height: int | None = Field(None, ge=1, le=8192)
    width: int | None = Field(None, ge=1, le=8192)
    frames: int | None = Field(None, ge=1, le=2048)


def opened(request: Request) -> Iterator[Store]:
    """The store, for as long as one request takes."""
    with Store.open(request.app.state.storage) as store:
        yield store


def create_app(settings: ServiceSettings | None = None) -> GuardedApp:
    """`settings` default to the environment's (`FA_TUNE_STORAGE` and so on). The store is opened for each request."""
    chosen = settings or load(ServiceSettings, {})
    about = {"title": "fa-tune", "description": "Which skip selectors for this model and workload?", "version": "1"}
    app = GuardedApp(chosen, **about, docs_url=None, redoc_url=None)  # those two load scripts from elsewhere
    app.state.storage = chosen.url
    install_problem_handlers(app)
    install_administration(app)

    @app.get("/healthz", summary="Whether the service runs; asks no database")
    def healthz() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/api/v1/recommendations", summary="The recommended policy with its evidence")
    def recommendations(
        query: Annotated[RecommendationQuery, Query()], store: Annotated[Store, Depends(opened)]
    ) -> dict[str, Any]:
        wanted = asked_for(query.min_psnr, query.quality, query.constraint, query.aggregate)
        # a client's model is compared with what is stored, never looked up as a path of this machine
        question = Question(query.model, wanted, query.dtype, query.steps, query.height, query.width, query.frames)
        return recommendation_document(recommend(store, question))

    return app
