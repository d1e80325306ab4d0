"""Clients that are slow, or have gone without a word: each piece of what they send and take has its time."""

from __future__ import annotations

import asyncio

from starlette.types import Message, Receive, Send

SECONDS = 30.0  # for one piece


async def received(receive: Receive) -> Message:
    """
    Raises:
        TimeoutError: nothing more came.
    """
    async with asyncio.timeout(SECONDS):
        return await receive()


async def sent(send: Send, message: Message) -> None:
    """
    Raises:
        TimeoutError: what was sent before is still not taken.
    """
    async with asyncio.timeout(SECONDS):
        await send(message)
