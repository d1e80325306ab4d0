"""Studies that the service is asked for, and the workers that take them; studies are found by their keys."""

from __future__ import annotations

import hashlib

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"

LARGEST = "1.7976931348623157e308"


def upgrade() -> None:
    _give_studies_their_keys()
    op.create_table(
        "fa_tune_jobs",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("study", sa.String(200), nullable=False),
        sa.Column("study_key", sa.String(16), nullable=False),
        sa.Column("request", sa.Text, nullable=False),
        sa.Column("workers", sa.Integer, nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("problem", sa.Text, nullable=False),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("evaluations", sa.BigInteger, nullable=False),
        sa.Column("due", sa.DateTime(timezone=True), nullable=False),
        sa.Column("tokens", sa.BigInteger, nullable=False),
        sa.Column("created", sa.DateTime(timezone=True), nullable=False),
        sa.Column("updated", sa.DateTime(timezone=True), nullable=False),
        sa.UniqueConstraint("study", name="uq_fa_tune_jobs_study"),
        sa.UniqueConstraint("study_key", name="uq_fa_tune_jobs_study_key"),
        sa.CheckConstraint(
            "state IN ('queued', 'running', 'cancelling', 'cancelled', 'finished', 'failed')",
            name="ck_fa_tune_jobs_state",
        ),
        sa.CheckConstraint("workers >= 1 AND attempts >= 0 AND tokens >= 0", name="ck_fa_tune_jobs_counts"),
    )
    op.create_index("ix_fa_tune_jobs_state", "fa_tune_jobs", ["state", "due"])
    op.create_table(
        "fa_tune_job_keys",
        sa.Column("digest", sa.String(64), primary_key=True),
        sa.Column("request_digest", sa.String(64), nullable=False),
        sa.Column("study", sa.String(200), nullable=False),
    )
    op.create_table(
        "fa_tune_workers",
        sa.Column("id", sa.String(32), primary_key=True),
        sa.Column("host", sa.Text, nullable=False),
        sa.Column("pid", sa.BigInteger, nullable=False),
        sa.Column("process_started", sa.Double, nullable=False),
        sa.Column("device", sa.Text, nullable=False),
        sa.Column("job_id", sa.Integer, sa.ForeignKey("fa_tune_jobs.id", ondelete="SET NULL")),
        sa.Column("token", sa.BigInteger),
        sa.Column("heartbeat", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint(f"process_started BETWEEN -{LARGEST} AND {LARGEST}", name="ck_fa_tune_workers_finite"),
    )
    op.create_index("ix_fa_tune_workers_job", "fa_tune_workers", ["job_id"])


def _give_studies_their_keys() -> None:
    """The first 16 hexadecimal digits of the SHA-256 of the name."""
    op.add_column("fa_tune_studies", sa.Column("study_key", sa.String(16)))
    studies = sa.table("fa_tune_studies", sa.column("name"), sa.column("study_key"))
    connection = op.get_bind()
    for name in connection.scalars(sa.select(studies.c.name)).all():
        key = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:16]
        connection.execute(studies.update().where(studies.c.name == name).values(study_key=key))
    op.create_index("ix_fa_tune_studies_key", "fa_tune_studies", ["study_key"], unique=True)
