"""Who refers to whom and who writes where, kept beside the cache so that neither question reads every resource."""

from bisect import bisect_left, insort
from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import NamedTuple, TypeVar

from herdsman.api.v1alpha1.registry import AnyResource
from herdsman.core import references, volumes
from herdsman.core.world import Key, WritePath
from herdsman.kube.cache import ResourceKey

K = TypeVar("K")
V = TypeVar("V")


class Entry(NamedTuple):
    """What the index knows of one resource."""

    created: str
    names: frozenset[Key]
    """The resources it names."""
    writes: WritePath | None


class Index:
    """References and writers of all resources."""

    def __init__(self) -> None:
        self._entries: dict[ResourceKey, Entry] = {}
        self._named_by: defaultdict[ResourceKey, set[ResourceKey]] = defaultdict(set)
        self._writers: defaultdict[tuple[str, str], list[tuple[str, str, Key]]] = defaultdict(list)

    def put(self, resource: AnyResource) -> None:
        """Take a resource in, in place of what was known of it."""
        meta = resource.metadata
        me = ResourceKey(meta.namespace, references.key_of(resource))
        own = volumes.writes(resource)
        entry = Entry(
            created=meta.creation_timestamp.isoformat() if meta.creation_timestamp else "",
            names=frozenset(key for _, key in references.direct(resource)),
            writes=own,
        )
        if self._entries.get(me) == entry:
            return
        self.drop(me)
        self._entries[me] = entry
        for key in entry.names:
            self._named_by[ResourceKey(me.namespace, key)].add(me)
        if own is not None:
            insort(self._writers[me.namespace, own.claim], (own.path, entry.created, me.key))

    def drop(self, me: ResourceKey) -> None:
        """Forget a resource."""
        entry = self._entries.pop(me, None)
        if entry is None:
            return
        for key in entry.names:
            _remove(self._named_by, ResourceKey(me.namespace, key), me)
        if entry.writes is not None:
            place = me.namespace, entry.writes.claim
            self._writers[place].remove((entry.writes.path, entry.created, me.key))
            if not self._writers[place]:
                del self._writers[place]

    def dependants(self, of: ResourceKey) -> list[ResourceKey]:
        """Return the resources that name this one, by name."""
        return sorted(self._named_by.get(of, ()))

    def rivals(self, me: ResourceKey) -> list[ResourceKey]:
        """Return the other resources that write the same directory, one inside it or one around it."""
        return [ResourceKey(me.namespace, key) for _, _, key in self._overlapping(me)]

    def elder_writers(self, me: ResourceKey) -> Mapping[WritePath, Key]:
        """Return the rivals that were created before this resource; of the same second, the first by name."""
        entry = self._entries.get(me)
        if entry is None or entry.writes is None:
            return {}
        mine = entry.created, me.key
        return {
            WritePath(entry.writes.claim, path): key
            for path, created, key in self._overlapping(me)
            if (created, key) < mine
        }

    def _overlapping(self, me: ResourceKey) -> Iterator[tuple[str, str, Key]]:
        entry = self._entries.get(me)
        if entry is None or entry.writes is None:
            return
        claim, path = entry.writes
        writers = self._writers[me.namespace, claim]
        ways = dict.fromkeys([".", *(path[:place] for place, letter in enumerate(path) if letter == "/"), path])
        for way in ways:
            yield from (item for item in _from(writers, way, exactly=True) if item[2] != me.key)
        for item in _from(writers, "" if path == "." else f"{path}/", exactly=False):
            if item[0] not in ways and item[2] != me.key:
                yield item


def _from(writers: list[tuple[str, str, Key]], path: str, *, exactly: bool) -> Iterator[tuple[str, str, Key]]:
    """Yield the writers of this path, or of all paths that start with it; the list is sorted."""
    for place in range(bisect_left(writers, (path,)), len(writers)):
        found = writers[place]
        if not (found[0] == path if exactly else found[0].startswith(path)):
            return
        yield found


def _remove(index: defaultdict[K, set[V]], key: K, member: V) -> None:
    index[key].discard(member)
    if not index[key]:
        del index[key]
