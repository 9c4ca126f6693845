"""What all reconciliations of one operator share."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime

from herdsman.core.plan_types import Manifest
from herdsman.core.world import Key
from herdsman.kube.cache import Cache, ResourceKey
from herdsman.kube.claims import Claims
from herdsman.kube.demand import Demands
from herdsman.kube.event_causes import EventCauses
from herdsman.kube.index import Index
from herdsman.kube.intake import Intake
from herdsman.kube.live import LiveReports, Target
from herdsman.kube.models import Models
from herdsman.kube.pod_facts import Cause
from herdsman.kube.port import Api
from herdsman.kube.queue import WorkQueue
from herdsman.kube.recorder import Recorder

FOREIGN_SECONDS = 25.0
"""After this long a name that was taken is tried again."""


@dataclass(frozen=True)
class Refusal:
    """A child that the API server did not accept."""

    cause: Cause
    job: Manifest | None
    """The Job that was to be made, for a run."""
    again: float
    """When to try again, on the loop's clock."""
    pause: float


def _loop_time() -> float:
    return asyncio.get_running_loop().time()


def _utc_now() -> datetime:
    return datetime.now(UTC)


@dataclass
class Shell:
    """One operator's memory and its connection; every decision can be made again without it."""

    api: Api
    cache: Cache
    index: Index
    models: Models
    queue: WorkQueue[ResourceKey]
    intake: Intake
    claims: Claims
    events: EventCauses
    recorder: Recorder
    live: LiveReports
    demands: Demands
    refusals: dict[ResourceKey, Refusal] = field(default_factory=dict)
    unmade: dict[ResourceKey, dict[Key, Refusal]] = field(default_factory=dict)
    """Optional children that were refused."""
    clock: Callable[[], float] = _loop_time
    """Seconds, for pauses and for what is remembered a while."""
    today: Callable[[], datetime] = _utc_now
    """The present time, for facts and statuses."""
    untold: dict[ResourceKey, float] = field(default_factory=dict)
    """Resources whose children were just made and whose status does not tell of it yet, and until when it need not."""
    looked: set[str] = field(default_factory=set)
    """uids of finished Jobs whose pods were listed once more."""
    _foreign: dict[tuple[str, Key], float] = field(default_factory=dict)

    def take_for_foreign(self, namespace: str, key: Key) -> None:
        """Remember that an object of this name belongs to somebody else."""
        self._foreign[namespace, key] = self.clock() + FOREIGN_SECONDS

    def foreign(self, namespace: str) -> frozenset[Key]:
        """Return the names in a namespace that were found to be somebody else's a moment ago."""
        now = self.clock()
        for place in [place for place, until in self._foreign.items() if until <= now]:
            del self._foreign[place]
        return frozenset(key for where, key in self._foreign if where == namespace)

    def forget(self, key: ResourceKey) -> None:
        """Drop what is remembered of a resource that is gone."""
        self.refusals.pop(key, None)
        self.unmade.pop(key, None)
        self.untold.pop(key, None)
        self.events.gone_on(key)

    def prune(self) -> None:
        """Drop what is remembered of Jobs and pods that are gone."""
        alive = {body["metadata"]["uid"] for kind in ("Job", "Pod") for body in self.cache.of_kind(kind)}
        self.looked &= alive
        self.live.keep(alive)
        self.demands.keep(alive)


def make_shell(
    api: Api,
    fetch: Callable[[Target], Awaitable[bytes]],
    *,
    clock: Callable[[], float] = _loop_time,
    today: Callable[[], datetime] = _utc_now,
) -> Shell:
    """Return an empty shell over a connection."""
    cache, index, models = Cache(), Index(), Models()
    queue: WorkQueue[ResourceKey] = WorkQueue(namespace_of=lambda key: key.namespace, clock=clock)
    return Shell(
        api=api,
        cache=cache,
        index=index,
        models=models,
        queue=queue,
        intake=Intake(cache, index, models, queue),
        claims=Claims(api, clock),
        events=EventCauses(api, queue.add, clock),
        recorder=Recorder(api, clock=clock),
        live=LiveReports(fetch, clock),
        demands=Demands(fetch),
        clock=clock,
        today=today,
    )
