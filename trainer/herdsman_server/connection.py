"""Notices clients that leave before their answer is complete."""

import asyncio
import time
from collections.abc import AsyncIterator
from typing import TypeVar

from starlette.requests import Request

POLL_SECONDS = 0.2
"""How often a waiting request looks whether its client is still there."""

T = TypeVar("T")


class ClientLeftError(Exception):
    """The client closed the connection."""


async def while_connected(request: Request, events: AsyncIterator[T]) -> AsyncIterator[T]:
    """Pass events on as long as the client is there; raises ClientLeftError within POLL_SECONDS after it left."""
    looked = time.monotonic()
    following: asyncio.Future[T] | None = None
    try:
        while True:
            following = following or asyncio.ensure_future(anext(events))
            await asyncio.wait({following}, timeout=POLL_SECONDS)
            if time.monotonic() - looked >= POLL_SECONDS:
                looked = time.monotonic()
                if await request.is_disconnected():
                    raise ClientLeftError
            if following.done():
                try:
                    event = following.result()
                except StopAsyncIteration:
                    return
                following = None
                yield event
    finally:
        if following is not None:
            following.cancel()
