"""A study's evaluations as rows, each with its cases. The functions are the inside of `Store` methods, each within the
transaction of one; `study` is the study's row."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection, Row

from fa_tuner.domain.errors import ConflictError, NotFoundError
from fa_tuner.domain.measurement import CaseQuality
from fa_tuner.domain.study import Evaluation
from fa_tuner.store import rows, studies
from fa_tuner.store.rows import Values
from fa_tuner.store.schema import cases, evaluations

MOST_BY_ID = 100  # evaluations that are looked for one by one

EVALUATIONS = sa.select(evaluations.c.id, *(evaluations.c[name] for name in rows.EVALUATION)).order_by(
    evaluations.c.number
)
_CASES = (
    sa.select(cases.c.evaluation_id, cases.c.kind, *(cases.c[name] for name in rows.CASE))
    .join(evaluations)
    .order_by(cases.c.position)
)

# what of an evaluation can change later
_LATENCIES = sa.select(evaluations.c.id, *(evaluations.c[name] for name in rows.LATENCY)).order_by(evaluations.c.number)
_HELD_OUT = _CASES.where(cases.c.kind == "holdout")


@dataclass(frozen=True)
class Reading:
    """The evaluations of a study at one moment, by the ids of their rows. `study` tells the study from a later one of
    the same name."""

    study: tuple[int, datetime]
    by_id: dict[int, Evaluation]

    @property
    def evaluations(self) -> list[Evaluation]:
        return list(self.by_id.values())


def read(connection: Connection, name: str, before: Reading | None) -> Reading:
    """All, by their numbers. Those of `before` that are as they were are taken from there: of them only what can change
    is read.

    Raises:
        NotFoundError: there is no such study.
    """
    study = studies.identity(connection, name)
    mine = evaluations.c.study_id == study[0]
    if before is None or before.study != study or not before.by_id:
        found = connection.execute(EVALUATIONS.where(mine)).all()
        every = with_cases(connection, found, mine) if found else []
        return Reading(study, {row[0]: evaluation for row, evaluation in zip(found, every, strict=True)})
    held_out: dict[int, list[CaseQuality]] = defaultdict(list)
    for row in connection.execute(_HELD_OUT.where(mine)):
        held_out[row[0]].append(rows.case_of(row[2:]))
    as_now = {
        row[0]: known if (known := before.by_id.get(row[0])) and _is(known, row[1:], held_out.get(row[0], ())) else None
        for row in connection.execute(_LATENCIES.where(mine))
    }
    changed = [key for key, known in as_now.items() if known is None]
    if changed:
        which = mine & evaluations.c.id.in_(changed) if len(changed) <= MOST_BY_ID else mine
        found = connection.execute(EVALUATIONS.where(which)).all()
        fresh = zip(found, with_cases(connection, found, which), strict=True)
        as_now |= {row[0]: evaluation for row, evaluation in fresh}
    return Reading(study, {key: evaluation for key, evaluation in as_now.items() if evaluation is not None})


def _is(known: Evaluation, latency: Sequence[Any], held_out: Sequence[CaseQuality]) -> bool:
    """Whether the evaluation has this latency and these held-out cases."""
    measurement = known.measurement
    if measurement is None:
        return latency[0] is None
    return rows.latency_tuple(measurement.latency) == tuple(latency) and measurement.holdout == tuple(held_out)


def add(connection: Connection, name: str, values: Values, case_values: list[Values]) -> int:
    """The id of the study's row, which is locked, so nobody comes between check and insert.

    Raises:
        NotFoundError: there is no such study.
        ConflictError: the study has an evaluation of that policy, or of that number.
    """
    study = studies.touch(connection, name)
    same_policy = evaluations.c.policy_digest == values["policy_digest"]
    taken = sa.select(same_policy).where(
        evaluations.c.study_id == study, same_policy | (evaluations.c.number == values["number"])
    )
    if conflicts := connection.scalars(taken).all():
        what = f"policy {values['policy_key']}" if any(conflicts) else f"number {values['number']}"
        raise ConflictError(f"study {name!r} already has an evaluation of {what}; each is stored once")
    stored = values | {"study_id": study, "created": datetime.now(UTC)}
    _add_cases(connection, rows.inserted(connection, evaluations, stored), case_values)
    return study


def of_study(connection: Connection, study: int) -> list[Evaluation]:
    """All, by their numbers."""
    return _found(connection, evaluations.c.study_id == study)


def of_digest(connection: Connection, study: int, digest: str) -> Evaluation | None:
    """That of the policy whose key has this digest."""
    found = _found(connection, (evaluations.c.study_id == study) & (evaluations.c.policy_digest == digest))
    return found[0] if found else None


def with_cases(connection: Connection, found: Sequence[Row[Any]], where: sa.ColumnElement[bool]) -> list[Evaluation]:
    """The evaluations that these rows of `EVALUATIONS` say; `where` holds for them alone."""
    by_kind: dict[tuple[int, str], list[CaseQuality]] = defaultdict(list)
    for row in connection.execute(_CASES.where(where)):
        by_kind[row[0], row[1]].append(rows.case_of(row[2:]))
    return [
        rows.evaluation_of(row[1:], by_kind.get((row[0], "search"), ()), by_kind.get((row[0], "holdout"), ()))
        for row in found
    ]


def count(connection: Connection, study: int) -> int:
    query = sa.select(sa.func.count()).select_from(evaluations).where(evaluations.c.study_id == study)
    return int(connection.scalar(query) or 0)


def any_checked(connection: Connection, study: int) -> bool:
    """Whether any was run on held-out prompts."""
    mine = evaluations.c.study_id == study
    query = sa.select(cases.c.evaluation_id).join(evaluations).where(mine, cases.c.kind == "holdout").limit(1)
    return connection.scalar(query) is not None


def set_holdout(connection: Connection, name: str, policy_key: str, case_values: list[Values]) -> None:
    """
    Raises:
        NotFoundError: as `_measured`.
    """
    key = _measured(connection, name, policy_key)
    connection.execute(cases.delete().where(cases.c.evaluation_id == key, cases.c.kind == "holdout"))
    _add_cases(connection, key, case_values)


def set_latency(connection: Connection, name: str, policy_key: str, values: Values) -> None:
    """
    Raises:
        NotFoundError: as `_measured`.
    """
    key = _measured(connection, name, policy_key)
    connection.execute(evaluations.update().where(evaluations.c.id == key).values(values))


def _found(connection: Connection, where: sa.ColumnElement[bool]) -> list[Evaluation]:
    """By their numbers; two queries, however many there are."""
    found = connection.execute(EVALUATIONS.where(where)).all()
    return with_cases(connection, found, where) if found else []


def _measured(connection: Connection, name: str, policy_key: str) -> int:
    """The id of the policy's evaluation; locks the study's row.

    Raises:
        NotFoundError: there is no such study, or no measurement of that policy in it.
    """
    query = sa.select(evaluations.c.id).where(
        evaluations.c.study_id == studies.touch(connection, name),
        evaluations.c.policy_digest == rows.digest(policy_key),
        evaluations.c.latency_relative.is_not(None),
    )
    if (key := connection.scalar(query)) is None:
        raise NotFoundError(f"study {name!r} holds no measurement of policy {policy_key[:80]!r}; evaluate it first")
    return int(key)


def _add_cases(connection: Connection, evaluation: int, values: list[Values]) -> None:
    if values:
        connection.execute(cases.insert(), [{**value, "evaluation_id": evaluation} for value in values])
