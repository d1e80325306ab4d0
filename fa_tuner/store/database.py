"""One database: opened, brought to the newest schema, read and written in transactions."""

from __future__ import annotations

import copy
import sqlite3
import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import sqlalchemy as sa
from sqlalchemy.engine import URL, Connection, Engine
from sqlalchemy.exc import ArgumentError, DBAPIError

from fa_tuner.domain.errors import StoreError
from fa_tuner.store.failures import shown, told
from fa_tuner.store.schema import VERSION_TABLE
from fa_tuner.store.watch import Watch

HEAD = "0004"  # the newest migration; alembic is loaded only where the database says otherwise
CONNECT_SECONDS = 10
# a server whose host or network is gone without a word is given up after a minute, not after hours
POSTGRES_ARGUMENTS: dict[str, Any] = {
    "application_name": "fa-tune", "connect_timeout": CONNECT_SECONDS, "keepalives_idle": 30,
    "keepalives_interval": 10, "keepalives_count": 3, "tcp_user_timeout": 60_000,
}  # fmt: skip
IDLE_SECONDS = 20  # within a writing, after which PostgreSQL ends it
_SERIAL_LOCK = 0x66615F74756E65  # "fa_tune": PostgreSQL's advisory lock for serial writings, migrations too


class Database:
    """An open database. Safe to use from several threads; a fork must open its own."""

    def __init__(self, engine: Engine, glances: Engine | None = None) -> None:
        """`glances` is another engine for `glance`, where a transaction costs too much for that."""
        self.engine, self._glances = engine, glances or engine
        self.shown = shown(engine.url)
        self._is_sqlite = engine.dialect.name == "sqlite"
        # All statements of one reading see one moment; in SQLite every transaction does.
        self._reader = engine if self._is_sqlite else engine.execution_options(isolation_level="REPEATABLE READ")
        self._writer = engine.execution_options(fa_tune_writes=True)
        self._watch = Watch(engine) if self._is_sqlite else None
        self._fence: Callable[[Connection], None] | None = None

    def fenced(self, fence: Callable[[Connection], None]) -> Self:
        """The same database, where `fence` may refuse each writing: it is called first in its transaction."""
        other = copy.copy(self)
        other._fence = fence
        return other

    @classmethod
    def open(cls, url: str, timeout_seconds: float = 30.0) -> Database:
        """Open, and migrate where the schema is missing or older. A write waits `timeout_seconds` for another
        process's.

        Raises:
            StoreError: an unusable URL, a missing driver, a file or server that cannot be used, or a schema that
                is newer than this program.
        """
        parsed = parse(url)
        with told(parsed):
            engine = (
                _sqlite(parsed, timeout_seconds)
                if parsed.get_backend_name() == "sqlite"
                else _postgres(parsed, timeout_seconds)
            )
            try:
                if engine.dialect.name == "sqlite":
                    _use_wal(engine, timeout_seconds)
                database = cls(engine, None if engine.dialect.name == "sqlite" else _autocommitting(parsed))
                database._prepare()
            except BaseException:
                engine.dispose()
                raise
        return database

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """A transaction that sees one moment of the database.

        Raises:
            StoreError: the database failed.
        """
        with told(self.engine.url), self._reader.connect() as connection, connection.begin():
            yield connection

    def glance(self, statement: sa.Select[Any], values: dict[str, Any]) -> Sequence[sa.Row[Any]]:
        """The rows of one statement, which by itself sees one moment: one round trip.

        Raises:
            StoreError: the database failed.
        """
        with told(self.engine.url):
            try:
                return self._glanced(statement, values)
            except DBAPIError as error:
                if not error.connection_invalidated:
                    raise
                return self._glanced(statement, values)  # the server was restarted; its old connections are gone now

    def version(self) -> Hashable | None:
        """Equal to an earlier one where nobody committed anything between the two; None where only waiting
        would tell."""
        return self._watch.version() if self._watch is not None else None

    def _glanced(self, statement: sa.Select[Any], values: dict[str, Any]) -> Sequence[sa.Row[Any]]:
        with self._glances.connect() as connection:
            return connection.execute(statement, values).all()

    @contextmanager
    def writing(self, serial: bool = False, fenced: bool = True) -> Iterator[Connection]:
        """A transaction that is kept whole or not at all. A `serial` one also excludes other serial ones
        (in SQLite every writing excludes all others). What only touches the caller's own presence is not `fenced`.

        Raises:
            StoreError: the database failed, and nothing was written.
        """
        with told(self.engine.url), self._writer.connect() as connection, connection.begin():
            if serial and not self._is_sqlite:
                connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_SERIAL_LOCK)))
            if fenced and self._fence is not None:
                self._fence(connection)
            yield connection

    def check(self) -> None:
        """
        Raises:
            StoreError: the database cannot be reached, or its schema is no longer this program's.
        """
        with self.reading() as connection:
            if (revision := _revision(connection)) != HEAD:
                raise StoreError(
                    f"the store {self.shown} has schema {revision}, and this fa-tune works with {HEAD}; "
                    "restart it, with the fa-tune that migrated the store"
                )

    def close(self) -> None:
        self.engine.dispose()
        self._glances.dispose()
        if self._watch is not None:
            self._watch.close()

    def _prepare(self) -> None:
        with self.reading() as connection:
            if _revision(connection) == HEAD:
                return
        with self.writing(serial=True) as connection:
            if (revision := _revision(connection)) != HEAD:  # another process may have been faster
                _migrate(connection, revision, self.shown)


