"""Keys over both databases: shown once, stored as a hash, ended at once."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa

from fa_tuner.domain.errors import NotFoundError, StoreError, UsageError
from fa_tuner.store.keys import SCOPES, Keys
from fa_tuner.store.schema import keys, sessions
from tests.contract import test_store_contract as contract

postgres, url = contract.postgres, contract.url  # the store's own fixtures


@pytest.fixture
def opened(url: str) -> Iterator[Keys]:
    with Keys.open(url) as store:
        yield store


def everything(store: Keys) -> str:
    """All that the two tables hold, as text."""
    with store._database.reading() as connection:
        return "\n".join(str(row) for table in (keys, sessions) for row in connection.execute(sa.select(table)))


def test_a_secret_is_shown_once_and_stored_as_its_hash(opened: Keys, url: str, tmp_path: Path) -> None:
    key, secret = opened.create("ann", "write")
    session = opened.start_session(key.id, 60)
    assert re.fullmatch(r"fat_[A-Za-z0-9_-]{43}", secret) and re.fullmatch(r"[A-Za-z0-9_-]{43}", session)
    held = everything(opened)
    for text in (secret, session):
        assert text not in held and text[4:] not in held
        assert hashlib.sha256(text.encode()).hexdigest() in held
    if url.startswith("sqlite"):
        for file in (tmp_path / "new").iterdir():  # the journal too
            assert secret.encode() not in file.read_bytes() and session.encode() not in file.read_bytes()
    assert secret not in repr(key) and opened.all() == [key]


def test_a_key_is_found_by_its_secret_alone(opened: Keys) -> None:
    made = [opened.create(f"key of {scope}", scope) for scope in SCOPES]
    assert [opened.check(secret) for _, secret in made] == [key for key, _ in made]
    _, secret = made[0]
    digest = hashlib.sha256(secret.encode()).hexdigest()
    near = (secret[:-1], secret + "x", secret.upper(), f" {secret}", digest)
    for wrong in (*near, "", "ä", "\0", "\ud800", "x" * 10**6):
        assert opened.check(wrong) is None
        assert opened.check_session(wrong) is None
    assert opened.check_session(secret) is None


def test_scopes_contain_each_other() -> None:
    from fa_tuner.store.keys import Key

    may = {scope: [other for other in SCOPES if Key("", "", scope, datetime.now(UTC)).may(other)] for scope in SCOPES}
    assert may == {"read": ["read"], "write": ["read", "write"], "admin": ["read", "write", "admin"]}


def test_a_revoked_key_and_its_sessions_end_at_once_and_no_others(opened: Keys, url: str) -> None:
    (ann, ann_secret), (bob, bob_secret) = opened.create("ann", "admin"), opened.create("bob", "read")
    ann_session, bob_session = opened.start_session(ann.id, 60), opened.start_session(bob.id, 60)
    assert (opened.check_session(ann_session), opened.check_session(bob_session)) == (ann, bob)
    with Keys.open(url) as elsewhere:
        revoked = elsewhere.revoke(ann.id)
    assert revoked.revoked is not None
    assert opened.check(ann_secret) is None and opened.check_session(ann_session) is None
    assert opened.check(bob_secret) == bob and opened.check_session(bob_session) == bob
    assert opened.revoke(ann.id) == revoked  # the date stays
    assert opened.any() and opened.any(usable=True)
    opened.revoke(bob.id)
    assert opened.any() and not opened.any(usable=True)  # closed, not open again
    opened.start_session(ann.id, 60)
    assert [key.revoked is None for key in opened.all()] == [False, False]


def test_a_session_of_a_revoked_key_is_none(opened: Keys) -> None:
    """One that started while the key was being revoked."""
    key, _ = opened.create("ann", "admin")
    opened.revoke(key.id)
    assert opened.check_session(opened.start_session(key.id, 60)) is None


def test_a_session_ends_by_itself_and_by_logout(opened: Keys) -> None:
    key, _ = opened.create("ann", "read")
    ended, running = opened.start_session(key.id, -1), opened.start_session(key.id, 60)
    assert opened.check_session(ended) is None and opened.check_session(running) == key
    opened.start_session(key.id, 60)
    assert hashlib.sha256(ended.encode()).hexdigest() not in everything(opened)
    opened.end_session(running)
    opened.end_session(running)
    assert opened.check_session(running) is None


def test_when_it_was_used(opened: Keys) -> None:
    key, secret = opened.create("ann", "read")
    assert key.used is None and not key.used_lately()
    opened.touch(key.id)
    used = opened.check(secret)
    assert used is not None and used.used is not None and used.used_lately()
    assert abs(used.used - datetime.now(UTC)) < timedelta(minutes=1)


def test_what_cannot_be(opened: Keys) -> None:
    assert not opened.any() and not opened.any(usable=True) and opened.all() == []
    for name in ("", "x" * 201, "a\0b", "\ud800"):
        with pytest.raises(UsageError, match="name"):
            opened.create(name, "read")
        with pytest.raises(NotFoundError, match="no key"):
            opened.revoke(name)
    with pytest.raises(UsageError, match="read, write, admin"):
        opened.create("ann", "root")
    with pytest.raises(NotFoundError, match="no key 'ann'"):
        opened.revoke("ann")
    with pytest.raises(StoreError):  # no session without a key
        opened.start_session("00000000", 60)
    assert everything(opened) == ""


def test_the_schema_is_checked(opened: Keys) -> None:
    opened._database.check()
    with opened._database.writing() as connection:
        connection.execute(sa.text("UPDATE fa_tune_version SET version_num = '9999'"))
    with pytest.raises(StoreError, match="9999"):
        opened._database.check()
