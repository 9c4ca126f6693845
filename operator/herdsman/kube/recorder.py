"""Posting Events, beside the work: an Event that cannot be posted is dropped and delays nothing."""

import asyncio
import hashlib
import logging
from collections import OrderedDict
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from herdsman.api.meta import API_VERSION
from herdsman.kube.announcements import Announcement
from herdsman.kube.errors import ApiError, Conflict, Unreachable
from herdsman.kube.port import Api
from herdsman.kube.trimming import Body

COMPONENT = "herdsman"
WAITING = 1000
"""Events that may wait to be posted; beyond that the newest are dropped."""
SAME_SECONDS = 600.0
"""The same words about the same object are posted once in this time."""
_REMEMBERED = 10_000
_log = logging.getLogger(__name__)


class Recorder:
    """A queue of Events and the one task that posts them."""

    def __init__(self, api: Api, *, instance: str = COMPONENT, clock: Callable[[], float] | None = None) -> None:
        self._api = api
        self._instance = instance
        self._clock = clock or (lambda: asyncio.get_running_loop().time())
        self._waiting: asyncio.Queue[dict[str, Any]] = asyncio.Queue(WAITING)
        self._posted: OrderedDict[str, float] = OrderedDict()
        self.dropped = 0
        """Events that were not posted."""

    def announce(self, body: Body, announcement: Announcement) -> None:
        """Have an Event about an object posted, unless the same was said of it a moment ago."""
        key, now = _digest(body, announcement), self._clock()
        if now < self._posted.get(key, 0.0):
            return
        event = event_about(body, announcement, self._instance, datetime.now(UTC))
        try:
            self._waiting.put_nowait(event)
        except asyncio.QueueFull:
            self.dropped += 1
            return
        self._posted[key] = now + SAME_SECONDS
        self._posted.move_to_end(key)
        if len(self._posted) > _REMEMBERED:
            self._posted.popitem(last=False)

    async def run(self) -> None:
        """Post Events for ever."""
        while True:
            await self.post(await self._waiting.get())

    async def drain(self) -> None:
        """Post what waits, and return."""
        while not self._waiting.empty():
            await self.post(self._waiting.get_nowait())

    async def post(self, event: dict[str, Any]) -> None:
        """Post one Event; a failure is counted and logged, and that is all."""
        try:
            await self._api.create(event)
        except Conflict:
            pass  # posted before, perhaps by an operator that was killed right after
        except (ApiError, Unreachable) as error:
            self.dropped += 1
            _log.debug("An Event was not posted: %s", error)


def event_about(body: Body, announcement: Announcement, instance: str, now: datetime) -> dict[str, Any]:
    """Return an Event; the same words about the same object within ten minutes have the same name."""
    metadata = body["metadata"]
    span = int(now.timestamp() // SAME_SECONDS)
    stamp = now.strftime("%Y-%m-%dT%H:%M:%SZ")
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {
            "name": f"{metadata['name']}.{_digest(body, announcement)}{span:x}",
            "namespace": metadata["namespace"],
        },
        "involvedObject": {
            "apiVersion": API_VERSION,
            "kind": body["kind"],
            "namespace": metadata["namespace"],
            "name": metadata["name"],
            "uid": metadata.get("uid", ""),
            "resourceVersion": metadata.get("resourceVersion", ""),
        },
        "type": announcement.severity,
        "reason": announcement.reason,
        "message": announcement.message,
        "source": {"component": COMPONENT},
        "reportingComponent": COMPONENT,
        "reportingInstance": instance,
        "firstTimestamp": stamp,
        "lastTimestamp": stamp,
        "count": 1,
    }


def _digest(body: Body, announcement: Announcement) -> str:
    said = "\n".join((body["metadata"].get("uid", ""), *announcement))
    return hashlib.sha256(said.encode()).hexdigest()[:12]
