"""One question to the database for all who ask the same at once, or while nothing changes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

from starlette.concurrency import run_in_threadpool

MOST_KEPT = 1000  # answers; then all are asked for anew
T = TypeVar("T")


class Turns(Generic[T]):
    """Calls in turns, by key: who asks while one runs waits for the next, which serves all who came by then. So no
    answer is older than the question. Of one event loop.

    What was answered stands while `version`, which must not wait, returns the same; where it returns None nothing does.
    """

    def __init__(self, version: Callable[[], Hashable | None] = lambda: None) -> None:
        self._version = version
        self._kept: dict[Hashable, tuple[Hashable, T]] = {}
        self._running: dict[Hashable, asyncio.Task[T]] = {}
        self._next: dict[Hashable, asyncio.Task[T]] = {}

    async def get(self, key: Hashable, call: Callable[[], T], keep: bool = True) -> T:
        """What `call` returns or raises, in a thread; it may be another one's call for the same key. Not to `keep` is
        what time alone may change."""
        if keep and (held := self._kept.get(key)) is not None and held[0] == self._version():
            return held[1]
        turn = self._next.get(key)
        if turn is None or turn.done():  # done before it began: cancelled
            turn = self._next[key] = asyncio.create_task(self._run(key, call, self._running.get(key), keep))
        return await asyncio.shield(turn)  # the others wait for it, too

    async def _run(self, key: Hashable, call: Callable[[], T], before: asyncio.Task[T] | None, keep: bool) -> T:
        if before is not None:
            await asyncio.wait((before,))
        turn = self._running[key] = self._next.pop(key)
        try:
            version = self._version() if keep else None  # before the call: what is written meanwhile makes it another
            answer = await run_in_threadpool(call)
            if version is not None:
                if len(self._kept) >= MOST_KEPT:
                    self._kept.clear()
                self._kept[key] = version, answer
            return answer
        finally:
            if self._running.get(key) is turn:
                del self._running[key]
