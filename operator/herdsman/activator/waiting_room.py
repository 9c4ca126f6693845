"""Where requests wait for a replica: a limited number, for a limited time, with one knock at the door for all."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable

KNOCK_SECONDS = 0.2
"""Between two tries to reach a replica while anybody waits."""
CONNECT_SECONDS = 2.0
"""How long one try may take."""


class RoomFullError(Exception):
    """As many requests wait as are allowed."""


class StillAsleepError(Exception):
    """No replica answered in time."""


class WaitingRoom:
    """Lets requests wait until a connection to a replica can be opened."""

    def __init__(self, places: int, knock: Callable[[], Awaitable[bool]]) -> None:
        self._places = places
        self._knock = knock
        self._waiting: set[asyncio.Future[None]] = set()
        self._knocking: asyncio.Task[None] | None = None

    @property
    def waiting(self) -> int:
        """How many wait."""
        return len(self._waiting)

    async def wait(self, deadline: float) -> None:
        """Wait until a replica can be reached; raises RoomFullError, and StillAsleepError at `deadline` (loop time)."""
        if len(self._waiting) >= self._places:
            raise RoomFullError
        loop = asyncio.get_running_loop()
        turn: asyncio.Future[None] = loop.create_future()
        self._waiting.add(turn)
        if self._knocking is None or self._knocking.done():
            self._knocking = loop.create_task(self._until_opened())
        try:
            async with asyncio.timeout_at(deadline):
                await turn
        except TimeoutError:
            raise StillAsleepError from None
        finally:
            self._waiting.discard(turn)

    async def _until_opened(self) -> None:
        while self._waiting:
            if await self._knock():
                for turn in self._waiting:
                    if not turn.done():
                        turn.set_result(None)
                return
            await asyncio.sleep(KNOCK_SECONDS)


async def can_connect(host: str, port: int) -> bool:
    """Whether a connection can be opened just now: to a Service, that is whether a replica is ready."""
    try:
        async with asyncio.timeout(CONNECT_SECONDS):
            _, writer = await asyncio.open_connection(host, port)
    except (OSError, TimeoutError):
        return False
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()
    return True
