"""`GET /studies/{id}/events`: what becomes of a study, as server-sent events, while it does."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import APIRouter, Header, Request
from fastapi.responses import StreamingResponse
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import Message, Receive, Scope, Send

from fa_tuner.domain.errors import FaTuneError, NotFoundError
from fa_tuner.domain.job import Job
from fa_tuner.domain.study import Evaluation, Study
from fa_tuner.report.documents import result_document
from fa_tuner.store.pages import Stamp

from .backing import Backed, Backing, StudyId
from .links import ROOT
from .problems import problems
from .security import GuardedApp
from .slow import sent

MOST_STREAMS = 64  # at once; each looks at the store once a second
LOOK_SECONDS = 1.0
STILL_SECONDS = 5.0  # between two looks at whether the caller may still listen
ALIVE_SECONDS = 15.0  # without an event, before a comment keeps proxies from closing the connection
Event = tuple[str, int | None, dict[str, Any]]  # its name, its id, its data

router = APIRouter(prefix=f"{ROOT}/studies", tags=["studies"])
EXAMPLE = """event: progress
data: {"state": "running", "reason": "", "evaluated": 3, "target": 8, "front": 2}

"""


@router.get(
    "/{study_id}/events", summary="Progress, new front points, and its end", response_class=StreamingResponse,
    responses={
        200: {
            "description": "Server-sent events",
            "content": {"text/event-stream": {"schema": {"type": "string"}, "example": EXAMPLE}},
        },
        **problems(404, 422, 429),
    },
)  # fmt: skip
async def events(
    study_id: StudyId, request: Request, backing: Backed,
    last_event_id: Annotated[
        str | None, Header(pattern="^[0-9]{1,18}$", description="of the last event that the client has")
    ] = None,
) -> StreamingResponse:  # fmt: skip
    """`progress` at once and at each change: `state`, `reason`, `evaluated`, `target` and the number of points on the
    `front`. `front`: a point that came onto the front, as `/front` has it; at first each that is there, or, with
    Last-Event-ID, each that was measured later. `end`: `state` and `reason`; nothing follows."""
    app: GuardedApp = request.app
    watch = Watch(backing, study_id, -1 if last_event_id is None else int(last_event_id))
    first = await run_in_threadpool(watch.look)  # whatever is wrong is still an answer of its own
    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    return _Counted(_stream(app, request, watch, first), media_type="text/event-stream", headers=headers)


class _Counted(StreamingResponse):
    """Takes one of the places for as long as it is answered and the client takes the answer; nothing can come between
    its look for a place and its taking it."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        app: GuardedApp = scope["app"]
        if app.streams >= MOST_STREAMS:
            raise HTTPException(
                429, f"{MOST_STREAMS} clients listen already; ask for the study itself", {"Retry-After": "10"}
            )

        async def timely(message: Message) -> None:
            try:
                await sent(send, message)
            except TimeoutError:
                raise ClientDisconnect from None

        app.streams += 1
        try:
            await super().__call__(scope, receive, timely)
        except ClientDisconnect:
            pass  # the server closes the connection, since the answer has no end
        finally:
            app.streams -= 1


async def _stream(app: GuardedApp, request: Request, watch: Watch, found: list[Event]) -> AsyncIterator[str]:
    """Ends with the study, with the service, and with the caller's right to listen."""
    said = checked = time.monotonic()
    yield "retry: 2000\n\n"
    while True:
        for event in found:
            yield _text(*event)
            said = time.monotonic()
        if watch.ended or app.closing:
            return
        if time.monotonic() - said >= ALIVE_SECONDS:
            yield ": alive\n\n"
            said = time.monotonic()
        await asyncio.sleep(LOOK_SECONDS)
        try:
            if time.monotonic() - checked >= STILL_SECONDS:
                checked = time.monotonic()
                if not await run_in_threadpool(app.access.still, request.state.caller):
                    return
            found = await run_in_threadpool(watch.look)
        except FaTuneError:
            return  # the client asks again, and is told what is wrong


class Watch:
    """What is new of a study since the last look."""

    def __init__(self, backing: Backing, study_id: str, after: int) -> None:
        self.ended = False
        self._backing, self._id, self._after = backing, study_id, after
        self._stamp: Stamp | None = None
        self._progress: dict[str, Any] = {}
        self._front: dict[str, Any] = {}
        self._told: set[str] = set()

    def look(self) -> list[Event]:
        """
        Raises:
            NotFoundError: there is neither a study nor a job of that id.
        """
        job = self._backing.jobs.find(self._id)
        study, evaluations = self._study(job)
        found: list[Event] = []
        state, reason = _standing(job, study)
        if study is not None:
            found += self._points(result_document(study, evaluations) if evaluations is not None else None)
        progress = {
            "state": state, "reason": reason, "evaluated": self._front.get("evaluated", 0),
            "target": self._front.get("target", 0), "front": len(self._front.get("front", ())),
        }  # fmt: skip
        if progress != self._progress:
            self._progress = progress
            found.append(("progress", None, progress))
        self.ended = job.ended if job is not None else state != "running"
        return [*found, ("end", None, {"state": state, "reason": reason})] if self.ended else found

    def _study(self, job: Job | None) -> tuple[Study | None, list[Evaluation] | None]:
        """As it is stored; its evaluations only where something changed, and nothing before a worker has begun it."""
        try:
            name = self._backing.name_of(self._id)
        except NotFoundError:
            if job is None:
                raise
            return None, None
        stamp = self._backing.store.stamp(name)
        if stamp == self._stamp:
            return self._backing.store.study(name), None
        study, evaluations = self._backing.memory.study(name)
        self._stamp = stamp
        return study, evaluations

    def _points(self, document: dict[str, Any] | None) -> list[Event]:
        if document is None:
            return []
        self._front = document
        new = [point for point in document["front"] if point["policy"]["id"] not in self._told]
        self._told.update(point["policy"]["id"] for point in new)
        later = [point for point in new if point["number"] > self._after]
        return [("front", point["number"], point) for point in sorted(later, key=lambda point: point["number"])]


def _standing(job: Job | None, study: Study | None) -> tuple[str, str]:
    """The job's state, which knows of waiting and of being cancelled; what is unproven stays that."""
    if job is None or (study is not None and study.state == "unproven"):
        assert study is not None
        return study.state, study.reason
    return job.state, job.reason


def _text(name: str, id: int | None, data: dict[str, Any]) -> str:
    head = f"event: {name}\n" if id is None else f"event: {name}\nid: {id}\n"
    return f"{head}data: {json.dumps(data, allow_nan=False)}\n\n"
