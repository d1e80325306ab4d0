"""Claims: which worker runs which policy."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"

LARGEST = "1.7976931348623157e308"


def upgrade() -> None:
    op.create_table(
        "fa_tune_claims",
        sa.Column(
            "study_id", sa.Integer, sa.ForeignKey("fa_tune_studies.id", ondelete="CASCADE"),
            primary_key=True, autoincrement=False,
        ),
        sa.Column("policy_digest", sa.String(64), primary_key=True),
        sa.Column("policy_key", sa.Text, nullable=False),
        sa.Column("worker", sa.Text, nullable=False),
        sa.Column("host", sa.Text, nullable=False),
        sa.Column("pid", sa.BigInteger, nullable=False),
        sa.Column("process_started", sa.Double, nullable=False),
        sa.Column("heartbeat", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint(f"process_started BETWEEN -{LARGEST} AND {LARGEST}", name="ck_fa_tune_claims_finite"),
    )  # fmt: skip
