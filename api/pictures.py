"""What was generated: clips, frames and single frames, by study, policy and case."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Path, Request
from fastapi.responses import Response

from fa_tuner.domain.errors import NotFoundError
from fa_tuner.domain.study import study_id

from .backing import Backed, StudyName
from .links import ROOT
from .problems import problems
from .stills import png
from .studies import POLICY_ID
from .tagged import IF_NONE_MATCH, RANGE, in_part, tagged

PolicyId = Annotated[str, Path(pattern=POLICY_ID, description="`id` of the policy; the native one's is the baseline")]
FrameIndex = Annotated[int, Path(ge=0, le=100_000, description="of the frame, from 0", examples=[0])]
CaseNumber = Annotated[int, Path(ge=0, le=100_000, description="of the searched prompt and seed, from 0", examples=[0])]

router = APIRouter(prefix=f"{ROOT}/studies/{{study_id}}/policies/{{policy_id}}/cases/{{case}}", tags=["studies"])


def _binary(media_type: str, description: str) -> dict[str, Any]:
    return {"description": description, "content": {media_type: {"schema": {"type": "string", "format": "binary"}}}}


def _responses(media_type: str, description: str) -> dict[int | str, dict[str, Any]]:
    return {
        200: _binary(media_type, description),
        304: {"description": "The client has it"},
        **problems(404, 422),
    }


@router.get(
    "/clip", summary="A clip to look at (MP4)", response_class=Response,
    openapi_extra={"parameters": [IF_NONE_MATCH, RANGE]},
    responses={206: _binary("video/mp4", "The range that was asked for"), **_responses("video/mp4", "H.264")},
)  # fmt: skip
async def clip(name: StudyName, policy_id: PolicyId, case: CaseNumber, backing: Backed, request: Request) -> Response:
    """Kept of the baseline and of the policies on the front."""

    def answer() -> Response:
        content = backing.artifacts.clip(name, backing.evaluation(name, policy_id).policy.key, case)
        return in_part(request, _kept(request, content, "video/mp4", name, policy_id, case, "mp4"))

    return await backing.few.run(answer)


@router.get(
    "/frames", summary="Its frames without loss (NumPy archive)", response_class=Response,
    openapi_extra={"parameters": [IF_NONE_MATCH]},
    responses=_responses("application/zip", "npz with `frames`, uint8 RGB [frames, height, width, 3]"),
)  # fmt: skip
async def frames(name: StudyName, policy_id: PolicyId, case: CaseNumber, backing: Backed, request: Request) -> Response:
    """Kept of the baseline and of the policies on the front."""

    def answer() -> Response:
        content = backing.artifacts.packed_frames(name, backing.evaluation(name, policy_id).policy.key, case)
        return _kept(request, content, "application/zip", name, policy_id, case, "npz")

    return await backing.few.run(answer)


@router.get(
    "/frames/{index}", summary="One frame without loss (PNG)", response_class=Response,
    openapi_extra={"parameters": [IF_NONE_MATCH]}, responses=_responses("image/png", "RGB, 8 bits a channel"),
)  # fmt: skip
async def frame(
    name: StudyName, policy_id: PolicyId, case: CaseNumber, index: FrameIndex, backing: Backed, request: Request
) -> Response:
    """As `frames`, one at a time; the study's `workload.frames` says how many there are."""

    def answer() -> Response:
        kept = backing.stills.frames(name, backing.evaluation(name, policy_id).policy.key, case)
        if kept is not None and index >= len(kept):
            raise NotFoundError(f"case {case} has {len(kept)} frames, counted from 0; there is no frame {index}")
        content = None if kept is None else png(kept, index)
        return _kept(request, content, "image/png", name, policy_id, case, f"{index}.png")

    return await backing.few.run(answer)


def _kept(
    request: Request, content: bytes | None, media_type: str, name: str, policy_id: str, case: int, suffix: str
) -> Response:
    if content is None:
        raise NotFoundError(f"of policy {policy_id} of study {name} nothing is kept for case {case}")
    return tagged(request, content, media_type, f"fa-tune-{study_id(name)}-{policy_id[:16]}-{case}.{suffix}")
