"""What the watches last said of every object of ours, so that observing costs the API server nothing.

The cache may lag behind; names and server-side apply make a decision from an old view harmless, and every change
brings an event that has the decision made again. What a broken watch loses, the regular full listing mends.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from herdsman.api.v1alpha1.registry import KINDS
from herdsman.core.names import LABEL_KIND, LABEL_NAME
from herdsman.core.world import Key

Body = Mapping[str, Any]


class ObjectKey(NamedTuple):
    """The identity of any object in the cluster."""

    kind: str
    namespace: str
    name: str


class ResourceKey(NamedTuple):
    """The identity of one of our resources: what the work queue holds."""

    namespace: str
    key: Key


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
    return None


class Cache:
    """Objects by identity, children by parent, and resources by namespace."""

    def __init__(self) -> None:
        self._objects: dict[ObjectKey, Body] = {}
        self._children: defaultdict[ResourceKey, set[ObjectKey]] = defaultdict(set)
        self._resources: defaultdict[str, set[ObjectKey]] = defaultdict(set)

    def __len__(self) -> int:
        return len(self._objects)

    def put(self, body: Body) -> bool:
        """Remember an object as it is now; returns whether that is news.

        An older version of the same object (by its numeric resourceVersion) is no news and changes nothing.
        """
        key = object_key(body)
        known = self._objects.get(key)
        same = known is not None and known["metadata"].get("uid") == body["metadata"].get("uid")
        if known is not None and same and _version(body) <= _version(known):
            return False
        self._objects[key] = body
        if key.kind in KINDS:
            self._resources[key.namespace].add(key)
        elif (parent := parent_of(body)) is not None:
            self._children[parent].add(key)
        return True

    def drop(self, body: Body) -> bool:
        """Forget an object that was deleted; returns whether it was known. A younger one of its name stays."""
        key = object_key(body)
        known = self._objects.get(key)
        if known is None or known["metadata"].get("uid") != body["metadata"].get("uid"):
            return False
        del self._objects[key]
        if key.kind in KINDS:
            self._resources[key.namespace].discard(key)
        elif (parent := parent_of(known)) is not None:
            self._children[parent].discard(key)
            if not self._children[parent]:
                del self._children[parent]
        return True

    def get(self, kind: str, namespace: str, name: str) -> Body | None:
        """Return an object, or None where there is none."""
        return self._objects.get(ObjectKey(kind, namespace, name))

    def children(self, parent: ResourceKey, kind: str) -> list[Body]:
        """Return the objects of a kind that belong to a resource, by name."""
        return [self._objects[key] for key in sorted(self._children.get(parent, ())) if key.kind == kind]

    def resources(self, namespace: str) -> list[Body]:
        """Return our resources of one namespace, by kind and name."""
        return [self._objects[key] for key in sorted(self._resources.get(namespace, ()))]

    def replace(self, kind: str, namespace: str | None, listed: Iterable[Body], version: int) -> list[Body]:
        """Take a full listing of one kind (in one namespace, or in all) as the truth; returns what has vanished.

        `version` is the listing's resourceVersion: what a watch has brought since then is not vanished.
        """
        present = {object_key(body): body for body in listed}
        vanished = [
            body
            for key, body in list(self._objects.items())
            if key.kind == kind and namespace in (None, key.namespace)
            if key not in present and _version(body) <= version
        ]
        for body in vanished:
            self.drop(body)
        for body in present.values():
            self.put(body)
        return vanished


def _version(body: Body) -> int:
    version = body["metadata"].get("resourceVersion", "")
    return int(version) if version.isdigit() else 0
