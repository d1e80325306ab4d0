"""The store: studies and their evaluations, put in and taken out as domain values."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from types import TracebackType
from typing import Self

import sqlalchemy as sa

from fa_tuner.domain.measurement import CaseQuality, Latency, Requirement
from fa_tuner.domain.study import Baseline, Evaluation, Study, StudySpec, StudyState
from fa_tuner.store import claims, evaluations, pages, rows, studies
from fa_tuner.store.claims import Worker
from fa_tuner.store.database import Database
from fa_tuner.store.evaluations import Reading
from fa_tuner.store.pages import EvaluationPage, Stamp, StudyPage
from fa_tuner.store.rows import FrontSnapshot, Values
from fa_tuner.store.schema import fronts


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
            studies.add(connection, values, workload, environment)
        return self.study(spec.name)

    def study(self, name: str) -> Study:
        """One study.

        Raises:
            NotFoundError: there is none of that name.
        """
        with self._database.reading() as connection:
            return studies.one(connection, name)

    def studies(self, model: str | None = None) -> list[Study]:
        """All studies, or those of one model; newest first."""
        with self._database.reading() as connection:
            return studies.newest_first(connection, model)

    def study_page(
        self, limit: int, before: int | None = None, model: str | None = None, state: str | None = None
    ) -> StudyPage:
        """Up to `limit` studies, newest first, beginning behind the `last` of the page `before`. A study that is added
        meanwhile moves none to another page."""
        with self._database.reading() as connection:
            return pages.study_page(connection, limit, before, model, state)

    def models(self) -> list[str]:
        """Of which there are studies, in alphabetical order."""
        with self._database.reading() as connection:
            return studies.models(connection)

    def name_of(self, key: str) -> str:
        """The name of the study whose `study_id` is `key`.

        Raises:
            NotFoundError: there is none.
        """
        with self._database.reading() as connection:
            return studies.name_of(connection, key)

    def stamp(self, name: str) -> Stamp:
        """The study's stamp.

        Raises:
            NotFoundError: there is no such study.
        """
        if found := pages.stamps(self._database, "name", name):
            return found[0]
        with self._database.reading() as connection:
            raise studies.missing(connection, name)

    def stamps(self, model: str) -> tuple[Stamp, ...]:
        """Of the studies of a model, newest first."""
        return pages.stamps(self._database, "model", model)

    def stamped(self, name: str) -> tuple[Stamp, Study]:
        """A study and its stamp, of one moment.

        Raises:
            NotFoundError: there is no such study.
        """
        with self._database.reading() as connection:
            return pages.stamped(connection, name)

    def stamped_of(self, model: str) -> list[tuple[Stamp, Study]]:
        """The studies of a model and their stamps, of one moment; newest first."""
        with self._database.reading() as connection:
            return pages.stamped_of(connection, model)

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
        with self._database.reading() as connection:
            return studies.with_baseline(connection, workload_fingerprint, environment_fingerprint)

    def delete_study(self, name: str) -> None:
        """Delete the study with all that belongs to it, and its prompts where no other study has them.

        Raises:
            NotFoundError: there is no such study.
        """
        with self._database.writing(serial=True) as connection:
            studies.delete(connection, name)

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
            study = evaluations.add(connection, name, values, found)
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
            return evaluations.of_study(connection, studies.id_of(connection, name))

    def reading(self, name: str, before: Reading | None = None) -> Reading:
        """As `evaluations`; given an earlier reading, only what was changed since is read. The two share what was not.

        Raises:
            NotFoundError: there is no such study.
        """
        with self._database.reading() as connection:
            return evaluations.read(connection, name, before)

    def evaluation_of_digest(self, name: str, digest: str) -> Evaluation | None:
        """The evaluation of the policy whose key has this digest (`rows.digest`), if it was made.

        Raises:
            NotFoundError: there is no such study.
        """
        with self._database.reading() as connection:
            return evaluations.of_digest(connection, studies.id_of(connection, name), digest)

    def evaluation_page(self, name: str, limit: int, after: int = -1) -> EvaluationPage:
        """Up to `limit` evaluations in the order of their numbers, beginning with the first number above `after`.

        Raises:
            NotFoundError: there is no such study.
        """
        with self._database.reading() as connection:
            return pages.evaluation_page(connection, studies.id_of(connection, name), limit, after)

    def is_checked(self, name: str) -> bool:
        """Whether any of its policies was run on held-out prompts.

        Raises:
            NotFoundError: there is no such study.
        """
        with self._database.reading() as connection:
            return evaluations.any_checked(connection, studies.id_of(connection, name))

    def count(self, name: str) -> int:
        """How many evaluations there are, failed ones too.

        Raises:
            NotFoundError: there is no such study.
        """
        with self._database.reading() as connection:
            return evaluations.count(connection, studies.id_of(connection, name))

    def set_holdout(self, name: str, policy_key: str, qualities: Iterable[CaseQuality]) -> None:
        """Keep what the held-out prompts gave, in place of what was there.

        Raises:
            NotFoundError: there is no such study, or no measurement of that policy in it.
        """
        values = rows.case_values("holdout", qualities)
        with self._database.writing() as connection:
            evaluations.set_holdout(connection, name, policy_key, values)

    def set_latency(self, name: str, policy_key: str, latency: Latency) -> None:
        """Keep a better latency in place of what was there.

        Raises:
            NotFoundError: there is no such study, or no measurement of that policy in it.
        """
        values = rows.latency_values(latency)
        with self._database.writing() as connection:
            evaluations.set_latency(connection, name, policy_key, values)

    def set_latencies(self, name: str, profile: str | None, latencies: Mapping[str, Latency]) -> None:
        """Give the study's policies, by key, other latencies, all or none: those that another device profile projects,
        or, without a profile, those that are fitted anew.

        Raises:
            NotFoundError: there is no such study, or no measurement of one of these policies in it.
        """
        with self._database.writing() as connection:
            studies.touch(connection, name, {"latency_profile": profile})
            for policy_key, latency in latencies.items():
                evaluations.set_latency(connection, name, policy_key, rows.latency_values(latency))

    # --- claims ---------------------------------------------------------------------------------------------------

    def claim(self, name: str, policy_key: str, worker: Worker) -> bool:
        """Ask to run a policy that no other worker runs meanwhile. True where the claim is now this worker's, also if
        it was before; False where the policy has an evaluation, or another living worker holds it.

        Raises:
            NotFoundError: there is no such study.
        """
        with self._database.writing() as connection:
            return claims.take(connection, studies.touch(connection, name, measured=False), policy_key, worker)

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
            claims.drop(connection, studies.id_of(connection, name), policy_key, worker)

    def claimed(self, name: str) -> dict[str, Worker]:
        """Which policies are being run, by key, and by whom; stale claims are left out.

        Raises:
            NotFoundError: there is no such study.
        """
        with self._database.reading() as connection:
            return claims.living(connection, studies.id_of(connection, name))

    # --- fronts ---------------------------------------------------------------------------------------------------

    def add_front(self, name: str, policy_keys: Sequence[str], hypervolume: float) -> None:
        """Keep the front as it is after the evaluations so far.

        Raises:
            NotFoundError: there is no such study.
        """
        values = rows.front_values(policy_keys, hypervolume)
        with self._database.writing() as connection:
            study = studies.touch(connection, name, measured=False)
            values |= {
                "study_id": study,
                "evaluations": evaluations.count(connection, study),
                "created": datetime.now(UTC),
            }
            connection.execute(fronts.insert().values(values))

    def fronts(self, name: str) -> list[FrontSnapshot]:
        """The fronts in the order in which they were kept.

        Raises:
            NotFoundError: there is no such study.
        """
        with self._database.reading() as connection:
            query = sa.select(fronts).where(fronts.c.study_id == studies.id_of(connection, name)).order_by(fronts.c.id)
            return [rows.front_of(row) for row in connection.execute(query)]

    def _update(self, name: str, values: Values) -> None:
        with self._database.writing() as connection:
            studies.touch(connection, name, values, measured=False)
