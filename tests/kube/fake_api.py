"""An API server in memory, as strict as the real one where the shell could go wrong.

It knows resourceVersions, uids, server-side apply with the fields of each manager, the status subresource,
preconditions, fields that cannot change, ownership and garbage collection, and it can fail or kill the caller at any
request.
"""

import json
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from typing import Any

from herdsman.api.v1alpha1.registry import KINDS
from herdsman.kube.errors import ApiError, Conflict, NotFound
from herdsman.kube.port import Listing

Body = dict[str, Any]
Where = tuple[str, str, str]
Path = tuple[str, ...]

_IMMUTABLE_JOB = ("template", "completions", "completionMode", "selector", "podFailurePolicy")
_WRITES = ("create", "apply", "merge", "delete")


class Crash(BaseException):
    """The operator's process was killed here."""


class Call:
    """One request, as fault injection and the log see it."""

    def __init__(self, number: int, verb: str, kind: str, name: str, subresource: str | None = None):
        self.number, self.verb, self.kind, self.name, self.subresource = number, verb, kind, name, subresource

    def __repr__(self):
        return f"{self.verb} {self.kind}{'/' + self.subresource if self.subresource else ''} {self.name}"


class FakeApi:
    """The requests of herdsman.kube.port.Api, answered from memory."""

    def __init__(self, stamp: Callable[[], str] = lambda: "2026-01-02T03:04:05Z"):
        self.stamp = stamp
        self.objects: dict[Where, Body] = {}
        self.fields: dict[Where, dict[str, set[Path]]] = defaultdict(dict)
        self.calls: list[Call] = []
        self.before: Callable[[Call], None] = lambda _call: None
        self.after: Callable[[Call], None] = lambda _call: None
        self.unknown: set[str] = set()
        """Kinds whose CustomResourceDefinition is missing."""
        self.listeners: list[Callable[[str, Body], None]] = []
        self._version = 100
        self._uids = 0

    # what the shell asks

    async def get(self, kind, namespace, name):
        with self._call("get", kind, name):
            return _copied(self._find((kind, namespace, name)))

    async def pages(self, kind, namespace, **query) -> AsyncIterator[Listing]:
        with self._call("list", kind, ""):
            yield Listing([_copied(body) for body in self._matching(kind, namespace, query)], self._version)

    async def list_objects(self, kind, namespace, **query):
        pages = [page async for page in self.pages(kind, namespace, **query)]
        return pages[0]

    async def create(self, body):
        kind, metadata = body["kind"], body["metadata"]
        with self._call("create", kind, metadata["name"]):
            return _copied(self.add(body))

    async def apply(self, body, *, subresource=None, manager="herdsman", force=True):
        kind, metadata = body["kind"], body["metadata"]
        where = kind, metadata["namespace"], metadata["name"]
        with self._call("apply", kind, metadata["name"], subresource):
            assert "managedFields" not in metadata
            if where not in self.objects:
                if subresource or metadata.get("uid"):
                    raise NotFound(404, "NotFound", f"{kind} {metadata['name']} not found")
                bare = {"apiVersion": body["apiVersion"], "kind": kind, "metadata": {"name": metadata["name"]}}
                bare["metadata"]["namespace"] = metadata["namespace"]
                self._store(where, bare, announce=False)
            self._check_preconditions(where, metadata)
            manager = f"{manager}{'/' + subresource if subresource else ''}"
            if not force:
                self._check_conflicts(where, body, manager)
            return _copied(self._apply(where, body, subresource, manager))

    async def merge(self, kind, namespace, name, patch):
        with self._call("merge", kind, name):
            where = kind, namespace, name
            self._find(where)
            self._check_preconditions(where, patch.get("metadata", {}))
            changed = _merged(self.objects[where], patch)
            self._check_unchangeable(where, changed)
            return _copied(self._replace(where, changed))

    async def delete(self, kind, namespace, name, *, uid=None):
        with self._call("delete", kind, name):
            self._check_preconditions((kind, namespace, name), {"uid": uid} if uid else {})
            self.remove(kind, namespace, name)

    # what users, controllers and kubelets do

    def add(self, body: Mapping[str, Any]) -> Body:
        """Create an object as anybody may."""
        where = body["kind"], body["metadata"]["namespace"], body["metadata"]["name"]
        if where in self.objects:
            raise Conflict(409, "AlreadyExists", f"{where[0]} {where[2]} already exists")
        stored = _copied(dict(body))
        if where[0] in KINDS:
            stored.pop("status", None)
        stored["metadata"]["generation"] = 1
        return self._store(where, stored)

    def change(self, kind: str, namespace: str, name: str, patch: Mapping[str, Any]) -> Body:
        """Merge a patch as a controller, a kubelet or a user does; what it changes is nobody else's any more."""
        where = kind, namespace, name
        old = self._find(where)
        changed = _merged(old, patch)
        for held in self.fields[where].values():
            held -= {path for path in held if _at(old, path) != _at(changed, path)}
        return self._replace(where, changed)

    def remove(self, kind: str, namespace: str, name: str) -> None:
        """Delete an object and everything it owns."""
        body = self._find((kind, namespace, name))
        del self.objects[kind, namespace, name]
        self.fields.pop((kind, namespace, name), None)
        gone = {**body, "metadata": {**body["metadata"], "resourceVersion": self._next_version()}}
        self._announce("DELETED", gone)
        uid = body["metadata"]["uid"]
        for where, other in list(self.objects.items()):
            owners = other["metadata"].get("ownerReferences") or ()
            if where in self.objects and any(owner["uid"] == uid for owner in owners):
                self.remove(*where)

    def of(self, kind: str) -> list[Body]:
        return [body for (found, _, _), body in sorted(self.objects.items()) if found == kind]

    @property
    def writes(self) -> list[Call]:
        return [call for call in self.calls if call.verb in _WRITES]

    # inside

    def _call(self, verb, kind, name, subresource=None):
        return _Calling(self, Call(len(self.calls), verb, kind, name, subresource))

    def _check_conflicts(self, where: Where, body: Mapping[str, Any], manager: str) -> None:
        for path, value in _leaves({"spec": body["spec"]}):
            if _at(self.objects[where], path) != value:
                raise Conflict(409, "Conflict", f"conflict with another manager of {'.'.join(path)}")

    def _find(self, where: Where) -> Body:
        if where not in self.objects:
            raise NotFound(404, "NotFound", f"{where[0]} {where[2]} not found")
        return self.objects[where]

    def _matching(self, kind, namespace, query) -> Iterator[Body]:
        for (found, where, _), body in sorted(self.objects.items()):
            if found == kind and namespace in (None, where) and _selected(body, query):
                yield body

    def _check_preconditions(self, where: Where, metadata: Mapping[str, Any]) -> None:
        there = self._find(where)["metadata"]
        for field in ("uid", "resourceVersion"):
            if metadata.get(field) and metadata[field] != there[field]:
                raise Conflict(409, "Conflict", f"{field} of {where[2]} is {there[field]}, not {metadata[field]}")

    def _check_unchangeable(self, where: Where, changed: Body) -> None:
        there = self.objects[where]
        old, new = there.get("spec") or {}, changed.get("spec") or {}
        wrong = [
            field for field in _IMMUTABLE_JOB if where[0] == "Job" and field in old and old[field] != new.get(field)
        ]
        if there.get("immutable") and there.get("data") != changed.get("data"):
            wrong.append("data")
        if where[0] == "PersistentVolumeClaim" and old and old != new:
            wrong.append("spec")
        if wrong:
            raise ApiError(422, "Invalid", f"{where[0]} {where[2]}: {', '.join(wrong)}: field is immutable")

    def _apply(self, where: Where, body: Mapping[str, Any], subresource: str | None, manager: str) -> Body:
        document = _copied(dict(body))
        document.pop("apiVersion"), document.pop("kind")
        for field in ("name", "namespace", "uid", "resourceVersion"):
            document["metadata"].pop(field, None)
        if not document["metadata"]:
            del document["metadata"]
        if subresource:
            document = {subresource: document[subresource]}
        elif where[0] in KINDS:
            document.pop("status", None)
        changed = _copied(self.objects[where])
        paths = dict(_leaves(document))
        held_by_others = set().union(*(held for name, held in self.fields[where].items() if name != manager), set())
        for path in self.fields[where].get(manager, set()) - paths.keys() - held_by_others:
            _cut(changed, path)
        for path, value in paths.items():
            _put(changed, path, value)
        if where[0] == "Deployment":
            changed["spec"].setdefault("replicas", 1)
        self._check_unchangeable(where, changed)
        for held in self.fields[where].values():
            held -= {path for path in held if path in paths and _at(self.objects[where], path) != paths[path]}
        self.fields[where][manager] = set(paths)
        return self._replace(where, changed)

    def _replace(self, where: Where, changed: Body) -> Body:
        old = self.objects[where]
        if _content(old) == _content(changed):
            return old
        if old.get("spec") != changed.get("spec"):
            changed["metadata"]["generation"] = old["metadata"].get("generation", 1) + 1
        changed["metadata"]["resourceVersion"] = self._next_version()
        self.objects[where] = changed
        self._announce("MODIFIED", changed)
        return changed

    def _store(self, where: Where, body: Body, *, announce: bool = True) -> Body:
        self._uids += 1
        metadata = body["metadata"]
        metadata["uid"] = metadata.get("uid") or f"uid-{self._uids}"
        metadata["creationTimestamp"] = self.stamp()
        metadata["resourceVersion"] = self._next_version()
        self.objects[where] = body
        if announce:
            self._announce("ADDED", body)
        return body

    def _next_version(self) -> str:
        self._version += 1
        return str(self._version)

    def _announce(self, change: str, body: Body) -> None:
        for listener in self.listeners:
            listener(change, _copied(body))


