"""What went wrong with a database, in words: what, where, what next, and never a password."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import URL
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from fa_tuner.domain.errors import StoreError

# By what the driver says; the first match counts.
_ADVICE = (
    (
        ("not a database", "malformed"),
        "the file is damaged or of another program; restore a copy of it, or move it away to start anew",
    ),
    (("readonly", "read-only", "permission denied"), "give this user the right to write there, or name another store"),
    (
        ("unable to open", "not a directory", "file exists"),
        "check that the folder exists and is writable, or name another store",
    ),
    (
        ("locked", "busy", "lock timeout"),
        "another process is writing; wait until it is done or stop it, then repeat the command",
    ),
    (("full", "no space"), "free some space, then repeat the command; what was stored before is unharmed"),
    (
        ("connection", "could not translate", "server closed", "terminating"),
        "check that the server runs, and the URL's host, port, database, user and password",
    ),
    (("pool",), "close stores that are no longer used, then repeat the command"),
)
_OTHERWISE = "repeat the command; if it fails again, check the database with its own tools"


def shown(url: URL) -> str:
    """The URL as it may be printed: no password, neither before the host nor among the options."""
    secret = [key for key in url.query if "pass" in key.lower()]
    return url.update_query_dict(dict.fromkeys(secret, "hidden")).render_as_string(hide_password=True)


@contextmanager
def told(url: URL) -> Iterator[None]:
    """Turn what the database or the file system raises inside into one StoreError.

    Raises:
        StoreError: with the driver's own words, the store's URL without its password, and what to do next.
    """
    try:
        yield
    except (SQLAlchemyError, sqlite3.Error, OSError) as error:
        raise StoreError(describe(error, url)) from error


def describe(error: BaseException, url: URL) -> str:
    """One line: what, where, what next."""
    # str() of a DBAPIError holds the statement; its `orig` is what the driver said.
    origin = error.orig if isinstance(error, DBAPIError) and error.orig is not None else error
    if isinstance(origin, PoolTimeoutError):
        said = "no free connection in the pool"
    else:
        said = " ".join(str(getattr(origin, "strerror", None) or origin).split())[:300] or type(origin).__name__
    for secret in (url.password, *(value for key, value in url.query.items() if "pass" in key.lower())):
        if secret:
            said = said.replace(str(secret), "***")
    lowered = said.lower()
    advice = next((advice for signs, advice in _ADVICE if any(sign in lowered for sign in signs)), _OTHERWISE)
    return f"the store {shown(url)} failed: {said}; {advice}"
