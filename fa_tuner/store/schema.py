"""The tables, as the newest migration leaves them.

Each name starts with `fa_tune_`, because Optuna keeps tables of its own in the same database and one of them is
called `studies`. Documents are JSON in text columns: PostgreSQL's own JSON type would not keep every number as
it was written.
"""

from __future__ import annotations

from datetime import UTC, datetime

import sqlalchemy as sa

from fa_tuner.domain.measurement import METRICS

PREFIX = "fa_tune_"
VERSION_TABLE = "fa_tune_version"
LARGEST = "1.7976931348623157e308"  # PostgreSQL sorts NaN and infinity above it, SQLite infinity


class UtcDateTime(sa.types.TypeDecorator[datetime]):
    """An instant: aware on both sides, UTC in the database (SQLite would drop the zone)."""

    impl = sa.DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: sa.Dialect) -> datetime | None:
        return None if value is None else value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: sa.Dialect) -> datetime | None:
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


def finite(*columns: str) -> str:
    """SQL that holds where each column is a finite number or NULL."""
    return " AND ".join(f"{column} BETWEEN -{LARGEST} AND {LARGEST}" for column in columns)


metadata = sa.MetaData()

workloads = sa.Table(
    "fa_tune_workloads",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("fingerprint", sa.String(64), nullable=False),
    sa.Column("model", sa.Text, nullable=False),
    sa.Column("document", sa.Text, nullable=False),
    sa.UniqueConstraint("fingerprint", name="uq_fa_tune_workloads_fingerprint"),
    sa.Index("ix_fa_tune_workloads_model", "model"),
)

environments = sa.Table(
    "fa_tune_environments",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("fingerprint", sa.String(64), nullable=False),
    sa.Column("document", sa.Text, nullable=False),
    sa.UniqueConstraint("fingerprint", name="uq_fa_tune_environments_fingerprint"),
)

studies = sa.Table(
    "fa_tune_studies",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("name", sa.String(200), nullable=False),
    # `study_id` of the name, by which a study is asked for over HTTP
    sa.Column("study_key", sa.String(16)),
    # No cascade on these two: a workload or environment in use is never deleted.
    sa.Column("workload_id", sa.ForeignKey("fa_tune_workloads.id"), nullable=False),
    sa.Column("environment_id", sa.ForeignKey("fa_tune_environments.id"), nullable=False),
    sa.Column("dtype", sa.Text, nullable=False),
    sa.Column("requirement", sa.Text, nullable=False),
    sa.Column("sampler", sa.Text, nullable=False),
    sa.Column("sampler_seed", sa.BigInteger, nullable=False),
    sa.Column("latency_source", sa.Text, nullable=False),
    sa.Column("latency_profile", sa.Text),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("target", sa.BigInteger, nullable=False),
    sa.Column("noise_floor_db", sa.Double),
    sa.Column("native_seconds", sa.Double),
    sa.Column("native_end_to_end_seconds", sa.Double),
    sa.Column("created", UtcDateTime, nullable=False),
    sa.Column("updated", UtcDateTime, nullable=False),
    sa.UniqueConstraint("name", name="uq_fa_tune_studies_name"),
    sa.CheckConstraint(
        finite("noise_floor_db", "native_seconds", "native_end_to_end_seconds"), name="ck_fa_tune_studies_finite"
    ),
    sa.Index("ix_fa_tune_studies_workload", "workload_id", "environment_id"),
    sa.Index("ix_fa_tune_studies_environment", "environment_id"),
    sa.Index("ix_fa_tune_studies_key", "study_key", unique=True),
)

