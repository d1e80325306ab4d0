"""Server-sent events, as they come and while they come."""

from __future__ import annotations

import asyncio
import json
import queue
import threading
import time
from collections.abc import Iterator
from types import TracebackType
from typing import Any, NamedTuple, NoReturn, Self

from fastapi import FastAPI


class Event(NamedTuple):
    name: str
    id: str | None
    data: Any


def parse(text: str) -> Iterator[Event]:
    """Whole events alone; data is JSON as the standard has it."""

    def refuse(constant: str) -> NoReturn:
        raise AssertionError(f"{constant} is no JSON")

    for block in text.split("\n\n"):
        fields = [line.partition(": ")[::2] for line in block.splitlines() if not line.startswith(":")]
        known = dict(fields)
        assert len(known) == len(fields), block
        if "data" in known:
            yield Event(known["event"], known.get("id"), json.loads(known["data"], parse_constant=refuse))


class Stream:
    """One request to an application in this process, answered in a thread of its own while the test goes on; the
    block's end leaves it."""

    def __init__(self, app: FastAPI, path: str, **headers: str) -> None:
        self.status, self.text, self.headers = 0, "", dict[str, str]()
        self._app, self._path = app, path
        self._given = {"host": "127.0.0.1", **{name.replace("_", "-"): value for name, value in headers.items()}}
        self._left, self._came = threading.Event(), queue.Queue[str | None]()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._ask()), daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._left.set()
        self._thread.join(20)
        assert not self._thread.is_alive()

    def until(self, name: str, seconds: float = 20) -> list[Event]:
        """The events up to the next one of that name."""
        found: list[Event] = []
        end = time.monotonic() + seconds
        while True:
            text = self._came.get(timeout=max(0.01, end - time.monotonic()))
            assert text is not None, f"it ended before {name}: {found}"
            for event in parse(text):
                found.append(event)
                if event.name == name:
                    return found

    def rest(self, seconds: float = 20) -> list[Event]:
        """The events until the service ends the stream."""
        found: list[Event] = []
        end = time.monotonic() + seconds
        while (text := self._came.get(timeout=max(0.01, end - time.monotonic()))) is not None:
            found += parse(text)
        return found

    async def _ask(self) -> None:
        scope = {
            "type": "http", "method": "GET", "path": self._path, "raw_path": self._path.encode(), "query_string": b"",
            "scheme": "http", "headers": [(name.encode(), value.encode()) for name, value in self._given.items()],
            "server": ("127.0.0.1", 80), "client": ("127.0.0.1", 1), "asgi": {"version": "3.0"}, "http_version": "1.1",
        }  # fmt: skip
        try:
            await self._app(scope, self._receive, self._send)
        finally:
            self._came.put(None)

    async def _receive(self) -> Any:
        while not self._left.is_set():
            await asyncio.sleep(0.02)
        return {"type": "http.disconnect"}

    async def _send(self, message: Any) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self.headers = {name.decode(): value.decode() for name, value in message["headers"]}
        elif text := message.get("body", b"").decode():
            self.text += text
            self._came.put(text)
