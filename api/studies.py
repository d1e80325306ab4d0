"""`GET /studies` and what belongs to one: front, trials, sensitivity, export."""

from __future__ import annotations

import base64
import re
from typing import Annotated, Any, Literal
from urllib.parse import urlencode

from fastapi import APIRouter, Query, Request
from fastapi.responses import Response
from pydantic import BaseModel, ConfigDict, Field

from fa_tuner.domain.errors import UsageError
from fa_tuner.domain.study import study_id
from fa_tuner.domain.upstream import Release
from fa_tuner.export import exporter
from fa_tuner.export.base import MAX_STAGE_ID
from fa_tuner.recommend.question import chosen_by_hand, recommend_from
from fa_tuner.report.documents import evaluation_document, result_document, searched_document, study_document
from fa_tuner.report.sensitivity import sensitivity_document

from . import schemas
from .backing import Backed, StudyName
from .links import ROOT, study_links, study_path
from .problems import problems
from .recommendations import Bounds, Model
from .tagged import IF_NONE_MATCH, tagged

POLICY_ID = "^[0-9a-f]{64}$"
MEDIA_TYPES = {"deploy": "application/yaml", "stage-args": "application/yaml", "flags": "text/plain"}


class Page(BaseModel):
    model_config = ConfigDict(extra="forbid")

    limit: int = Field(20, ge=1, le=100)
    cursor: str | None = Field(None, max_length=64, description="`next_cursor` of the page before")


class StudiesQuery(Page):
    model: Model | None = Field(None, description="only of this model")
    state: schemas.State | None = None


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
    page = backing.store.study_page(query.limit, _position(query.cursor), query.model, query.state)
    found = [{**study_document(study, count), "links": study_links(study.spec.name)} for study, count in page.studies]
    filters = {"model": query.model, "state": query.state}
    return {"studies": found, **_next(page.last, f"{ROOT}/studies", query.limit, filters)}


@router.get(
    "/{study_id}", summary="One study", response_model=schemas.SearchedStudy, response_model_exclude_unset=True,
    responses=problems(404, 422),
)  # fmt: skip
def study(name: StudyName, backing: Backed) -> dict[str, Any]:
    return {**searched_document(*backing.memory.study(name)), "links": study_links(name)}


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
    store, after = backing.store, _position(query.cursor)
    found = store.study(name)
    page = store.evaluation_page(name, query.limit, -1 if after is None else after)
    documents = [evaluation_document(evaluation, found) for evaluation in page.evaluations]
    return {"trials": documents, **_next(page.last, f"{study_path(name)}/trials", query.limit, {})}


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
                media: {"schema": {"type": "string"}, "example": example} for media, example in (
                    ("application/yaml", "platforms:\n  npu:\n    stages:\n      - stage_id: 0\n"),
                    ("text/plain", '--diffusion-kv-cache-dtype fp8 --diffusion-kv-cache-skip-steps "0,1"\n'),
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


def _next(last: int | None, path: str, limit: int, filters: dict[str, str | None]) -> dict[str, str]:
    """What leads to the next page; nothing on the last one."""
    if last is None:
        return {}
    cursor = base64.urlsafe_b64encode(str(last).encode()).decode().rstrip("=")
    given = {name: value for name, value in filters.items() if value is not None}
    return {"next_cursor": cursor, "next": f"{path}?{urlencode({'limit': limit, 'cursor': cursor, **given})}"}


def _position(cursor: str | None) -> int | None:
    """
    Raises:
        UsageError: it is none of ours.
    """
    if cursor is None:
        return None
    try:
        text = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True).decode()
    except ValueError:
        text = ""
    if re.fullmatch(r"[0-9]{1,18}", text, re.ASCII) is None:
        raise UsageError(f"cursor {cursor!r} is not one that this service gave; begin without")
    return int(text)
