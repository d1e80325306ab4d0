"""Who asks: the key or the session that a request brings, or anybody where the service is open."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable, Hashable
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address, ip_address

from starlette.datastructures import Headers
from starlette.requests import cookie_parser

from fa_tuner.domain.errors import StoreError
from fa_tuner.store.database import Database
from fa_tuner.store.keys import Key, Keys

COOKIE = "fa_tune_session"
ASKED_EVERY = 1.0  # seconds for which "no key was created" is believed
WRONG_KEYS = 20  # from one address in `WRONG_SECONDS`; beyond that, only keys that were right before are looked at
WRONG_SECONDS = 60.0
MAX_REMEMBERED = 10_000  # addresses, and keys that were right


@dataclass(frozen=True)
class Credentials:
    """What a request brings; a key counts before a session."""

    secret: str | None
    session: str | None

    @classmethod
    def of(cls, headers: Headers) -> Credentials:
        scheme, _, given = headers.get("authorization", "").partition(" ")
        secret = given.strip() if scheme.lower() == "bearer" else headers.get("x-api-key")
        return cls(secret, cookie_parser(headers.get("cookie", "")).get(COOKIE))


@dataclass(frozen=True)
class Caller:
    """Who asks. `key` is None where no key was created and none is needed; `session` is the cookie's secret where that
    is what the caller came by."""

    key: Key | None
    session: str | None = None


class WrongKey(Exception):
    """The secret is of no key, or of a revoked one."""


class TooManyWrongKeys(Exception):
    """`seconds` until the address may try again."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.seconds = seconds


class Access:
    """The keys as the service asks for them: one database, opened when it is first needed."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._lock = threading.Lock()
        self._database: Database | None = None
        self._created, self._asked = False, float("-inf")
        self._throttle = Throttle()
        self._right: set[bytes] = set()

    @property
    def database(self) -> Database:
        """
        Raises:
            StoreError: it cannot be opened.
        """
        with self._lock:
            if self._database is None:
                self._database = Database.open(self._url)
            return self._database

    def version(self) -> Hashable | None:
        """As the database's; opens none."""
        return self._database.version() if self._database is not None else None

    @property
    def keys(self) -> Keys:
        return Keys(self.database)

    def close(self) -> None:
        """The next use opens it again."""
        with self._lock:
            if self._database is not None:
                self._database.close()
            self._database = None

    def known(self) -> bool | None:
        """Whether a key was ever created, as far as that is known without asking. Once there was one, there is."""
        return self._created if self._created or time.monotonic() - self._asked < ASKED_EVERY else None

    def created(self) -> bool:
        """As `known`, asking where it must.

        Raises:
            StoreError: the database failed.
        """
        if (known := self.known()) is not None:
            return known
        self._created = self.keys.any()
        self._asked = time.monotonic()
        return self._created

    def was_right(self, secret: str) -> bytes | None:
        """Its digest, where it was that of a key when it was last asked for."""
        return digest if (digest := _digest(secret)) in self._right else None

    def identify(self, given: Credentials, address: str) -> Caller | None:
        """Who that is; None for nobody. A session that has ended is nobody, not an attempt to guess one.

        Raises:
            WrongKey: and TooManyWrongKeys, after many from that address.
            StoreError: the database failed.
        """
        if given.secret is not None:
            return Caller(self._checked(given.secret, address))
        if given.session is not None and (key := self.keys.check_session(given.session)):
            return Caller(key, given.session)
        return None

    def still(self, caller: Caller) -> bool:
        """Whether who was let in would be let in now.

        Raises:
            StoreError: the database failed.
        """
        if caller.key is None:
            return not self.created()
        if caller.session is not None:
            return self.keys.check_session(caller.session) is not None
        return self.keys.is_usable(caller.key.id)

    def touch(self, key: Key) -> None:
        """Say that the key was used. Nobody waits for that, and a database that is busy may miss it."""
        with suppress(StoreError):
            self.keys.touch(key.id)

    def _checked(self, secret: str, address: str) -> Key:
        digest = _digest(secret)
        if digest not in self._right and (wait := self._throttle.wait(address)):
            raise TooManyWrongKeys(wait)
        if (key := self.keys.check(secret)) is None:
            self._right.discard(digest)
            self._throttle.count(address)
            raise WrongKey
        if len(self._right) >= MAX_REMEMBERED:
            self._right.clear()
        self._right.add(digest)
        return key


class Throttle:
    """Counts wrong keys by address, each for `WRONG_SECONDS` from the first. Safe to use from several threads."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._wrong: dict[str, tuple[int, float]] = {}  # how many, and until when they count; oldest first

    def wait(self, address: str) -> float:
        """Seconds until the address may try again."""
        with self._lock:
            number, until = self._wrong.get(address, (0, 0.0))
            return max(0.0, until - self._clock()) if number >= WRONG_KEYS else 0.0

    def count(self, address: str) -> None:
        with self._lock:
            now = self._clock()
            number, until = self._wrong.get(address, (0, 0.0))
            if until <= now:
                number, until = 0, now + WRONG_SECONDS
                self._wrong.pop(address, None)  # to the end
            self._wrong[address] = number + 1, until
            if len(self._wrong) > MAX_REMEMBERED:
                del self._wrong[next(iter(self._wrong))]


def _digest(secret: str) -> bytes:
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).digest()


def is_loopback(host: str) -> bool:
    """Whether only this machine is called so."""
    address = address_of(host)
    return host.lower() == "localhost" if address is None else address.is_loopback


@lru_cache(maxsize=256)  # asked with every request
def address_of(host: str) -> IPv4Address | IPv6Address | None:
    """The address that a host is written as; None for a name."""
    try:
        address = ip_address(host.strip("[]").partition("%")[0])
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return mapped or address
