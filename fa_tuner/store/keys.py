"""Who may ask the service: keys, and the sessions that a browser gets for one.

A secret is shown once, when it is made. Stored is its SHA-256, by which it is found: 256 random bits need no salt and
no slow hash. A revoked key stays as a row, so that a service whose keys are all revoked is closed and not open.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from types import TracebackType
from typing import Any, Literal, Self, get_args

import sqlalchemy as sa
from sqlalchemy import Row

from fa_tuner.domain.errors import NotFoundError, UsageError
from fa_tuner.store import rows
from fa_tuner.store.database import Database
from fa_tuner.store.schema import keys, sessions

Scope = Literal["read", "write", "admin"]
SCOPES: tuple[Scope, ...] = get_args(Scope)  # each may do what those before it may
PREFIX = "fat_"
MAX_SECRET = 200  # characters; nothing longer is hashed
USED_EVERY = timedelta(minutes=1)  # how exact `Key.used` is

# Asked with every request, so built once.
_BY_SECRET = sa.select(keys, keys.c.digest.label("held")).where(keys.c.digest == sa.bindparam("digest"))
_BY_SESSION = (
    sa.select(keys, sessions.c.digest.label("held"))
    .join(sessions)
    .where(sessions.c.digest == sa.bindparam("digest"), sessions.c.expires > sa.bindparam("now"))
)


@dataclass(frozen=True)
class Key:
    """What may be shown of a key. `used` is exact to `USED_EVERY`; None where it never was."""

    id: str
    name: str
    scope: Scope
    created: datetime
    used: datetime | None = None
    revoked: datetime | None = None

    def may(self, scope: Scope) -> bool:
        return SCOPES.index(scope) <= SCOPES.index(self.scope)

    def used_lately(self) -> bool:
        return self.used is not None and datetime.now(UTC) - self.used < USED_EVERY


class Keys:
    """The keys of one database. Every method may raise StoreError: the database failed, and then nothing was written.
    Safe to use from several threads."""

    def __init__(self, database: Database) -> None:
        self._database = database

    @classmethod
    def open(cls, url: str) -> Self:
        """
        Raises:
            StoreError: as `Store.open`.
        """
        return cls(Database.open(url))

    def close(self) -> None:
        self._database.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # --- keys -----------------------------------------------------------------------------------------------------

    def create(self, name: str, scope: str) -> tuple[Key, str]:
        """A new key and its secret, which nobody can show again.

        Raises:
            UsageError: a name or scope that no key can have.
        """
        if not rows.is_name(name):
            raise UsageError("a key's name has 1 to 200 printable characters, such as the name of who gets it")
        known = next((known for known in SCOPES if known == scope), None)
        if known is None:
            raise UsageError(f"scope {scope[:40]!r} is unknown; choose {', '.join(SCOPES)}")
        secret = PREFIX + secrets.token_urlsafe(32)
        key = Key(secrets.token_hex(4), name, known, datetime.now(UTC))
        values = {"id": key.id, "name": name, "scope": scope, "created": key.created, "digest": _digest(secret)}
        with self._database.writing() as connection:
            connection.execute(keys.insert().values(values))
        return key, secret

    def all(self) -> list[Key]:
        """Oldest first, revoked ones too."""
        with self._database.reading() as connection:
            return [_key_of(row) for row in connection.execute(sa.select(keys).order_by(keys.c.created, keys.c.id))]

    def any(self, usable: bool = False) -> bool:
        """Whether a key was ever created, or, `usable`, whether one is not revoked."""
        found = sa.select(keys.c.id).limit(1)
        with self._database.reading() as connection:
            return connection.scalar(found.where(keys.c.revoked.is_(None)) if usable else found) is not None

    def revoke(self, id: str) -> Key:
        """End a key and its sessions, at once and for good; a revoked one stays as it is.

        Raises:
            NotFoundError: there is no such key.
        """
        with self._database.writing() as connection:
            now = sa.func.coalesce(keys.c.revoked, sa.bindparam("now", datetime.now(UTC), keys.c.revoked.type))
            update = keys.update().where(keys.c.id == id).values(revoked=now).returning(*keys.c)
            row = connection.execute(update).one_or_none() if rows.is_name(id) else None
            if row is None:
                raise NotFoundError(
                    f"there is no key {id[:40]!r} in {self._database.shown}; `fa-tune keys list` shows them"
                )
            connection.execute(sessions.delete().where(sessions.c.key_id == id))
        return _key_of(row)

    def check(self, secret: str) -> Key | None:
        """The key of that secret; None where there is none, or it is revoked."""
        if not _can_be_secret(secret):
            return None
        digest = _digest(secret)
        return _usable(self._database.glance(_BY_SECRET, {"digest": digest}), digest)

    def is_usable(self, id: str) -> bool:
        """Whether there is such a key, and it is not revoked."""
        query = sa.select(keys.c.id).where(keys.c.id == id, keys.c.revoked.is_(None))
        with self._database.reading() as connection:
            return connection.scalar(query) is not None

    def touch(self, id: str) -> None:
        """Say that the key was used now."""
        with self._database.writing() as connection:
            connection.execute(keys.update().where(keys.c.id == id).values(used=datetime.now(UTC)))

    # --- sessions -------------------------------------------------------------------------------------------------

    def start_session(self, id: str, seconds: float) -> str:
        """The secret of a new session of that key; it ends after `seconds`, or with the key. Ended ones are deleted."""
        now, secret = datetime.now(UTC), secrets.token_urlsafe(32)
        values = {"digest": _digest(secret), "key_id": id, "expires": now + timedelta(seconds=seconds)}
        with self._database.writing() as connection:
            connection.execute(sessions.delete().where(sessions.c.expires <= now))
            connection.execute(sessions.insert().values(values))
        return secret

    def check_session(self, secret: str) -> Key | None:
        """The key of a session that runs."""
        if not _can_be_secret(secret):
            return None
        digest = _digest(secret)
        return _usable(self._database.glance(_BY_SESSION, {"digest": digest, "now": datetime.now(UTC)}), digest)

    def end_session(self, secret: str) -> None:
        """Nothing happens where there is none."""
        if _can_be_secret(secret):
            with self._database.writing() as connection:
                connection.execute(sessions.delete().where(sessions.c.digest == _digest(secret)))


def _usable(found: Sequence[Row[Any]], digest: str) -> Key | None:
    """An index finds the digest, in a time that says nothing of the secret; the comparison that counts is ours."""
    row = found[0] if found else None
    if row is None or row.revoked is not None or not hmac.compare_digest(row.held, digest):
        return None
    return _key_of(row)


def _key_of(row: Row[Any]) -> Key:
    return Key(row.id, row.name, row.scope, row.created, row.used, row.revoked)


def _can_be_secret(text: str) -> bool:
    return 0 < len(text) <= MAX_SECRET and text.isascii()


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()
