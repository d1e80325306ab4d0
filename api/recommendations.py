"""`GET /recommendations`: which selectors for this model and workload?"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from fastapi import APIRouter, FastAPI, Query, Request
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, ConfigDict, Field

from fa_tuner.domain.measurement import AGGREGATE, PRESETS, Requirement
from fa_tuner.domain.study import study_id
from fa_tuner.recommend.matching import Nearest, NoMatchError, Question
from fa_tuner.report.documents import difference_document
from fa_tuner.settings import asked_for

from . import schemas
from .backing import Backed
from .links import ROOT, study_path
from .problems import problem_of, problems

Model = Annotated[str, Field(min_length=1, max_length=4096)]
Bound = Annotated[str, Field(max_length=100)]


class Bounds(BaseModel):
    """How good a policy must be; what is left out is what each study asked for."""

    model_config = ConfigDict(extra="forbid")

    min_psnr: float | None = Field(None, ge=0, le=100, description="dB", examples=[30])
    quality: Literal["recommended", "good", "strict"] | None = Field(None, description=f"preset: {', '.join(PRESETS)}")
    constraint: list[Bound] = Field(
        default_factory=list, max_length=16, description="such as ssim>=0.95", examples=[["ssim>=0.95"]]
    )
    aggregate: str | None = Field(
        None, pattern=f"^({AGGREGATE})$", description="over prompts: worst, mean, or a quantile from p1 to p50"
    )

    def requirement(self) -> Requirement | None:
        return asked_for(self.min_psnr, self.quality, self.constraint, self.aggregate)


class RecommendationQuery(Bounds):
    """Which selectors for this model and workload? A field left out matches any value."""

    model: Model = Field(
        description="hub id, or a local model's absolute path", examples=["Wan-AI/Wan2.2-T2V-A14B-Diffusers"]
    )
    revision: str | None = Field(None, min_length=1, max_length=200, description="that the study pinned")
    task: Literal["t2v", "i2v"] | None = None
    dtype: Literal["fp8", "mxfp8", "mxfp4"] | None = None
    steps: int | None = Field(None, ge=1, le=1000, examples=[40])
    height: int | None = Field(None, ge=1, le=8192, description="pixels")
    width: int | None = Field(None, ge=1, le=8192, description="pixels")
    frames: int | None = Field(None, ge=1, le=2048)
    guided: bool | None = Field(None, description="whether classifier-free guidance runs")
    device: str | None = Field(
        None, min_length=1, max_length=100,
        description="generation (A5) or name, of the device that a study ran on or of its device profile",
    )  # fmt: skip
    engine: str | None = Field(None, min_length=1, max_length=100, examples=["vllm-omni"])
    engine_version: str | None = Field(
        None, pattern=r"^[0-9]{1,6}\.[0-9]{1,6}$", description="major.minor", examples=["0.30"]
    )
    latency_source: Literal["measured", "projected"] | None = None
    allow_nearest: bool = Field(False, description="where nothing matches, answer with the nearest study of the model")

    def question(self) -> Question:
        """A client's model is compared with what is stored, never looked up as a path of this machine."""
        filters = self.model_dump(exclude={"allow_nearest", *Bounds.model_fields})
        return Question(requirement=self.requirement(), **filters)


router = APIRouter(prefix=ROOT, tags=["recommendations"])


@router.get(
    "/recommendations",
    summary="The recommended policy with its evidence",
    response_model=schemas.Recommendation,
    responses={
        **problems(422),
        404: {"model": schemas.NoMatch | schemas.Problem, "description": "No study matches, or no policy qualifies"},
    },
)
async def recommendations(query: Annotated[RecommendationQuery, Query()], backing: Backed) -> Response:
    """Answered from what is stored. Among several matching studies a finished one counts before others, then one whose
    policy passed on held-out prompts, then more prompts, then newer figures."""
    answer = await backing.recommend(query.question(), query.allow_nearest)
    return Response(answer.as_of(datetime.now(UTC)), media_type="application/json")


def install_no_match_handler(app: FastAPI) -> None:
    """Where no study matches, the problem document says which come near."""

    @app.exception_handler(NoMatchError)
    def _no_match(_request: Request, error: NoMatchError) -> JSONResponse:
        return problem_of(error, nearest=[_nearest_document(near) for near in error.nearest])


def _nearest_document(near: Nearest) -> dict[str, Any]:
    spec = near.study.spec
    return {
        "study": spec.name,
        "study_id": study_id(spec.name),
        "model": spec.workload.model,
        "differences": [difference_document(each) for each in near.differences],
        "link": study_path(spec.name),
    }
