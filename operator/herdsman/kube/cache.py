"""What the watches last said of every object of ours, so that observing costs the API server nothing.

The cache may lag behind; names and server-side apply make a decision from an old view harmless, and every change
brings an event that has the decision made again. What a broken watch loses, the regular full listing mends.
"""

from collections import defaultdict
from collections.abc import Collection, Iterator
from typing import NamedTuple

from herdsman.api.v1alpha1.model_server import ModelServer
from herdsman.api.v1alpha1.registry import KINDS
from herdsman.core.names import LABEL_ACTIVATES, LABEL_KIND, LABEL_NAME
from herdsman.core.world import Key
from herdsman.kube.trimming import Body, trimmed


class ObjectKey(NamedTuple):
    """The identity of any object in the cluster."""

    kind: str
    namespace: str
    name: str


class ResourceKey(NamedTuple):
    """The identity of one of our resources: what the work queue holds."""

    namespace: str
    key: Key

    def __str__(self) -> str:
        return f"{self.key.kind} {self.namespace}/{self.key.name}"


def object_key(body: Body) -> ObjectKey:
    """Return the identity of an object."""
    return ObjectKey(body["kind"], body["metadata"]["namespace"], body["metadata"]["name"])


def parent_of(body: Body) -> ResourceKey | None:
    """Return the resource that an object is, or belongs to by its labels; None for an object of others."""
    metadata = body["metadata"]
    if body["kind"] in KINDS:
        return ResourceKey(metadata["namespace"], Key(body["kind"], metadata["name"]))
    labels = metadata.get("labels") or {}
    if labels.get(LABEL_KIND) in KINDS and labels.get(LABEL_NAME):
        return ResourceKey(metadata["namespace"], Key(labels[LABEL_KIND], labels[LABEL_NAME]))
    if labels.get(LABEL_ACTIVATES):
        return ResourceKey(metadata["namespace"], Key(ModelServer.KIND, labels[LABEL_ACTIVATES]))
    return None


def is_activator(body: Body) -> bool:
    """Whether an object is a pod that holds requests for a server."""
    return body["kind"] == "Pod" and LABEL_ACTIVATES in (body["metadata"].get("labels") or {})


def controller_uid(body: Body) -> str | None:
    """Return the uid of the object that controls this one."""
    owners = body["metadata"].get("ownerReferences") or ()
    return next((owner["uid"] for owner in owners if owner.get("controller")), None)


def version(body: Body) -> int:
    """Return the resourceVersion as a number; 0 where it is none."""
    text = body["metadata"].get("resourceVersion", "")
    return int(text) if text.isdigit() else 0


def ended(pod: Body) -> Body:
    """Return a pod that is gone as ended, also where it was not heard how."""
    status = pod.get("status") or {}
    over = status.get("phase") in ("Succeeded", "Failed")
    return pod if over else {**pod, "status": {**status, "phase": "Failed", "reason": "Deleted"}}


class Cache:
    """Objects by identity, children by parent, and resources by namespace."""

    def __init__(self) -> None:
        self._objects: dict[ObjectKey, Body] = {}
        self._children: defaultdict[ResourceKey, set[ObjectKey]] = defaultdict(set)
        self._resources: defaultdict[str, set[ObjectKey]] = defaultdict(set)
        self._departed: defaultdict[str, dict[str, Body]] = defaultdict(dict)
        self._activators: set[ObjectKey] = set()

    def __len__(self) -> int:
        return len(self._objects)

    def put(self, body: Body) -> bool:
        """Remember an object as it is now; returns whether that is news.

        An older version of the same object (by its numeric resourceVersion) is no news and changes nothing.
        """
        key = object_key(body)
        known = self._objects.get(key)
        same = known is not None and known["metadata"].get("uid") == body["metadata"].get("uid")
        if known is not None and same and version(body) <= version(known):
            return False
        if known is not None and not same:
            self.drop(known)
        kept = trimmed(body)
        self._objects[key] = kept
        if key.kind in KINDS:
            self._resources[key.namespace].add(key)
        elif (parent := parent_of(kept)) is not None:
            self._children[parent].add(key)
            if is_activator(kept):
                self._activators.add(key)
        return True

    def drop(self, body: Body) -> bool:
        """Forget an object that was deleted; returns whether it was known. A younger one of its name stays.

        The last state of a Job's pod is kept as long as the Job: it may be all that tells how the Job ended.
        """
        key = object_key(body)
        known = self._objects.get(key)
        if known is None or known["metadata"].get("uid") != body["metadata"].get("uid"):
            return False
        del self._objects[key]
        self._activators.discard(key)
        if key.kind in KINDS:
            self._resources[key.namespace].discard(key)
            if not self._resources[key.namespace]:
                del self._resources[key.namespace]
        elif (parent := parent_of(known)) is not None:
            self._children[parent].discard(key)
            if not self._children[parent]:
                del self._children[parent]
        if key.kind == "Pod" and (job := self._job_of(known)) is not None:
            self._departed[job][key.name] = ended(trimmed(body))
        elif key.kind == "Job":
            self._departed.pop(known["metadata"].get("uid", ""), None)
        return True

    def get(self, kind: str, namespace: str, name: str) -> Body | None:
        """Return an object, or None where there is none."""
        return self._objects.get(ObjectKey(kind, namespace, name))

    def children(self, parent: ResourceKey, kind: str) -> list[Body]:
        """Return the objects of a kind that belong to a resource, by name."""
        return [self._objects[key] for key in sorted(self._children.get(parent, ())) if key.kind == kind]

    def departed(self, job_uid: str) -> list[Body]:
        """Return the pods of a Job that are gone, as they were last."""
        return list(self._departed.get(job_uid, {}).values())

    def resources(self, namespace: str) -> list[Body]:
        """Return our resources of one namespace, by kind and name."""
        return [self._objects[key] for key in sorted(self._resources.get(namespace, ()))]

    def all_resources(self) -> Iterator[Body]:
        """Return our resources of all namespaces."""
        for keys in list(self._resources.values()):
            yield from (self._objects[key] for key in sorted(keys))

    def of_kind(self, kind: str) -> list[Body]:
        """Return all objects of a kind."""
        return [body for key, body in self._objects.items() if key.kind == kind]

    def activators(self) -> list[Body]:
        """Return the pods that hold requests for servers."""
        return [self._objects[key] for key in sorted(self._activators)]

    def _job_of(self, pod: Body) -> str | None:
        """Return the uid of the pod's Job, if that is still there."""
        uid = controller_uid(pod)
        names = (owner["name"] for owner in pod["metadata"].get("ownerReferences") or () if owner["uid"] == uid)
        job = next((self.get("Job", pod["metadata"]["namespace"], name) for name in names), None)
        return uid if job is not None and job["metadata"].get("uid") == uid else None

    def vanished(self, kind: str, namespace: str | None, listed: Collection[ObjectKey], at: int) -> list[Body]:
        """Return what a full listing of one kind (in one namespace, or in all) no longer holds.

        `at` is the listing's resourceVersion: what a watch has brought since then has not vanished.
        """
        return [
            body
            for key, body in self._objects.items()
            if key.kind == kind and namespace in (None, key.namespace)
            if key not in listed and version(body) <= at
        ]
