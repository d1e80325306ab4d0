"""Studies as rows, with the workloads and environments that they share. The functions are the inside of `Store`
methods, each within the transaction of one."""

from __future__ import annotations

from datetime import UTC, datetime

import sqlalchemy as sa
from sqlalchemy import Connection

from fa_tuner.domain.errors import ConflictError, NotFoundError
from fa_tuner.domain.study import Study
from fa_tuner.store import rows
from fa_tuner.store.failures import shown
from fa_tuner.store.rows import Values
from fa_tuner.store.schema import environments, studies, workloads

STUDIES = sa.select(
    studies, workloads.c.document.label("workload"), environments.c.document.label("environment")
).select_from(studies.join(workloads).join(environments))


def add(connection: Connection, values: Values, workload: Values, environment: Values) -> None:
    """
    Raises:
        ConflictError: the name is taken.
    """
    name = values["name"]
    if connection.scalar(sa.select(studies.c.id).where(studies.c.name == name)) is not None:
        raise ConflictError(
            f"a study named {name!r} exists in {_place(connection)}; choose another name, or resume that one"
        )
    shared = {
        "workload_id": _shared(connection, workloads, workload),
        "environment_id": _shared(connection, environments, environment),
    }
    connection.execute(studies.insert().values(values | shared))


def one(connection: Connection, name: str) -> Study:
    """
    Raises:
        NotFoundError: there is none of that name.
    """
    row = connection.execute(STUDIES.where(studies.c.name == name)).one_or_none() if rows.is_name(name) else None
    if row is None:
        raise missing(connection, name)
    return rows.study_of(row)


def newest_first(connection: Connection, model: str | None) -> list[Study]:
    query = STUDIES.order_by(studies.c.id.desc())
    if model is not None:
        query = query.where(of_model(model))
    return [rows.study_of(row) for row in connection.execute(query)]


def of_model(model: str) -> sa.ColumnElement[bool]:
    """Holds for no study where a database could not keep the text."""
    return workloads.c.model == model if rows.is_text(model) else sa.false()


def models(connection: Connection) -> list[str]:
    query = sa.select(workloads.c.model).where(sa.exists().where(studies.c.workload_id == workloads.c.id))
    return sorted(set(connection.scalars(query)))


def name_of(connection: Connection, key: str) -> str:
    """
    Raises:
        NotFoundError: there is no study of that id.
    """
    query = sa.select(studies.c.name).where(studies.c.study_key == key)
    name = connection.scalar(query) if rows.is_text(key) else None
    if name is None:
        raise NotFoundError(f"there is no study of id {key[:40]!r} in {_place(connection)}")
    return str(name)


def with_baseline(connection: Connection, workload_fingerprint: str, environment_fingerprint: str) -> str | None:
    """The name of the newest study of both that has a baseline."""
    query = (
        sa.select(studies.c.name)
        .select_from(studies.join(workloads).join(environments))
        .where(workloads.c.fingerprint == workload_fingerprint, environments.c.fingerprint == environment_fingerprint)
        .where(studies.c.noise_floor_db.is_not(None))
        .order_by(studies.c.id.desc())
        .limit(1)
    )
    return connection.scalar(query)


def delete(connection: Connection, name: str) -> None:
    """With its workload and environment where no other study has them.

    Raises:
        NotFoundError: there is no such study.
    """
    deleted = studies.delete().where(studies.c.id == id_of(connection, name))
    row = connection.execute(deleted.returning(studies.c.workload_id, studies.c.environment_id)).one()
    for table, column, key in (
        (workloads, studies.c.workload_id, row.workload_id),
        (environments, studies.c.environment_id, row.environment_id),
    ):
        used = sa.exists().where(column == key)
        connection.execute(table.delete().where(table.c.id == key, ~used))


def touch(connection: Connection, name: str, values: Values | None = None, measured: bool = True) -> int:
    """Change the study's row, which locks it until the transaction ends; its id. `updated` is the date of the last
    figure: what is only said of a study does not move it.

    Raises:
        NotFoundError: there is no such study.
    """
    when = datetime.now(UTC) if measured else studies.c.updated
    update = studies.update().where(studies.c.name == name).values({**(values or {}), "updated": when})
    key = connection.scalar(update.returning(studies.c.id)) if rows.is_name(name) else None
    if key is None:
        raise missing(connection, name)
    return int(key)


def id_of(connection: Connection, name: str) -> int:
    """
    Raises:
        NotFoundError: there is no such study.
    """
    query = sa.select(studies.c.id).where(studies.c.name == name)
    key = connection.scalar(query) if rows.is_name(name) else None
    if key is None:
        raise missing(connection, name)
    return int(key)


def identity(connection: Connection, name: str) -> tuple[int, datetime]:
    """The id, and when it was created: SQLite gives the id of a deleted study to another.

    Raises:
        NotFoundError: there is no such study.
    """
    query = sa.select(studies.c.id, studies.c.created).where(studies.c.name == name)
    row = connection.execute(query).one_or_none() if rows.is_name(name) else None
    if row is None:
        raise missing(connection, name)
    return row[0], row[1]


def missing(connection: Connection, name: str) -> NotFoundError:
    return NotFoundError(
        f"there is no study named {name[:80]!r} in {_place(connection)}; `fa-tune studies` lists what is stored"
    )


def _shared(connection: Connection, table: sa.Table, values: Values) -> int:
    """The id of the row of that fingerprint, added where there is none."""
    known = connection.scalar(sa.select(table.c.id).where(table.c.fingerprint == values["fingerprint"]))
    return rows.inserted(connection, table, values) if known is None else int(known)


def _place(connection: Connection) -> str:
    return shown(connection.engine.url)
