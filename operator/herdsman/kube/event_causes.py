"""Events, asked for only where nothing else tells why a Job has no pods or a pod does not start."""

import asyncio
from collections.abc import Callable, Container
from dataclasses import dataclass
from typing import NamedTuple

from herdsman.kube.facts import cause_of_events
from herdsman.kube.pod_facts import Cause
from herdsman.kube.port import Api
from herdsman.kube.trimming import Body

PATIENCE = 3.0
"""Seconds an object may take before its Events are read."""
EAGER_SECONDS = 30.0
"""So long they are read every PATIENCE seconds, because a cause is to be told within ten seconds; then ever less."""
LONGEST_PAUSE = 60.0
A_SECOND = 5
"""Lists of Events in any second, at most: a slow controller is not helped by a thousand questions."""


class Answer(NamedTuple):
    """What is known of why an object does not get on."""

    cause: Cause | None
    again: float
    """Seconds after which to ask again."""
    sure: bool = True
    """Whether anybody was asked: with too many questions in a second, some wait for the next."""


@dataclass
class _Asked:
    cause: Cause | None
    again: float
    """When to ask again."""
    pause: float


class EventCauses:
    """The causes that Events name, by the uid of their object."""

    def __init__(self, api: Api, clock: Callable[[], float] | None = None) -> None:
        self._api = api
        self._clock = clock or (lambda: asyncio.get_running_loop().time())
        self._asked: dict[str, _Asked] = {}
        self._second = (0, 0)

    async def cause(self, body: Body, age: float) -> Answer:
        """Return what the Events of an object of this age (in seconds) say, and after how many seconds to ask again."""
        now = self._clock()
        if age < PATIENCE:
            return Answer(None, PATIENCE - age)
        uid = body["metadata"]["uid"]
        known = self._asked.get(uid)
        if known is not None and now < known.again:
            return Answer(known.cause, known.again - now)
        if not self._allowed(now):
            return Answer(known.cause, PATIENCE) if known else Answer(None, 1.0, sure=False)
        listing = await self._api.list_objects(
            "Event", body["metadata"]["namespace"], fieldSelector=f"involvedObject.uid={uid}"
        )
        pause = min(LONGEST_PAUSE, 2 * known.pause) if known is not None and age > EAGER_SECONDS else PATIENCE
        found = cause_of_events(listing.items)
        self._asked[uid] = _Asked(found, now + pause, pause)
        return Answer(found, pause)

    def keep(self, uids: Container[str]) -> None:
        """Drop what is known of all objects but these."""
        self._asked = {uid: asked for uid, asked in self._asked.items() if uid in uids}

    def _allowed(self, now: float) -> bool:
        second, count = self._second
        count = count + 1 if second == int(now) else 1
        self._second = int(now), count
        return count <= A_SECOND
