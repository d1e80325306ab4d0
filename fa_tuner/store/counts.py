"""How much of what is stored: figures for who watches the service."""

from __future__ import annotations

from typing import get_args

import sqlalchemy as sa

from fa_tuner.domain.job import STATES, JobState
from fa_tuner.domain.study import StudyState
from fa_tuner.store.database import Database
from fa_tuner.store.schema import jobs, studies


def studies_by_state(database: Database) -> dict[StudyState, int]:
    """Every state, also those of no study.

    Raises:
        StoreError: the database failed.
    """
    found = _by(database, studies.c.state)
    return {state: found.get(state, 0) for state in get_args(StudyState)}


def jobs_by_state(database: Database) -> dict[JobState, int]:
    """As `studies_by_state`."""
    found = _by(database, jobs.c.state)
    return {state: found.get(state, 0) for state in STATES}


def _by(database: Database, column: sa.Column[str]) -> dict[str, int]:
    with database.reading() as connection:
        return {row[0]: row[1] for row in connection.execute(sa.select(column, sa.func.count()).group_by(column))}
