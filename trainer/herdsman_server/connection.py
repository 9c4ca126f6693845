"""Notices clients that leave before their answer is complete."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import TypeVar

from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

T = TypeVar("T")


class ClientLeftError(Exception):
    """The client closed the connection."""


async def while_connected(request: Request, events: AsyncIterator[T], leave: Callable[[], None]) -> AsyncIterator[T]:
    """Pass events on; calls `leave`, after which they should end, when the client leaves. The body has been read."""
    watching = asyncio.create_task(_watch(request, leave))
    try:
        async for event in events:
            yield event
    finally:
        watching.cancel()


class WatchedStream(StreamingResponse):
    """A stream whose client is watched by `while_connected`: a second watch would only delay the first piece."""

    async def __call__(self, _scope: Scope, _receive: Receive, send: Send) -> None:
        """Send the pieces."""
        await self.stream_response(send)


async def _watch(request: Request, leave: Callable[[], None]) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
    leave()