def parse(url: str) -> URL:
    """The URL with the driver that this program uses.

    Raises:
        StoreError: no URL, or one of another kind of database; the message does not repeat the text.
    """
    try:
        parsed = sa.make_url(url)
    except (ArgumentError, ValueError):
        # `from None`: the text may hold a password, and the cause may hold the text.
        raise StoreError(
            "the store's URL cannot be read; write sqlite:///PATH or postgresql://USER@HOST/DATABASE"
        ) from None
    kind = parsed.get_backend_name()
    if kind in ("postgresql", "postgres"):
        return parsed.set(drivername="postgresql+psycopg")
    if kind != "sqlite" or parsed.database in (None, "", ":memory:"):
        what = (
            "a SQLite store needs a file"
            if kind == "sqlite"
            else f"the store's URL names {kind!r}, which is not supported"
        )
        raise StoreError(f"{what}; write sqlite:///PATH or postgresql://USER@HOST/DATABASE")
    return parsed


def _sqlite(url: URL, timeout_seconds: float) -> Engine:
    path = str(url.database)
    if not path.startswith("file:"):
        Path(path).parent.mkdir(parents=True, exist_ok=True)
    engine = sa.create_engine(url, connect_args={"timeout": timeout_seconds}, hide_parameters=True)

    @sa.event.listens_for(engine, "connect")
    def connected(connection: sqlite3.Connection, _record: object) -> None:
        connection.isolation_level = None  # transactions are begun below, not guessed by the driver
        connection.execute("PRAGMA foreign_keys = ON")
        connection.execute("PRAGMA synchronous = NORMAL")  # with WAL: consistent after any crash

    @sa.event.listens_for(engine, "begin")
    def begun(connection: Connection) -> None:
        # A writing takes the lock at once: one that had read first could not wait for it.
        writes = connection.get_execution_options().get("fa_tune_writes")
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    return engine


def _use_wal(engine: Engine, timeout_seconds: float) -> None:
    """Readers and one writer side by side. SQLite does not wait for the lock that this change needs, so we do."""
    deadline = time.monotonic() + timeout_seconds
    while True:
        raw = engine.raw_connection()
        try:
            if raw.cursor().execute("PRAGMA journal_mode").fetchone()[0] != "wal":
                raw.cursor().execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > deadline:
                raise
        finally:
            raw.close()
        time.sleep(0.02)


def _postgres(url: URL, timeout_seconds: float) -> Engine:
    try:
        import psycopg  # noqa: F401
    except ImportError as error:
        raise StoreError(
            f"the store {shown(url)} needs the PostgreSQL driver, which is not installed; "
            "pip install 'fa-tune[postgres]'"
        ) from error
    engine = sa.create_engine(url, connect_args=_arguments(url), pool_pre_ping=True, hide_parameters=True)

    @sa.event.listens_for(engine, "begin")
    def begun(connection: Connection) -> None:
        if connection.get_execution_options().get("fa_tune_writes"):
            connection.exec_driver_sql(f"SET LOCAL lock_timeout = {int(timeout_seconds * 1000)}")
            # a process that is paused in the middle must not keep its locks
            connection.exec_driver_sql(f"SET LOCAL idle_in_transaction_session_timeout = {IDLE_SECONDS * 1000}")

    return engine


def _autocommitting(url: URL) -> Engine:
    """Whose connections neither begin transactions nor are tried before they are used."""
    return sa.create_engine(
        url, connect_args=_arguments(url), isolation_level="AUTOCOMMIT", pool_size=10, max_overflow=5,
        hide_parameters=True,
    )  # fmt: skip


def _arguments(url: URL) -> dict[str, Any]:
    return {key: value for key, value in POSTGRES_ARGUMENTS.items() if key not in url.query}


def _revision(connection: Connection) -> str | None:
    """The migration that the database is at; None for a database without our tables."""
    if not sa.inspect(connection).has_table(VERSION_TABLE):
        return None
    version = sa.table(VERSION_TABLE, sa.column("version_num"))
    return connection.scalar(sa.select(version.c.version_num))


def _migrate(connection: Connection, revision: str | None, where: str) -> None:
    from fa_tuner.store import migrations

    if revision is not None and revision not in migrations.revisions():
        raise StoreError(
            f"the store {where} has schema {revision}, which is newer than this fa-tune knows ({HEAD}); "
            "upgrade fa-tune, or name another store"
        )
    migrations.upgrade(connection)
