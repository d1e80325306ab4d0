"""The way from any older schema to the newest, by alembic.

A new migration is a module in `versions/`; `schema.py` and `database.HEAD` change with it, and tests hold the three
together. Optuna's alembic works in the same database, hence the version table and the filter in `env.py`.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from threading import Lock

from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy import Connection

_ONE_AT_A_TIME = Lock()  # alembic keeps the running migration in module globals


def upgrade(connection: Connection) -> None:
    """Bring the database to the newest schema inside the connection's transaction."""
    config = _config()
    config.attributes["connection"] = connection
    with _ONE_AT_A_TIME:
        command.upgrade(config, "head")


@cache
def revisions() -> tuple[str, ...]:
    """All migrations known here, newest first."""
    return tuple(script.revision for script in ScriptDirectory.from_config(_config()).walk_revisions())


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    return config
