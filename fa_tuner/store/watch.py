"""Whether anybody wrote to a SQLite file."""

from __future__ import annotations

import sqlite3
from collections.abc import Hashable

from sqlalchemy.engine import Engine


class Watch:
    """A connection that never writes, so that SQLite's `data_version` counts everybody else's commits for it. Asking
    takes microseconds and waits for no lock: an event loop may."""

    def __init__(self, engine: Engine) -> None:
        (self._path,), options = engine.dialect.create_connect_args(engine.url)
        self._options = {**options, "timeout": 0, "check_same_thread": False}
        self._connection: sqlite3.Connection | None = None

    def version(self) -> Hashable | None:
        """Equal to an earlier one where nothing was committed between the two; None where that cannot be told now."""
        try:
            if (connection := self._connection) is None:
                connection = self._connection = sqlite3.connect(self._path, **self._options)
            ((number,),) = connection.execute("PRAGMA data_version")
        except sqlite3.Error:  # locked, or closed by another thread
            return None
        return connection, number  # numbers of two connections say nothing of each other

    def close(self) -> None:
        """The next use opens it again."""
        if self._connection is not None:
            self._connection.close()
        self._connection = None
