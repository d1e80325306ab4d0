"""One question to the database for all who ask the same at once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

from starlette.concurrency import run_in_threadpool

T = TypeVar("T")


class Turns(Generic[T]):
    """Calls in turns, by key: who asks while one runs waits for the next, which serves all who came by then. So no
    answer is older than the question. Of one event loop."""

    def __init__(self) -> None:
        self._running: dict[Hashable, asyncio.Task[T]] = {}
        self._next: dict[Hashable, asyncio.Task[T]] = {}

    async def get(self, key: Hashable, call: Callable[[], T]) -> T:
        """What `call` returns or raises, in a thread; it may be another one's call for the same key."""
        turn = self._next.get(key)
        if turn is None or turn.done():  # done before it began: cancelled
            turn = self._next[key] = asyncio.create_task(self._run(key, call, self._running.get(key)))
        return await asyncio.shield(turn)  # the others wait for it, too

    async def _run(self, key: Hashable, call: Callable[[], T], before: asyncio.Task[T] | None) -> T:
        if before is not None:
            await asyncio.wait((before,))
        turn = self._running[key] = self._next.pop(key)
        try:
            return await run_in_threadpool(call)
        finally:
            if self._running.get(key) is turn:
                del self._running[key]
