"""Signs of life: whether the event loop turns, and whether the watches bring what there is."""

import asyncio
from collections import deque
from collections.abc import Callable, Iterable

from herdsman.kube.intake import Intake, Place

TICK = 1.0
LAG_WINDOW = 60
"""Ticks whose lateness is remembered."""
LONGEST_LAG = 30.0
"""Seconds the loop may be late before the process counts as stuck."""
LONGEST_SILENCE = 300.0
"""Seconds a watch may be behind what is known to exist."""


class LoopPulse:
    """Measures how late the event loop is."""

    def __init__(self) -> None:
        self._late: deque[float] = deque(maxlen=LAG_WINDOW)

    async def run(self) -> None:
        """Tick for ever."""
        loop = asyncio.get_running_loop()
        while True:
            due = loop.time() + TICK
            await asyncio.sleep(TICK)
            self._late.append(max(0.0, loop.time() - due))

    @property
    def lag(self) -> float:
        """Seconds the loop was late at worst in the last minute."""
        return max(self._late, default=0.0)


class WatchPulse:
    """Notices watches that are silent although there is something to tell.

    Every write of our own and every full listing says which version exists; a watch that works brings it within
    seconds. That holds without knowing anything about the connection.
    """

    def __init__(self, intake: Intake, kinds: Iterable[str], clock: Callable[[], float] | None = None) -> None:
        self._intake = intake
        self._kinds = frozenset(kinds)
        self._clock = clock or (lambda: asyncio.get_running_loop().time())
        self._behind: dict[Place, float] = {}

    def silent(self) -> list[str]:
        """Return the watches that have been behind for too long, as sentences."""
        now = self._clock()
        behind = {
            place
            for place, there in self._intake.expected.items()
            if place[0] in self._kinds and self._intake.brought.get(place, 0) < there
        }
        self._behind = {place: self._behind.get(place, now) for place in behind}
        return [
            f"the watch of {kind} in {namespace} has been silent for {now - since:.0f} s"
            for (kind, namespace), since in sorted(self._behind.items())
            if now - since > LONGEST_SILENCE
        ]
