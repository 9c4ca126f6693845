"""From what the watches bring to keys in the queue: who has to be looked at again because an object changed."""

from collections.abc import Iterable

from herdsman.api.v1alpha1.registry import KINDS
from herdsman.api.v1alpha1.status import ConditionType
from herdsman.kube.cache import Cache, ResourceKey, object_key, parent_of, version
from herdsman.kube.facts import is_finished
from herdsman.kube.index import Index
from herdsman.kube.models import Models
from herdsman.kube.pod_facts import pod_facts
from herdsman.kube.queue import WorkQueue
from herdsman.kube.trimming import Body

ENDS = (ConditionType.COMPLETE, ConditionType.FAILED)
Place = tuple[str, str]


class Intake:
    """Puts objects into cache and index, and wakes those whom the change concerns."""

    def __init__(self, cache: Cache, index: Index, models: Models, queue: WorkQueue[ResourceKey]) -> None:
        self._cache = cache
        self._index = index
        self._models = models
        self._queue = queue
        self.brought: dict[Place, int] = {}
        """The highest resourceVersion that the watches have brought, by kind and namespace."""
        self.expected: dict[Place, int] = {}
        """The highest one that exists, as our own writes and listings know."""
        self.relisted: set[str] = set()
        """Kinds whose watch started over: what vanished meanwhile has to be found out by a full listing."""

    def event(self, change: str | None, body: Body) -> None:
        """Take one watch event: ADDED, MODIFIED, DELETED, or None for an object that is listed as a watch starts."""
        kind = body["kind"]
        place = kind, body["metadata"]["namespace"]
        self.brought[place] = max(self.brought.get(place, 0), version(body))
        if change is None:
            self.relisted.add(kind)
        if change == "DELETED":
            self.gone(body)
        else:
            self.seen(body)

    def seen(self, body: Body, *, own: bool = False) -> None:
        """Take an object as it is now; of our `own` writes the resource itself needs not hear."""
        key = object_key(body)
        before = self._cache.get(*key)
        if not self._cache.put(body):
            return
        self.expected[key[:2]] = max(self.expected.get(key[:2], 0), version(body))
        now = self._cache.get(*key)
        assert now is not None, "it was just put there"
        me = parent_of(now)
        if key.kind in KINDS:
            assert me is not None
            self._resource(me, before, now, own=own)
        elif me is not None and _tells_more(before, now) and not own:
            if now["kind"] == "Job" and is_finished(now):
                self._queue.add(me, urgent=True)
            else:
                self._queue.add_unhurried(me)

    def gone(self, body: Body) -> None:
        """Take it that an object does not exist any more."""
        me = parent_of(body)
        if not self._cache.drop(body) or me is None:
            return
        concerned = [me]
        if body["kind"] in KINDS:
            concerned += [*self._index.dependants(me), *self._index.rivals(me)]
            self._index.drop(me)
        self._wake(concerned)

    def _resource(self, me: ResourceKey, before: Body | None, now: Body, *, own: bool) -> None:
        if before is None or _generation(before) != _generation(now):
            resource = self._models.specified(now)
            if resource is not None:
                self._index.put(resource)
            else:
                self._index.drop(me)
        if before is None and _is_settled(now):
            self._queue.add_idle(me)  # thousands at a start, of which at most the removal of their Jobs is due
        elif not own and (before is None or _own_state(before) != _own_state(now)):
            self._queue.add(me)
        if before is None or _for_others(before) != _for_others(now):
            self._wake(self._index.dependants(me))

    def _wake(self, keys: Iterable[ResourceKey]) -> None:
        for key in keys:
            self._queue.add(key)


def _generation(body: Body) -> tuple[object, ...]:
    return body["metadata"].get("uid"), body["metadata"].get("generation")


def _is_settled(body: Body) -> bool:
    """Whether the end of the run is recorded, of this very spec."""
    status = body.get("status") or {}
    ends = (item for item in status.get("conditions") or () if item.get("type") in ENDS)
    current = status.get("observedGeneration") == body["metadata"].get("generation")
    return current and any(item.get("status") == "True" for item in ends)


def _own_state(body: Body) -> tuple[object, ...]:
    return *_generation(body), body["metadata"].get("deletionTimestamp"), body.get("status")


def _for_others(body: Body) -> tuple[object, ...]:
    """What of a resource matters to those that name it: not its progress, which changes all the time."""
    status = body.get("status") or {}
    conditions = [(item.get("type"), item.get("status")) for item in status.get("conditions") or ()]
    return *_generation(body), status.get("phase"), status.get("artifact"), conditions


def _tells_more(before: Body | None, now: Body) -> bool:
    """Whether a child's change can matter; most changes of a pod or a Job are bookkeeping."""
    if before is None or before["metadata"].get("uid") != now["metadata"].get("uid"):
        return True
    if before["metadata"].get("deletionTimestamp") != now["metadata"].get("deletionTimestamp"):
        return True
    if now["kind"] == "Pod":
        return pod_facts(before) != pod_facts(now)
    if now["kind"] == "Job":
        return _job_state(before) != _job_state(now)
    return True


def _job_state(job: Body) -> tuple[object, ...]:
    status = job.get("status") or {}
    ends = [(item["type"], item["status"], item.get("reason")) for item in status.get("conditions") or ()]
    return job.get("spec"), status.get("startTime"), status.get("completionTime"), ends