class _Calling:
    """Runs the fault injection around one request."""

    def __init__(self, api: FakeApi, call: Call):
        self._api, self._call = api, call

    def __enter__(self):
        self._api.calls.append(self._call)
        self._api.before(self._call)
        if self._call.kind in self._api.unknown:
            raise NotFound(404, "Unknown", "404 page not found")

    def __exit__(self, kind, error, trace):
        if kind is None or issubclass(kind, ApiError):
            self._api.after(self._call)


def _copied(value: Any) -> Any:
    return json.loads(json.dumps(value))


def _selected(body: Body, query: Mapping[str, Any]) -> bool:
    labels = body["metadata"].get("labels") or {}
    for wanted in filter(None, (query.get("labelSelector") or "").split(",")):
        name, _, value = wanted.partition("=")
        if labels.get(name) != value:
            return False
    field = query.get("fieldSelector") or ""
    assert field in ("", "type=Warning")
    return not field or body.get("type") == "Warning"


def _leaves(value: Any, path: Path = ()) -> Iterator[tuple[Path, Any]]:
    """Every member with its path; a list counts as one member."""
    if isinstance(value, dict) and (value or not path):
        for name, member in value.items():
            yield from _leaves(member, (*path, name))
    else:
        yield path, value


def _at(body: Any, path: Path) -> Any:
    for name in path:
        body = body.get(name) if isinstance(body, dict) else None
    return body


def _put(body: Body, path: Path, value: Any) -> None:
    for name in path[:-1]:
        body = body.setdefault(name, {})
    body[path[-1]] = _copied(value)


def _cut(body: Body, path: Path) -> None:
    """Remove a member, and what is empty without it."""
    name, *rest = path
    if rest and isinstance(body.get(name), dict):
        _cut(body[name], tuple(rest))
    if not rest or body.get(name) == {}:
        body.pop(name, None)


def _merged(body: Any, patch: Any) -> Any:
    if not isinstance(patch, Mapping):
        return _copied(patch)
    found = dict(_copied(body)) if isinstance(body, dict) else {}
    for name, value in patch.items():
        if value is None:
            found.pop(name, None)
        else:
            found[name] = _merged(found.get(name), value)
    return found


def _content(body: Body) -> Body:
    metadata = {
        name: value for name, value in body["metadata"].items() if name not in ("resourceVersion", "generation")
    }
    return {**body, "metadata": metadata}
