"""`GET /studies` and what belongs to one: front, trials, sensitivity, export."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request
from fastapi.responses import Response
from pydantic import Field

from fa_tuner.domain.errors import NotFoundError
from fa_tuner.domain.study import study_id
from fa_tuner.domain.upstream import Release
from fa_tuner.export import exporter
from fa_tuner.export.base import MAX_STAGE_ID
from fa_tuner.recommend.question import chosen_by_hand, recommend_from
from fa_tuner.report.documents import evaluation_document, result_document, searched_document, study_document
from fa_tuner.report.sensitivity import sensitivity_document

from . import schemas
from .backing import Backed, StudyId, StudyName
from .fields import State
from .jobs import job_document
from .links import ROOT, study_links, study_path
from .paging import Page, next_page, position
from .problems import problems
from .recommendations import Bounds, Model
from .tagged import IF_NONE_MATCH, tagged

POLICY_ID = "^[0-9a-f]{64}$"
MEDIA_TYPES = {"deploy": "application/yaml", "stage-args": "application/yaml", "flags": "text/plain"}


class StudiesQuery(Page):
    model: Model | None = Field(None, description="only of this model")
    state: State | None = None


class ExportQuery(Bounds):
    format: Literal["deploy", "stage-args", "flags"] = "deploy"
    policy: str | None = Field(None, pattern=POLICY_ID, description="`id` of a policy; default the recommended one")
    stage_id: int = Field(0, ge=0, le=MAX_STAGE_ID, description="the diffusion stage")
    vllm_omni_version: str | None = Field(
        None, max_length=40, description="the version that will read it; what that would refuse is refused here",
        examples=["0.30"],
    )  # fmt: skip


router = APIRouter(prefix=f"{ROOT}/studies", tags=["studies"])


@router.get(
    "", summary="The stored studies, newest first", response_model=schemas.Studies, response_model_exclude_unset=True,
    responses=problems(422),
)  # fmt: skip
def studies(query: Annotated[StudiesQuery, Query()], backing: Backed) -> dict[str, Any]:
    """A study that is added meanwhile moves none to another page."""
    page = backing.store.study_page(query.limit, position(query.cursor), query.model, query.state)
    found = [{**study_document(study, count), "links": study_links(study.spec.name)} for study, count in page.studies]
    filters = {"model": query.model, "state": query.state}
    return {"studies": found, **next_page(page.last, f"{ROOT}/studies", query.limit, filters)}


@router.get(
    "/{study_id}", summary="One study", response_model=schemas.SearchedStudy | schemas.WaitingStudy,
    response_model_exclude_unset=True, responses=problems(404, 422),
)  # fmt: skip
def study(study_id: StudyId, backing: Backed) -> dict[str, Any]:
    """Also one that was asked for and that no worker has begun yet: it has no figures."""
    job = backing.jobs.find(study_id)
    asked = {} if job is None else {"job": job_document(job)}
    try:
        name = backing.name_of(study_id)
    except NotFoundError:
        if job is None:
            raise
        head = {"study": job.study, "id": job.id, "state": job.state, "reason": job.reason}
        return {**head, **asked, "links": study_links(job.study)}
    return {**searched_document(*backing.memory.study(name)), **asked, "links": study_links(name)}


@router.get(
    "/{study_id}/front", summary="Its Pareto front and recommended policy", response_model=schemas.Front,
    response_model_exclude_unset=True, responses=problems(404, 422),
)  # fmt: skip
def front(name: StudyName, backing: Backed) -> dict[str, Any]:
    return {**result_document(*backing.memory.study(name)), "links": study_links(name)}


@router.get(
    "/{study_id}/trials", summary="Every policy evaluated, in order", response_model=schemas.Trials,
    response_model_exclude_unset=True, responses=problems(404, 422),
)  # fmt: skip
def trials(name: StudyName, query: Annotated[Page, Query()], backing: Backed) -> dict[str, Any]:
    store, after = backing.store, position(query.cursor)
    found = store.study(name)
    page = store.evaluation_page(name, query.limit, -1 if after is None else after)
    documents = [evaluation_document(evaluation, found) for evaluation in page.evaluations]
    return {"trials": documents, **next_page(page.last, f"{study_path(name)}/trials", query.limit, {})}


@router.get(
    "/{study_id}/sensitivity", summary="What each step and layer costs in quality",
    response_model=schemas.Sensitivity, responses=problems(404, 422),
)  # fmt: skip
def sensitivity(name: StudyName, backing: Backed) -> dict[str, Any]:
    """404 where too few policies were measured."""
    return sensitivity_document(*backing.memory.study(name))


@router.get(
    "/{study_id}/export", summary="A policy as vLLM-Omni configuration", response_class=Response,
    openapi_extra={"parameters": [IF_NONE_MATCH]},
    responses={
        200: {
            "description": "YAML, or a line of flags; its evidence as comments",
            "content": {
                media: {"schema": {"type": kind}, "example": example} for media, kind, example in (
                    ("application/yaml", "object", "platforms:\n  npu:\n    stages:\n      - stage_id: 0\n"),
                    ("text/plain", "string", '--diffusion-kv-cache-dtype fp8 --diffusion-kv-cache-skip-steps "0,1"\n'),
                )
            },
        },
        304: {"description": "The client has it"},
        **problems(404, 422),
    },
)  # fmt: skip
def export(
    name: StudyName, query: Annotated[ExportQuery, Query()], backing: Backed, request: Request
) -> Response:  # fmt: skip
    """The recommended policy, or the one that `policy` names, which need not meet the requirement: the comments say."""
    release = None if query.vllm_omni_version is None else Release.parse(query.vllm_omni_version)
    found, evaluations = backing.memory.study(name)
    if query.policy is None:
        recommendation = recommend_from(found, evaluations, query.requirement())
    else:
        recommendation = chosen_by_hand(found, backing.evaluation(name, query.policy), query.requirement())
    text = exporter(query.format).export(recommendation, query.stage_id, release)
    media_type = MEDIA_TYPES[query.format]
    suffix = "yaml" if media_type == "application/yaml" else "txt"
    return tagged(request, text.encode(), media_type, f"fa-tune-{study_id(name)}-{query.format}.{suffix}")
