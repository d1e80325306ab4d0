"""A study that somebody asked the service for: what workers take, and how it stands."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal, get_args

from fa_tuner.domain.study import study_id

# queued: waits for a worker. cancelling: a worker is at it and has been asked to stop.
JobState = Literal["queued", "running", "cancelling", "cancelled", "finished", "failed"]
STATES: tuple[JobState, ...] = get_args(JobState)
ENDED: tuple[JobState, ...] = ("cancelled", "finished", "failed")


@dataclass(frozen=True)
class Job:
    """`request` are the settings of `fa-tune run` that were asked for; `workers` may be at it at once. `attempts` were
    in vain since it last got on. `problem` is the type of the error that `reason` tells, "" where it is none."""

    study: str
    request: Mapping[str, Any]
    workers: int
    state: JobState
    created: datetime
    updated: datetime
    reason: str = ""
    problem: str = ""
    attempts: int = 0

    @property
    def id(self) -> str:
        """The study's."""
        return study_id(self.study)

    @property
    def ended(self) -> bool:
        return self.state in ENDED
