"""Notices clients that leave before their answer is complete."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import TypeVar

from starlette.requests import Request

POLL_SECONDS = 0.2
"""How often a waiting request looks whether its client is still there."""

T = TypeVar("T")


class ClientLeftError(Exception):
    """The client closed the connection."""


async def while_connected(request: Request, events: AsyncIterator[T], leave: Callable[[], None]) -> AsyncIterator[T]:
    """Pass events on; calls `leave`, after which they should end, within POLL_SECONDS after the client left."""
    watching = asyncio.create_task(_watch(request, leave))
    try:
        async for event in events:
            yield event
    finally:
        watching.cancel()


async def _watch(request: Request, leave: Callable[[], None]) -> None:
    while not await request.is_disconnected():
        await asyncio.sleep(POLL_SECONDS)
    leave()
