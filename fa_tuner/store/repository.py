"""The store: studies and their evaluations, put in and taken out as domain values."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from types import TracebackType
from typing import Self

import sqlalchemy as sa
from sqlalchemy import Connection

from fa_tuner.domain.errors import ConflictError, NotFoundError
from fa_tuner.domain.measurement import CaseQuality, Latency, Requirement
from fa_tuner.domain.study import Baseline, Evaluation, Study, StudySpec, StudyState, study_id
from fa_tuner.store import claims, pages, rows
from fa_tuner.store.claims import Worker
from fa_tuner.store.database import Database
from fa_tuner.store.pages import STUDIES, EvaluationPage, Stamp, StudyPage, evaluations_of
from fa_tuner.store.rows import FrontSnapshot, Values
from fa_tuner.store.schema import cases, environments, evaluations, fronts, studies, workloads


class Store:
    """Studies in one database.

    What is returned is a copy, equal to what was put in; times are UTC. Every method may raise StoreError: the database
    failed, and then nothing was written. Values that cannot be kept (infinity, NaN, a NUL in a prompt) raise ValueError
    before anything is written. Safe to use from several threads and processes; a fork must open its own.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    @classmethod
    def open(cls, url: str, timeout_seconds: float = 30.0) -> Self:
        """Open `sqlite:///PATH` or `postgresql://...`; a new or older database is migrated first. A write waits
        `timeout_seconds` for another process's.

        Raises:
            StoreError: the URL, the file, the server or its schema cannot be used, and what to do.
        """
        return cls(Database.open(url, timeout_seconds))

    def close(self) -> None:
        """Give the connections back. Safe to call twice."""
        self._database.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def url(self) -> str:
        """Where the store is, without its password."""
        return self._database.shown

    # --- studies --------------------------------------------------------------------------------------------------

    def create_study(self, spec: StudySpec, target: int) -> Study:
        """Add a running study that wants `target` evaluations.

        Raises:
            ConflictError: the name is taken.
        """
        now = datetime.now(UTC)
        values = rows.study_values(spec) | rows.state_values("running", "")
        values |= {"target": rows.whole("target", target), "created": now, "updated": now}
        workload, environment = rows.workload_values(spec.workload), rows.environment_values(spec.environment)
        with self._database.writing(serial=True) as connection:
            if connection.scalar(sa.select(studies.c.id).where(studies.c.name == spec.name)) is not None:
                raise ConflictError(
                    f"a study named {spec.name!r} exists in {self.url}; choose another name, or resume that one"
                )
            values["workload_id"] = _shared(connection, workloads, workload)
            values["environment_id"] = _shared(connection, environments, environment)
            connection.execute(studies.insert().values(values))
        return self.study(spec.name)

    def study(self, name: str) -> Study:
        """One study.

        Raises:
            NotFoundError: there is none of that name.
        """
        if rows.is_name(name):
            with self._database.reading() as connection:
                if (row := connection.execute(STUDIES.where(studies.c.name == name)).one_or_none()) is not None:
                    return rows.study_of(row)
        raise self._no_study(name)

    def studies(self, model: str | None = None) -> list[Study]:
        """All studies, or those of one model; newest first."""
        query = STUDIES.order_by(studies.c.id.desc())
        if model is not None:
            query = query.where(pages.of_model(model))
        with self._database.reading() as connection:
            return [rows.study_of(row) for row in connection.execute(query)]

    def study_page(
        self, limit: int, before: int | None = None, model: str | None = None, state: str | None = None
    ) -> StudyPage:
        """Up to `limit` studies, newest first, beginning behind the `last` of the page `before`. A study that is added
        meanwhile moves none to another page."""
        with self._database.reading() as connection:
            return pages.study_page(connection, limit, before, model, state)

    def models(self) -> list[str]:
        """Of which there are studies, in alphabetical order."""
        query = sa.select(workloads.c.model).where(sa.exists().where(studies.c.workload_id == workloads.c.id))
        with self._database.reading() as connection:
            return sorted(set(connection.scalars(query)))

    def name_of(self, key: str) -> str:
        """The name of the study whose `study_id` is `key`. Reads all names.

        Raises:
            NotFoundError: there is none.
        """
        with self._database.reading() as connection:
            for name in connection.scalars(sa.select(studies.c.name).order_by(studies.c.id.desc())):
                if study_id(name) == key:
                    return str(name)
        raise NotFoundError(f"there is no study of id {key[:40]!r} in {self.url}")

    def stamp(self, name: str) -> Stamp:
        """The study's stamp.

        Raises:
            NotFoundError: there is no such study.
        """
        if rows.is_name(name):
            with self._database.reading() as connection:
                if found := pages.stamps(connection, "name", name):
                    return found[0]
        raise self._no_study(name)

    def stamps(self, model: str) -> tuple[Stamp, ...]:
        """Of the studies of a model, newest first."""
        with self._database.reading() as connection:
            return pages.stamps(connection, "model", model)

    def set_state(self, name: str, state: StudyState, reason: str = "") -> None:
        """Say how the study stands, and why.

        Raises:
            NotFoundError: there is no such study.
        """
        self._update(name, rows.state_values(state, reason))

    def set_target(self, name: str, target: int) -> None:
        """Say how many evaluations are wanted in all.

        Raises:
            NotFoundError: there is no such study.
        """
        self._update(name, {"target": rows.whole("target", target)})

    def set_requirement(self, name: str, requirement: Requirement) -> None:
        """Ask something else of the study's policies.

        Raises:
            NotFoundError: there is no such study.
        """
        self._update(name, {"requirement": rows.requirement_text(requirement)})

    def set_baseline(self, name: str, baseline: Baseline) -> None:
        """Keep what the native runs gave.

        Raises:
            NotFoundError: there is no such study.
        """
        self._update(name, rows.baseline_values(baseline))

    def find_baseline(self, workload_fingerprint: str, environment_fingerprint: str) -> str | None:
        """The name of the newest study of the same workload and environment that has a baseline."""
        query = (
            sa.select(studies.c.name)
            .select_from(studies.join(workloads).join(environments))
            .where(
                workloads.c.fingerprint == workload_fingerprint, environments.c.fingerprint == environment_fingerprint
            )
            .where(studies.c.noise_floor_db.is_not(None))
            .order_by(studies.c.id.desc())
            .limit(1)
        )
        with self._database.reading() as connection:
            return connection.scalar(query)

    def delete_study(self, name: str) -> None:
        """Delete the study with all that belongs to it, and its prompts where no other study has them.

        Raises:
            NotFoundError: there is no such study.
        """
        with self._database.writing(serial=True) as connection:
            deleted = studies.delete().where(studies.c.id == self._id(connection, name))
            row = connection.execute(deleted.returning(studies.c.workload_id, studies.c.environment_id)).one()
            for table, column, key in (
                (workloads, studies.c.workload_id, row.workload_id),
                (environments, studies.c.environment_id, row.environment_id),
            ):
                used = sa.exists().where(column == key)
                connection.execute(table.delete().where(table.c.id == key, ~used))

    # --- evaluations ----------------------------------------------------------------------------------------------

    def add_evaluation(self, name: str, evaluation: Evaluation) -> None:
        """Keep an evaluation with all its cases, wholly or not at all; the claim on its policy ends with it.

        Raises:
            NotFoundError: there is no such study.
            ConflictError: the study has an evaluation of that policy, or of that number.
        """
        values = rows.evaluation_values(evaluation)
        measurement = evaluation.measurement
        found = [] if measurement is None else rows.case_values("search", measurement.cases)
        found += [] if measurement is None else rows.case_values("holdout", measurement.holdout)
        with self._database.writing() as connection:
            study = self._touch(connection, name)  # locks the study's row, so nobody comes between check and insert
            same_policy = evaluations.c.policy_digest == values["policy_digest"]
            taken = sa.select(same_policy).where(
                evaluations.c.study_id == study, same_policy | (evaluations.c.number == values["number"])
            )
            if conflicts := connection.scalars(taken).all():
                what = f"policy {evaluation.policy.key}" if any(conflicts) else f"number {evaluation.number}"
                raise ConflictError(f"study {name!r} already has an evaluation of {what}; each is stored once")
            values |= {"study_id": study, "created": datetime.now(UTC)}
            _add_cases(connection, _inserted(connection, evaluations, values), found)
            claims.drop(connection, study, evaluation.policy.key)

    def evaluation(self, name: str, policy_key: str) -> Evaluation | None:
        """The evaluation of one policy (`SkipPolicy.key`), if it was made.

        Raises:
            NotFoundError: there is no such study.
        """
        return self.evaluation_of_digest(name, rows.digest(policy_key))

    def evaluations(self, name: str) -> list[Evaluation]:
        """All evaluations in the order of their numbers.

        Raises:
            NotFoundError: there is no such study.
        """
        with self._database.reading() as connection:
            return evaluations_of(connection, evaluations.c.study_id == self._id(connection, name))

    def evaluation_of_digest(self, name: str, digest: str) -> Evaluation | None:
        """The evaluation of the policy whose key has this digest (`rows.digest`), if it was made.

        Raises:
            NotFoundError: there is no such study.
        """
        with self._database.reading() as connection:
            mine = evaluations.c.study_id == self._id(connection, name)
            found = evaluations_of(connection, mine & (evaluations.c.policy_digest == digest))
        return found[0] if found else None

    def evaluation_page(self, name: str, limit: int, after: int = -1) -> EvaluationPage:
        """Up to `limit` evaluations in the order of their numbers, beginning with the first number above `after`.

        Raises:
            NotFoundError: there is no such study.
        """
        with self._database.reading() as connection:
            return pages.evaluation_page(connection, self._id(connection, name), limit, after)

    def is_checked(self, name: str) -> bool:
        """Whether any of its policies was run on held-out prompts.

        Raises:
            NotFoundError: there is no such study.
        """
        with self._database.reading() as connection:
            mine = evaluations.c.study_id == self._id(connection, name)
            query = sa.select(cases.c.evaluation_id).join(evaluations).where(mine, cases.c.kind == "holdout").limit(1)
            return connection.scalar(query) is not None

    def count(self, name: str) -> int:
        """How many evaluations there are, failed ones too.

        Raises:
            NotFoundError: there is no such study.
        """
        with self._database.reading() as connection:
            return _count(connection, self._id(connection, name))

    def set_holdout(self, name: str, policy_key: str, qualities: Iterable[CaseQuality]) -> None:
        """Keep what the held-out prompts gave, in place of what was there.

        Raises:
            NotFoundError: there is no such study, or no measurement of that policy in it.
        """
        values = rows.case_values("holdout", qualities)
        with self._database.writing() as connection:
            key = self._measured(connection, name, policy_key)
            connection.execute(cases.delete().where(cases.c.evaluation_id == key, cases.c.kind == "holdout"))
            _add_cases(connection, key, values)

    def set_latency(self, name: str, policy_key: str, latency: Latency) -> None:
        """Keep a better latency in place of what was there.

        Raises:
            NotFoundError: there is no such study, or no measurement of that policy in it.
        """
        values = rows.latency_values(latency)
        with self._database.writing() as connection:
            key = self._measured(connection, name, policy_key)
            connection.execute(evaluations.update().where(evaluations.c.id == key).values(values))

    def set_latencies(self, name: str, profile: str | None, latencies: Mapping[str, Latency]) -> None:
        """Give the study's policies, by key, other latencies, all or none: those that another device profile projects,
        or, without a profile, those that are fitted anew.

        Raises:
            NotFoundError: there is no such study, or no measurement of one of these policies in it.
        """
        with self._database.writing() as connection:
            self._touch(connection, name, {"latency_profile": profile})
            for policy_key, latency in latencies.items():
                key = self._measured(connection, name, policy_key)
                update = evaluations.update().where(evaluations.c.id == key)
                connection.execute(update.values(rows.latency_values(latency)))

    # --- claims ---------------------------------------------------------------------------------------------------

    def claim(self, name: str, policy_key: str, worker: Worker) -> bool:
        """Ask to run a policy that no other worker runs meanwhile. True where the claim is now this worker's, also if
        it was before; False where the policy has an evaluation, or another living worker holds it.

        Raises:
            NotFoundError: there is no such study.
        """
        with self._database.writing() as connection:
            return claims.take(connection, self._touch(connection, name, measured=False), policy_key, worker)

    # The next two are serial: one that updates several rows and one that deletes them could wait for each other.

    def beat(self, worker: Worker) -> None:
        """Say that the worker lives, which renews all its claims for `claims.LEASE_SECONDS`."""
        with self._database.writing(serial=True, fenced=False) as connection:
            claims.renew(connection, worker)

    def release(self, name: str, worker: Worker, policy_key: str | None = None) -> None:
        """Give back the worker's claims in this study, or that on one policy; those of others stay.

        Raises:
            NotFoundError: there is no such study.
        """
        with self._database.writing(serial=True, fenced=False) as connection:
            claims.drop(connection, self._id(connection, name), policy_key, worker)

    def claimed(self, name: str) -> dict[str, Worker]:
        """Which policies are being run, by key, and by whom; stale claims are left out.

        Raises:
            NotFoundError: there is no such study.
        """
        with self._database.reading() as connection:
            return claims.living(connection, self._id(connection, name))

    # --- fronts ---------------------------------------------------------------------------------------------------

    def add_front(self, name: str, policy_keys: Sequence[str], hypervolume: float) -> None:
        """Keep the front as it is after the evaluations so far.

        Raises:
            NotFoundError: there is no such study.
        """
        values = rows.front_values(policy_keys, hypervolume)
        with self._database.writing() as connection:
            study = self._touch(connection, name, measured=False)
            values |= {"study_id": study, "evaluations": _count(connection, study), "created": datetime.now(UTC)}
            connection.execute(fronts.insert().values(values))

    def fronts(self, name: str) -> list[FrontSnapshot]:
        """The fronts in the order in which they were kept.

        Raises:
            NotFoundError: there is no such study.
        """
        with self._database.reading() as connection:
            query = sa.select(fronts).where(fronts.c.study_id == self._id(connection, name)).order_by(fronts.c.id)
            return [rows.front_of(row) for row in connection.execute(query)]

    # --- shared ---------------------------------------------------------------------------------------------------

    def _update(self, name: str, values: Values) -> None:
        with self._database.writing() as connection:
            self._touch(connection, name, values, measured=False)

    def _touch(self, connection: Connection, name: str, values: Values | None = None, measured: bool = True) -> int:
        """Change the study's row, which locks it until the transaction ends; its id. `updated` is the date of the last
        figure: what is only said of a study does not move it."""
        when = datetime.now(UTC) if measured else studies.c.updated
        update = studies.update().where(studies.c.name == name).values({**(values or {}), "updated": when})
        key = connection.scalar(update.returning(studies.c.id)) if rows.is_name(name) else None
        if key is None:
            raise self._no_study(name)
        return int(key)

    def _id(self, connection: Connection, name: str) -> int:
        query = sa.select(studies.c.id).where(studies.c.name == name)
        key = connection.scalar(query) if rows.is_name(name) else None
        if key is None:
            raise self._no_study(name)
        return int(key)

    def _measured(self, connection: Connection, name: str, policy_key: str) -> int:
        """The id of the policy's evaluation, if that has a measurement; locks the study's row."""
        query = sa.select(evaluations.c.id).where(
            evaluations.c.study_id == self._touch(connection, name),
            evaluations.c.policy_digest == rows.digest(policy_key),
            evaluations.c.latency_relative.is_not(None),
        )
        if (key := connection.scalar(query)) is None:
            raise NotFoundError(f"study {name!r} holds no measurement of policy {policy_key[:80]!r}; evaluate it first")
        return int(key)

    def _no_study(self, name: str) -> NotFoundError:
        return NotFoundError(
            f"there is no study named {name[:80]!r} in {self.url}; `fa-tune studies` lists what is stored"
        )


def _shared(connection: Connection, table: sa.Table, values: Values) -> int:
    """The id of the row of that fingerprint, added where there is none."""
    known = connection.scalar(sa.select(table.c.id).where(table.c.fingerprint == values["fingerprint"]))
    return _inserted(connection, table, values) if known is None else int(known)


def _inserted(connection: Connection, table: sa.Table, values: Values) -> int:
    """The id of a new row."""
    key = connection.execute(table.insert().values(values)).inserted_primary_key
    assert key is not None
    return int(key[0])


def _count(connection: Connection, study: int) -> int:
    query = sa.select(sa.func.count()).select_from(evaluations).where(evaluations.c.study_id == study)
    return int(connection.scalar(query) or 0)


def _add_cases(connection: Connection, evaluation: int, values: list[Values]) -> None:
    if values:
        connection.execute(cases.insert(), [{**value, "evaluation_id": evaluation} for value in values])
