"""Events, asked for only where nothing else tells why a Job has no pods or a pod does not start.

One question, for the Warnings of a namespace, answers for every object in it: an API server reads all Events of a
namespace to find those of one object.
"""

import asyncio
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from herdsman.kube.cache import ResourceKey
from herdsman.kube.facts import cause_of_events
from herdsman.kube.pod_facts import Cause
from herdsman.kube.port import Api
from herdsman.kube.trimming import Body

PATIENCE = 3.0
"""Seconds an object may take before its Events are read, and those that one reading is good for."""
EAGER_SECONDS = 30.0
"""So long they are read every PATIENCE seconds, because a cause is to be told within ten seconds; then ever less."""
LONGEST_PAUSE = 60.0
NAMESPACES_A_SECOND = 5
"""Namespaces whose Events are read in any second, at most."""
LOOKS_A_SECOND = 20
"""With more objects waiting they are looked at less often: whoever's Events have news is woken."""


class Answer(NamedTuple):
    """What is known of why an object does not get on."""

    cause: Cause | None
    again: float
    """Seconds after which to ask again."""
    sure: bool = True
    """Whether anybody was asked: with too many questions in a second, some wait for the next."""


@dataclass(frozen=True)
class _Reading:
    """The Warnings of a namespace, as they were."""

    at: float
    causes: Mapping[str, Cause]
    """By the uid of the object."""


@dataclass
class _Waiting:
    """An object that does not get on."""

    uid: str
    cause: Cause | None = None
    pause: float = PATIENCE


class EventCauses:
    """The causes that Events name; `wake` is called with the resources for which there is news."""

    def __init__(self, api: Api, wake: Callable[[ResourceKey], None], clock: Callable[[], float] | None = None) -> None:
        self._api = api
        self._wake = wake
        self._clock = clock or (lambda: asyncio.get_running_loop().time())
        self._read: dict[str, _Reading] = {}
        self._waiting: dict[str, dict[ResourceKey, _Waiting]] = {}
        self._turns: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._second = (0, 0)

    async def cause(self, key: ResourceKey, body: Body, age: float) -> Answer:
        """Return what the Events of a resource's child of this age (in seconds) say, and after how many seconds to ask
        again.
        """
        if age < PATIENCE:
            return Answer(None, PATIENCE - age)
        line = self._waiting.setdefault(key.namespace, {})
        waiting = line.get(key)
        if waiting is None or waiting.uid != body["metadata"]["uid"]:
            waiting = line[key] = _Waiting(body["metadata"]["uid"])
        async with self._turns[key.namespace]:  # who comes while somebody asks takes that answer
            reading = self._read.get(key.namespace)
            if reading is None or self._clock() - reading.at >= waiting.pause:
                if not self._allowed():
                    return Answer(waiting.cause, 1.0, sure=reading is not None)
                reading = await self._list(key)
                if age > EAGER_SECONDS:
                    waiting.pause = min(LONGEST_PAUSE, 2 * waiting.pause)
        waiting.cause = reading.causes.get(waiting.uid)
        return Answer(waiting.cause, max(waiting.pause, len(line) / LOOKS_A_SECOND))

    def gone_on(self, key: ResourceKey) -> None:
        """Forget a resource all of whose children get on, or that is gone."""
        line = self._waiting.get(key.namespace, {})
        line.pop(key, None)
        if not line:
            self._waiting.pop(key.namespace, None)
            reading = self._read.get(key.namespace)
            if reading is not None and self._clock() - reading.at >= PATIENCE:  # the next one's answer, before that
                del self._read[key.namespace]
                self._turns.pop(key.namespace, None)

    async def _list(self, asking: ResourceKey) -> _Reading:
        """Read the Warnings of a namespace, and wake the others for which there is news."""
        listing = await self._api.list_objects("Event", asking.namespace, fieldSelector="type=Warning")
        said = defaultdict[str, list[Body]](list)
        for event in listing.items:
            said[(event.get("involvedObject") or {}).get("uid", "")].append(event)
        causes = {uid: cause for uid, events in said.items() if (cause := cause_of_events(events)) is not None}
        for key, waiting in self._waiting.get(asking.namespace, {}).items():
            if key != asking and causes.get(waiting.uid) != waiting.cause:
                self._wake(key)
        self._read[asking.namespace] = reading = _Reading(self._clock(), causes)
        return reading

    def _allowed(self) -> bool:
        now = int(self._clock())
        second, count = self._second
        count = count + 1 if second == now else 1
        self._second = now, count
        return count <= NAMESPACES_A_SECOND
