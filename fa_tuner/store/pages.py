"""Reading in pages, and what tells that nothing changed. The functions are the inside of `Store` methods."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import sqlalchemy as sa
from sqlalchemy import Connection

from fa_tuner.domain.policy import NATIVE
from fa_tuner.domain.study import Evaluation, Study
from fa_tuner.store import rows
from fa_tuner.store.database import Database
from fa_tuner.store.evaluations import EVALUATIONS, with_cases
from fa_tuner.store.schema import evaluations, studies, workloads
from fa_tuner.store.studies import STUDIES, newest_first, of_model, one

# dates as the driver has them: they are only compared
_STAMPS = (
    sa.select(
        studies.c.name,
        *(sa.type_coerce(column, sa.String) for column in studies.c if column is not studies.c.name),
    )
    .select_from(studies.join(workloads))
    .order_by(studies.c.id.desc())
)
# built once: the text of a statement that is there already need not be looked for
_BY = {
    "model": _STAMPS.where(workloads.c.model == sa.bindparam("wanted")),
    "name": _STAMPS.where(studies.c.name == sa.bindparam("wanted")),
}


class Stamp(NamedTuple):
    """Of one study: equal to a later one as long as neither the study nor any of its evaluations was changed between
    the two."""

    name: str
    version: tuple[Any, ...]


@dataclass(frozen=True)
class StudyPage:
    """Studies, newest first, each with the number of policies evaluated, the native one not among them. `last` is what
    the next page begins `before`; None on the last page."""

    studies: tuple[tuple[Study, int], ...]
    last: int | None


@dataclass(frozen=True)
class EvaluationPage:
    """Evaluations by their numbers. `last` is what the next page begins `after`; None on the last page."""

    evaluations: tuple[Evaluation, ...]
    last: int | None


def stamps(database: Database, by: Literal["model", "name"], wanted: str) -> tuple[Stamp, ...]:
    """Newest first; every writing of a figure moves `updated`, and all that is said of a study is in its row."""
    if not rows.is_text(wanted):
        return ()
    return tuple(_stamp(row) for row in database.glance(_BY[by], {"wanted": wanted}))


def stamped(connection: Connection, name: str) -> tuple[Stamp, Study]:
    """A study with the stamp of what it is just here: between two transactions it might become what it was before.

    Raises:
        NotFoundError: there is none of that name.
    """
    study = one(connection, name)
    (row,) = connection.execute(_BY["name"], {"wanted": name})
    return _stamp(row), study


def stamped_of(connection: Connection, model: str) -> list[tuple[Stamp, Study]]:
    """As `stamped`, of a model; newest first."""
    if not rows.is_text(model):
        return []
    found = map(_stamp, connection.execute(_BY["model"], {"wanted": model}))
    return list(zip(found, newest_first(connection, model), strict=True))


def _stamp(row: sa.Row[Any]) -> Stamp:
    return Stamp(row[0], tuple(row))


def study_page(
    connection: Connection, limit: int, before: int | None, model: str | None, state: str | None
) -> StudyPage:
    query = STUDIES.order_by(studies.c.id.desc()).limit(limit + 1)
    if model is not None:
        query = query.where(of_model(model))
    if state is not None:
        query = query.where(studies.c.state == state)
    if before is not None:
        query = query.where(studies.c.id < before)
    found = connection.execute(query).all()
    page = found[:limit]
    counted = (
        sa.select(evaluations.c.study_id, sa.func.count())
        .where(evaluations.c.study_id.in_([row.id for row in page]), evaluations.c.policy_key != NATIVE)
        .group_by(evaluations.c.study_id)
    )
    counts = {study: count for study, count in connection.execute(counted)} if page else {}
    last = page[-1].id if len(found) > limit else None
    return StudyPage(tuple((rows.study_of(row), counts.get(row.id, 0)) for row in page), last)


def evaluation_page(connection: Connection, study: int, limit: int, after: int) -> EvaluationPage:
    query = EVALUATIONS.where(evaluations.c.study_id == study, evaluations.c.number > after)
    found = connection.execute(query.limit(limit + 1)).all()
    page = found[:limit]
    mine = evaluations.c.id.in_([row.id for row in page])
    return EvaluationPage(
        tuple(with_cases(connection, page, mine)) if page else (), page[-1].number if len(found) > limit else None
    )
