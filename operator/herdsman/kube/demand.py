"""How much is asked of servers that may be scaled to zero: their activators are asked once a second.

Each answers /demand with {"requests": 2, "idleSeconds": 0}. One that does not answer makes the demand unknown, and what
is unknown changes nothing.
"""

import asyncio
import json
from collections.abc import Awaitable, Callable, Container, Iterable, Sequence

import aiohttp

from herdsman.core.activator import CONTROL_PORT
from herdsman.core.world import Demand
from herdsman.kube.cache import ResourceKey, parent_of
from herdsman.kube.live import AT_ONCE, Target
from herdsman.kube.trimming import Body

DEMAND_SECONDS = 1.0
PATH = "/demand"


class Demands:
    """The last answer of every activator, by its pod's uid."""

    def __init__(self, fetch: Callable[[Target], Awaitable[bytes]]) -> None:
        self._fetch = fetch
        self._answers: dict[str, Demand] = {}
        self._turns = asyncio.Semaphore(AT_ONCE)

    def of(self, pods: Sequence[Body]) -> Demand | None:
        """Return what the activators of one server say together; None where one of them has not answered.

        Those that are about to end count as well, for they may hold requests until then.
        """
        running = [target for pod in pods if (target := target_of(pod)) is not None]
        answers = [self._answers.get(target.uid) for target in running]
        known = [answer for answer in answers if answer is not None]
        if not known or len(known) < len(answers):
            return None
        return Demand(sum(each.requests for each in known), min(each.idle_seconds for each in known))

    async def poll(self, pods: Iterable[Body]) -> list[ResourceKey]:
        """Ask the activators; returns the servers of which it is known now, or not any more, that somebody asks."""
        targets = [target for pod in pods if (target := target_of(pod)) is not None]
        before = {target: self._asked(target) for target in targets}
        await asyncio.gather(*(self._ask(target) for target in targets))
        return list(dict.fromkeys(target.parent for target in targets if before[target] != self._asked(target)))

    def keep(self, uids: Container[str]) -> None:
        """Drop what all pods but these have said."""
        self._answers = {uid: answer for uid, answer in self._answers.items() if uid in uids}

    def _asked(self, target: Target) -> bool | None:
        answer = self._answers.get(target.uid)
        return answer.requests > 0 if answer is not None else None

    async def _ask(self, target: Target) -> None:
        async with self._turns:
            try:
                self._answers[target.uid] = read_demand(await self._fetch(target))
            except (aiohttp.ClientError, TimeoutError, OSError, ValueError):
                self._answers.pop(target.uid, None)


def target_of(pod: Body) -> Target | None:
    """Return where a running activator is asked."""
    metadata, status = pod["metadata"], pod.get("status") or {}
    parent = parent_of(pod)
    port = (metadata.get("annotations") or {}).get(CONTROL_PORT, "")
    if parent is None or status.get("phase") != "Running" or not status.get("podIP") or not port.isdigit():
        return None
    return Target(metadata["uid"], parent, status["podIP"], int(port), PATH)


def read_demand(data: bytes) -> Demand:
    """Read an activator's answer; raises ValueError for anything else."""
    document = json.loads(data)
    if not isinstance(document, dict):
        raise ValueError("a demand is an object")
    requests, idle = document.get("requests"), document.get("idleSeconds")
    if not isinstance(requests, int | float) or not isinstance(idle, int | float) or requests < 0:
        raise ValueError("a demand says requests and idleSeconds")
    return Demand(int(requests), float(idle))
