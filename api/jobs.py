"""Studies that are asked for: `POST /studies`, cancel and resume; a worker takes them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Header, Query, Request
from fastapi.responses import Response
from pydantic import BaseModel, ConfigDict, Field, field_validator
from starlette.exceptions import HTTPException

from fa_tuner.domain.errors import UsageError
from fa_tuner.domain.job import Job
from fa_tuner.domain.measurement import AGGREGATE
from fa_tuner.domain.study import MAX_NAME, check_name
from fa_tuner.domain.workload import MAX_PROMPT_CHARACTERS
from fa_tuner.worker.requests import check, study_name

from . import schemas
from .access import Caller
from .backing import Backed, Backing, StudyId
from .fields import JobState, never_null
from .links import ROOT, study_path
from .paging import Page, next_page, position
from .problems import problem_type, problems
from .recommendations import Bound, Model

Prompt = Annotated[str, Field(min_length=1, max_length=MAX_PROMPT_CHARACTERS)]
Real = Annotated[float, Field(allow_inf_nan=False)]
MOST_PROMPTS = 256


class Terms(BaseModel):
    """How good a policy must be, and how long to search for it. What is left out is as in `fa-tune run`; null is
    refused, as it could mean that or "none"."""

    # strict: "8" and true are no numbers
    model_config = ConfigDict(extra="forbid", strict=True, json_schema_extra=never_null)

    min_psnr: float | None = Field(None, ge=0, le=100, description="dB against the native baseline", examples=[30])
    quality: Literal["recommended", "good", "strict"] | None = None
    constraints: list[Bound] | None = Field(None, max_length=16, description="such as ssim>=0.95")
    aggregate: str | None = Field(None, pattern=f"^({AGGREGATE})$", description="worst, mean, or p1 to p50")
    trials: int | None = Field(None, ge=1, le=100_000, description="most policies to measure", examples=[60])
    budget: str | None = Field(None, max_length=20, description="time to search", examples=["1h30m"])

    @field_validator("*", mode="before")
    @classmethod
    def _as_sent(cls, given: Any) -> Any:
        if given is None:
            raise ValueError("null is no value; leave the field out")
        return [_whole(each) for each in given] if isinstance(given, list) else _whole(given)

    def settings(self) -> dict[str, Any]:
        """By the names of `RunSettings`; only what was given."""
        return self.model_dump(exclude_unset=True, exclude={"study", "workers"})


class StudyRequest(Terms):
    """A workload, and what is wanted of its policies. Engine, device and engine options are the worker's."""

    model: Model = Field(description="one that the service allows", examples=["Wan-AI/Wan2.2-T2V-A14B-Diffusers"])
    revision: str | None = Field(
        None, pattern="^[A-Za-z0-9._-]{1,200}$", description="branch, tag or commit of a hub model; no other reference"
    )
    prompts: list[Prompt] | None = Field(
        None, max_length=MOST_PROMPTS, description="to search on; left out for a recorded landscape, which has its own",
        examples=[["a red bus in the rain"]],
    )  # fmt: skip
    holdout_prompts: list[Prompt] | None = Field(
        None, max_length=MOST_PROMPTS, description="that only check finalists; default the last third of three or more"
    )
    seeds: list[Annotated[int, Field(ge=0, lt=2**63)]] | None = Field(None, min_length=1, max_length=64)
    height: int | None = Field(None, ge=16, le=8192, description="pixels; default 480")
    width: int | None = Field(None, ge=16, le=8192, description="pixels; default 832")
    frames: int | None = Field(None, ge=1, le=2048, description="default 81")
    steps: int | None = Field(None, ge=1, le=1000, description="default 40")
    guidance: Real | None = Field(None, ge=0, le=100, description="default 5")
    guidance_2: Real | None = Field(None, ge=0, le=100, description="of the low-noise transformer")
    negative_prompt: str | None = Field(None, max_length=MAX_PROMPT_CHARACTERS)
    flow_shift: Real | None = Field(None, ge=0, le=1000)
    boundary_ratio: Real | None = Field(None, ge=0, le=1)
    image: str | None = Field(None, pattern="^[0-9a-f]{64}$", description="of `POST /images`; makes it image-to-video")
    dtype: str | None = Field(None, max_length=40, description="fp8 (default), mxfp8 or mxfp4; several as fp8,mxfp4")
    sampler: Literal["rectangle", "tpe", "nsga2", "random", "brute-force"] | None = None
    sampler_seed: int | None = Field(None, ge=0, lt=2**31)
    tries: list[Annotated[str, Field(max_length=10_000)]] | None = Field(
        None, max_length=64, description="your own policies, STEPS/LAYERS", examples=[["0,1,38,39/0-2"]]
    )
    repeats: int | None = Field(None, ge=3, le=100, description="timed, where latency is measured")
    study: str | None = Field(
        None, min_length=1, max_length=MAX_NAME, description="name; default one made from the request"
    )
    workers: int = Field(1, ge=1, le=64, description="that may be at it at once")


