"""How much of what is stored: figures for who watches the service."""

from __future__ import annotations

from typing import get_args

import sqlalchemy as sa

from fa_tuner.domain.study import StudyState
from fa_tuner.store.database import Database
from fa_tuner.store.schema import studies


def studies_by_state(database: Database) -> dict[StudyState, int]:
    """Every state, also those of no study.

    Raises:
        StoreError: the database failed.
    """
    query = sa.select(studies.c.state, sa.func.count()).group_by(studies.c.state)
    with database.reading() as connection:
        found = {row[0]: row[1] for row in connection.execute(query)}
    return {state: found.get(state, 0) for state in get_args(StudyState)}
