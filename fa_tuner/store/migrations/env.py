"""Run by alembic: migrate the connection that `migrations.upgrade` brought."""

from __future__ import annotations

from alembic import context

from fa_tuner.store.schema import PREFIX, VERSION_TABLE, metadata


def ours(name: str | None, kind: str, _parents: object) -> bool:
    """Whether alembic may look at it: Optuna's tables are none of our business."""
    return kind != "table" or (name or "").startswith(PREFIX)


context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    version_table=VERSION_TABLE,
    include_name=ours,
    transactional_ddl=True,  # SQLite's too, since we begin transactions ourselves
)
with context.begin_transaction():
    context.run_migrations()
