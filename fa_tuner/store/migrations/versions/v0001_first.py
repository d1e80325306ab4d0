"""The first schema."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

LARGEST = "1.7976931348623157e308"
METRICS = (
    "psnr_db", "worst_frame_psnr_db", "ssim", "cosine_similarity",
    "mae", "mse", "rmse", "max_abs", "l2", "relative_l2",
)  # fmt: skip


def upgrade() -> None:
    _create_studies()
    _create_evaluations()
    op.create_table(
        "fa_tune_fronts",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("study_id", sa.Integer, sa.ForeignKey("fa_tune_studies.id", ondelete="CASCADE"), nullable=False),
        sa.Column("evaluations", sa.BigInteger, nullable=False),
        sa.Column("policy_keys", sa.Text, nullable=False),
        sa.Column("hypervolume", sa.Double, nullable=False),
        sa.Column("created", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint(_finite("hypervolume"), name="ck_fa_tune_fronts_finite"),
    )
    op.create_index("ix_fa_tune_fronts_study", "fa_tune_fronts", ["study_id"])


def _create_studies() -> None:
    op.create_table(
        "fa_tune_workloads",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("fingerprint", sa.String(64), nullable=False),
        sa.Column("model", sa.Text, nullable=False),
        sa.Column("document", sa.Text, nullable=False),
        sa.UniqueConstraint("fingerprint", name="uq_fa_tune_workloads_fingerprint"),
    )
    op.create_index("ix_fa_tune_workloads_model", "fa_tune_workloads", ["model"])
    op.create_table(
        "fa_tune_environments",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("fingerprint", sa.String(64), nullable=False),
        sa.Column("document", sa.Text, nullable=False),
        sa.UniqueConstraint("fingerprint", name="uq_fa_tune_environments_fingerprint"),
    )
    op.create_table(
        "fa_tune_studies",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("name", sa.String(200), nullable=False),
        sa.Column("workload_id", sa.Integer, sa.ForeignKey("fa_tune_workloads.id"), nullable=False),
        sa.Column("environment_id", sa.Integer, sa.ForeignKey("fa_tune_environments.id"), nullable=False),
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
        sa.Column("created", sa.DateTime(timezone=True), nullable=False),
        sa.Column("updated", sa.DateTime(timezone=True), nullable=False),
        sa.UniqueConstraint("name", name="uq_fa_tune_studies_name"),
        sa.CheckConstraint(
            _finite("noise_floor_db", "native_seconds", "native_end_to_end_seconds"), name="ck_fa_tune_studies_finite"
        ),
    )
    op.create_index("ix_fa_tune_studies_workload", "fa_tune_studies", ["workload_id", "environment_id"])
    op.create_index("ix_fa_tune_studies_environment", "fa_tune_studies", ["environment_id"])


def _create_evaluations() -> None:
    op.create_table(
        "fa_tune_evaluations",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("study_id", sa.Integer, sa.ForeignKey("fa_tune_studies.id", ondelete="CASCADE"), nullable=False),
        sa.Column("number", sa.BigInteger, nullable=False),
        sa.Column("policy_key", sa.Text, nullable=False),
        sa.Column("policy_digest", sa.String(64), nullable=False),
        sa.Column("dtype", sa.Text, nullable=False),
        sa.Column("skip_steps", sa.Text, nullable=False),
        sa.Column("skip_layers", sa.Text, nullable=False),
        sa.Column("origin", sa.Text, nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
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
        sa.Column("created", sa.DateTime(timezone=True), nullable=False),
        sa.UniqueConstraint("study_id", "policy_digest", name="uq_fa_tune_evaluations_policy"),
        sa.UniqueConstraint("study_id", "number", name="uq_fa_tune_evaluations_number"),
        sa.CheckConstraint(
            "latency_relative > 0 AND latency_seconds > 0 AND latency_end_to_end_seconds > 0 AND latency_spread >= 0",
            name="ck_fa_tune_evaluations_positive",
        ),
        sa.CheckConstraint(
            _finite("latency_relative", "latency_seconds", "latency_end_to_end_seconds", "latency_spread")
            + " AND "
            + _finite("seconds", "peak_memory_mb"),
            name="ck_fa_tune_evaluations_finite",
        ),
    )
    op.create_table(
        "fa_tune_cases",
        sa.Column(
            "evaluation_id", sa.Integer, sa.ForeignKey("fa_tune_evaluations.id", ondelete="CASCADE"), primary_key=True
        ),
        sa.Column("kind", sa.String(8), primary_key=True),
        sa.Column("position", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("prompt", sa.Text, nullable=False),
        sa.Column("seed", sa.BigInteger, nullable=False),
        sa.Column("identical", sa.Boolean, nullable=False),
        *(sa.Column(metric, sa.Double, nullable=False) for metric in METRICS),
        sa.CheckConstraint("kind IN ('search', 'holdout')", name="ck_fa_tune_cases_kind"),
        sa.CheckConstraint(_finite(*METRICS), name="ck_fa_tune_cases_finite"),
    )


def _finite(*columns: str) -> str:
    return " AND ".join(f"{column} BETWEEN -{LARGEST} AND {LARGEST}" for column in columns)