class JobsQuery(Page):
    state: JobState | None = None


IdempotencyKey = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key", min_length=1, max_length=200, examples=["5f0e2b1c"],
        description="the same key with the same request makes one study, however often it is sent",
    ),
]  # fmt: skip
ACCEPTED: dict[str, Any] = {
    "description": "Accepted; Location is the study",
    "headers": {"Location": {"schema": {"type": "string"}, "example": "/api/v1/studies/9f86d081884c7d65"}},
}

router = APIRouter(prefix=ROOT, tags=["jobs"])


@router.post(
    "/studies", status_code=202, summary="Ask for a study", response_model=schemas.Job,
    response_model_exclude_unset=True, responses={202: ACCEPTED, **problems(403, 409, 422)},
)  # fmt: skip
def ask(
    body: StudyRequest, request: Request, response: Response, backing: Backed, idempotency_key: IdempotencyKey = None
) -> dict[str, Any]:
    """A worker takes it as soon as one is free. What only the model or the device can tell is told by the study:
    follow Location, or its events."""
    _check_allowed(body.model, backing)
    values = body.settings()
    check({name: value for name, value in values.items() if name != "image"})
    if body.image is not None and backing.artifacts.image(body.image) is None:
        raise UsageError(f"there is no picture {body.image}; send it to {ROOT}/images first")
    name = body.study or study_name(values)
    check_name(name)
    caller: Caller = request.state.caller
    once = None if idempotency_key is None else f"{caller.key.id if caller.key else ''} {idempotency_key}"
    job, _ = backing.jobs.submit(name, values, body.workers, once)
    response.headers["Location"] = study_path(job.study)
    return job_document(job)


@router.post(
    "/studies/{study_id}/cancel", status_code=202, summary="Ask for its end", response_model=schemas.Job,
    response_model_exclude_unset=True, responses={202: ACCEPTED, **problems(404, 409, 422)},
)  # fmt: skip
def cancel(study_id: StudyId, response: Response, backing: Backed) -> dict[str, Any]:
    """At once where it waits; where a worker is at it, after the running policy. What was measured stays."""
    job = backing.jobs.cancel(study_id)
    response.headers["Location"] = study_path(job.study)
    return job_document(job)


@router.post(
    "/studies/{study_id}/resume", status_code=202, summary="Go on with one that has ended",
    response_model=schemas.Job, response_model_exclude_unset=True,
    responses={202: ACCEPTED, **problems(403, 404, 409, 422)},
)  # fmt: skip
def resume(study_id: StudyId, response: Response, backing: Backed, terms: Terms | None = None) -> dict[str, Any]:
    """From where it stopped; with a higher target, or other bounds for what is stored, where the body says so."""
    changes = terms.settings() if terms else {}
    if "trials" in changes:  # a budget that is spent would end it at once
        changes.setdefault("budget", None)
    asked = {name: value for name, value in backing.jobs.job(study_id).request.items() if name != "image"}
    _check_allowed(asked["model"], backing)  # which it was once, and may be no longer
    check({name: value for name, value in {**asked, **changes}.items() if value is not None})
    job = backing.jobs.resume(study_id, changes)
    response.headers["Location"] = study_path(job.study)
    return job_document(job)


@router.get(
    "/jobs", summary="The studies that were asked for, newest first", response_model=schemas.Jobs,
    response_model_exclude_unset=True, responses=problems(422),
)  # fmt: skip
def jobs(query: Annotated[JobsQuery, Query()], backing: Backed) -> dict[str, Any]:
    """Also those that no worker has begun yet."""
    page = backing.jobs.page(query.limit, position(query.cursor), query.state)
    more = next_page(page.last, f"{ROOT}/jobs", query.limit, {"state": query.state})
    return {"jobs": list(map(job_document, page.jobs)), **more}


def _whole(given: Any) -> Any:
    """In JSON 8.0 is an integer, too."""
    return int(given) if isinstance(given, float) and given.is_integer() else given


def _check_allowed(model: str, backing: Backing) -> None:
    if model not in backing.settings.models:
        raise HTTPException(
            403, f"model {model[:200]!r} is not one that may be asked for; `models` (FA_TUNE_MODELS) names those"
        )


def job_document(job: Job) -> dict[str, Any]:
    """As the service shows it; `problem` is left out where its reason is no error."""
    here = study_path(job.study)
    document = {
        "study": job.study, "id": job.id, "model": job.request["model"], "state": job.state, "reason": job.reason,
        "attempts": job.attempts, "workers": job.workers, "request": dict(job.request),
        "created": job.created.isoformat(), "updated": job.updated.isoformat(),
        "links": {"study": here, **{what: f"{here}/{what}" for what in ("events", "cancel", "resume")}},
    }  # fmt: skip
    return {**document, "problem": problem_type(job.problem)} if job.problem else document