evaluations = sa.Table(
    "fa_tune_evaluations",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("study_id", sa.ForeignKey("fa_tune_studies.id", ondelete="CASCADE"), nullable=False),
    sa.Column("number", sa.BigInteger, nullable=False),
    sa.Column("policy_key", sa.Text, nullable=False),
    # SHA-256 of the key: a key of some thousand characters is too long for a PostgreSQL index.
    sa.Column("policy_digest", sa.String(64), nullable=False),
    sa.Column("dtype", sa.Text, nullable=False),
    sa.Column("skip_steps", sa.Text, nullable=False),
    sa.Column("skip_layers", sa.Text, nullable=False),
    sa.Column("origin", sa.Text, nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    # All columns from here to `detail` are NULL where the evaluation failed.
    sa.Column("latency_relative", sa.Double),
    sa.Column("latency_source", sa.Text),
    sa.Column("latency_seconds", sa.Double),
    sa.Column("latency_spread", sa.Double),
    sa.Column("latency_repeats", sa.BigInteger),
    sa.Column("latency_end_to_end_seconds", sa.Double),
    sa.Column("latency_detail", sa.Text),
    sa.Column("quantized_calls", sa.BigInteger),
    sa.Column("native_calls", sa.BigInteger),
    sa.Column("expected_quantized_calls", sa.BigInteger),
    sa.Column("proven", sa.Boolean),
    sa.Column("seconds", sa.Double),
    sa.Column("peak_memory_mb", sa.Double),
    sa.Column("detail", sa.Text),
    sa.Column("created", UtcDateTime, nullable=False),
    sa.UniqueConstraint("study_id", "policy_digest", name="uq_fa_tune_evaluations_policy"),
    sa.UniqueConstraint("study_id", "number", name="uq_fa_tune_evaluations_number"),
    sa.CheckConstraint(
        "latency_relative > 0 AND latency_seconds > 0 AND latency_end_to_end_seconds > 0 AND latency_spread >= 0",
        name="ck_fa_tune_evaluations_positive",
    ),
    sa.CheckConstraint(
        finite("latency_relative", "latency_seconds", "latency_end_to_end_seconds", "latency_spread")
        + " AND "
        + finite("seconds", "peak_memory_mb"),
        name="ck_fa_tune_evaluations_finite",
    ),
)

cases = sa.Table(
    "fa_tune_cases",
    metadata,
    sa.Column("evaluation_id", sa.ForeignKey("fa_tune_evaluations.id", ondelete="CASCADE"), primary_key=True),
    sa.Column("kind", sa.String(8), primary_key=True),
    sa.Column("position", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("prompt", sa.Text, nullable=False),
    sa.Column("seed", sa.BigInteger, nullable=False),
    sa.Column("identical", sa.Boolean, nullable=False),
    *(sa.Column(metric, sa.Double, nullable=False) for metric in METRICS),
    sa.CheckConstraint("kind IN ('search', 'holdout')", name="ck_fa_tune_cases_kind"),
    sa.CheckConstraint(finite(*METRICS), name="ck_fa_tune_cases_finite"),
)

fronts = sa.Table(
    "fa_tune_fronts",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("study_id", sa.ForeignKey("fa_tune_studies.id", ondelete="CASCADE"), nullable=False),
    sa.Column("evaluations", sa.BigInteger, nullable=False),
    sa.Column("policy_keys", sa.Text, nullable=False),
    sa.Column("hypervolume", sa.Double, nullable=False),
    sa.Column("created", UtcDateTime, nullable=False),
    sa.CheckConstraint(finite("hypervolume"), name="ck_fa_tune_fronts_finite"),
    sa.Index("ix_fa_tune_fronts_study", "study_id"),
)

# A policy that a worker is running; gone with its evaluation.
claims = sa.Table(
    "fa_tune_claims",
    metadata,
    sa.Column("study_id", sa.ForeignKey("fa_tune_studies.id", ondelete="CASCADE"), primary_key=True),
    sa.Column("policy_digest", sa.String(64), primary_key=True),
    sa.Column("policy_key", sa.Text, nullable=False),
    sa.Column("worker", sa.Text, nullable=False),
    sa.Column("host", sa.Text, nullable=False),
    sa.Column("pid", sa.BigInteger, nullable=False),
    sa.Column("process_started", sa.Double, nullable=False),
    sa.Column("heartbeat", UtcDateTime, nullable=False),
    sa.CheckConstraint(finite("process_started"), name="ck_fa_tune_claims_finite"),
)

# Who may ask the service. Of secrets only the SHA-256 is stored.
keys = sa.Table(
    "fa_tune_keys",
    metadata,
    sa.Column("id", sa.String(16), primary_key=True),
    sa.Column("digest", sa.String(64), nullable=False),
    sa.Column("name", sa.String(200), nullable=False),
    sa.Column("scope", sa.String(8), nullable=False),
    sa.Column("created", UtcDateTime, nullable=False),
    sa.Column("used", UtcDateTime),
    sa.Column("revoked", UtcDateTime),
    sa.UniqueConstraint("digest", name="uq_fa_tune_keys_digest"),
    sa.CheckConstraint("scope IN ('read', 'write', 'admin')", name="ck_fa_tune_keys_scope"),
)

# A browser that logged in with a key.
sessions = sa.Table(
    "fa_tune_sessions",
    metadata,
    sa.Column("digest", sa.String(64), primary_key=True),
    sa.Column("key_id", sa.ForeignKey("fa_tune_keys.id", ondelete="CASCADE"), nullable=False),
    sa.Column("expires", UtcDateTime, nullable=False),
    sa.Index("ix_fa_tune_sessions_key", "key_id"),
)

# A study that was asked for: one row a study, whatever becomes of it.
jobs = sa.Table(
    "fa_tune_jobs",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("study", sa.String(200), nullable=False),
    sa.Column("study_key", sa.String(16), nullable=False),
    sa.Column("request", sa.Text, nullable=False),
    sa.Column("workers", sa.Integer, nullable=False),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("problem", sa.Text, nullable=False),
    sa.Column("attempts", sa.Integer, nullable=False),
    # how many evaluations there were when the last attempt was counted
    sa.Column("evaluations", sa.BigInteger, nullable=False),
    sa.Column("due", UtcDateTime, nullable=False),
    sa.Column("tokens", sa.BigInteger, nullable=False),
    sa.Column("created", UtcDateTime, nullable=False),
    sa.Column("updated", UtcDateTime, nullable=False),
    sa.UniqueConstraint("study", name="uq_fa_tune_jobs_study"),
    sa.UniqueConstraint("study_key", name="uq_fa_tune_jobs_study_key"),
    sa.CheckConstraint(
        "state IN ('queued', 'running', 'cancelling', 'cancelled', 'finished', 'failed')", name="ck_fa_tune_jobs_state"
    ),
    sa.CheckConstraint("workers >= 1 AND attempts >= 0 AND tokens >= 0", name="ck_fa_tune_jobs_counts"),
    sa.Index("ix_fa_tune_jobs_state", "state", "due"),
)

# Which request came with which Idempotency-Key, and for which study: for good, also where its job was replaced.
job_keys = sa.Table(
    "fa_tune_job_keys",
    metadata,
    sa.Column("digest", sa.String(64), primary_key=True),
    sa.Column("request_digest", sa.String(64), nullable=False),
    sa.Column("study", sa.String(200), nullable=False),
)

# A worker that waits for jobs or is at one. `token` counts the leases of its job: each is larger than those before.
workers = sa.Table(
    "fa_tune_workers",
    metadata,
    sa.Column("id", sa.String(32), primary_key=True),
    sa.Column("host", sa.Text, nullable=False),
    sa.Column("pid", sa.BigInteger, nullable=False),
    sa.Column("process_started", sa.Double, nullable=False),
    sa.Column("device", sa.Text, nullable=False),
    sa.Column("job_id", sa.ForeignKey("fa_tune_jobs.id", ondelete="SET NULL")),
    sa.Column("token", sa.BigInteger),
    sa.Column("heartbeat", UtcDateTime, nullable=False),
    sa.CheckConstraint(finite("process_started"), name="ck_fa_tune_workers_finite"),
    sa.Index("ix_fa_tune_workers_job", "job_id"),
)
