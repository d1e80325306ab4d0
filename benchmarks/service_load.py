"""Requests at a service over real sockets, cheap enough to leave the cores to it: HTTP/1.1 written by hand."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass, field

PATIENCE_SECONDS = 30
KEPT_SECONDS = 4  # an idle connection; the server closes it after 5


@dataclass
class Load:
    """What came of a load: seconds from when each request was due to its last byte, in the order of the answers, and
    the seconds that all took."""

    seconds: float = 0.0
    latencies: list[float] = field(default_factory=list)
    statuses: dict[int, int] = field(default_factory=dict)

    def count(self, latency: float, status: int) -> None:
        self.latencies.append(latency)
        self.statuses[status] = self.statuses.get(status, 0) + 1

    @property
    def rate(self) -> float:
        return len(self.latencies) / self.seconds


class Connection(asyncio.Protocol):
    """One connection that is kept; one request at a time."""

    def __init__(self) -> None:
        self._received = bytearray()
        self._answer: asyncio.Future[int] | None = None
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    async def ask(self, request: bytes) -> int:
        """The status of the answer, once all of it is there."""
        assert self._transport is not None
        self._answer = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        return await self._answer

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, found, body = self._received.partition(b"\r\n\r\n")
        if not found or self._answer is None or self._answer.done():
            return
        length = int(head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0])
        if len(body) >= length:
            self._received.clear()
            self._answer.set_result(int(head[9:12]))

    def connection_lost(self, error: Exception | None) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(error or ConnectionError("the service closed the connection"))

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()


def open_loop(address: tuple[str, int], requests: Iterator[bytes], rate: float, seconds: float) -> Load:
    """`rate` requests a second on schedule, whatever the answers do. A latency counts from when its request was due, so
    a wait of the load generator counts, too."""
    return asyncio.run(_open_loop(address, requests, rate, seconds))


def closed_loop(address: tuple[str, int], requests: Iterator[bytes], connections: int, seconds: float) -> Load:
    """Each connection sends its next request as soon as the one before was answered, until the time is over or there is
    no further one."""
    return asyncio.run(_closed_loop(address, requests, connections, seconds))


async def _open_loop(address: tuple[str, int], requests: Iterator[bytes], rate: float, seconds: float) -> Load:
    loop, load = asyncio.get_running_loop(), Load()
    idle, opened = list[tuple[Connection, float]](), list[Connection]()  # idle ones with since when

    async def send(request: bytes, due: float) -> None:
        if idle and idle[-1][1] > loop.time() - KEPT_SECONDS:
            connection = idle.pop()[0]
        else:
            connection = (await loop.create_connection(Connection, *address))[1]
            opened.append(connection)
        status = await connection.ask(request)
        load.count(loop.time() - due, status)
        idle.append((connection, loop.time()))

    start = loop.time() + 0.05
    async with asyncio.timeout(seconds + PATIENCE_SECONDS), asyncio.TaskGroup() as sent:
        for number in range(round(rate * seconds)):
            due = start + number / rate
            if (early := due - loop.time()) > 0:
                await asyncio.sleep(early)
            sent.create_task(send(next(requests), due))
    load.seconds = loop.time() - start
    for connection in opened:
        connection.close()
    return load


async def _closed_loop(address: tuple[str, int], requests: Iterator[bytes], connections: int, seconds: float) -> Load:
    loop, load = asyncio.get_running_loop(), Load()
    opened = [(await loop.create_connection(Connection, *address))[1] for _ in range(connections)]
    start = loop.time()

    async def ask(connection: Connection) -> None:
        for request in requests:
            if (sent := loop.time()) >= start + seconds:
                break
            status = await connection.ask(request)
            load.count(loop.time() - sent, status)

    async with asyncio.timeout(seconds + PATIENCE_SECONDS), asyncio.TaskGroup() as asking:
        for connection in opened:
            asking.create_task(ask(connection))
    load.seconds = loop.time() - start
    for connection in opened:
        connection.close()
    return load
