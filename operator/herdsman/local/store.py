"""What was applied and what is known about it, as files of the home."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path
from typing import Any, Literal
from uuid import uuid4

from pydantic import ValidationError

from herdsman.api.v1alpha1.registry import KINDS, AnyResource
from herdsman.api.v1alpha1.status import Status
from herdsman.cluster import Invalid
from herdsman.core.references import key_of
from herdsman.core.world import Key
from herdsman.local.changes import FieldChange, spec_changes
from herdsman.local.field_problems import field_problems
from herdsman.local.history import changes_between
from herdsman.local.home import Home
from herdsman.local.json_files import DamagedFile, read_object, stamp_of, write_json

Stored = AnyResource | Invalid


@dataclass(frozen=True)
class Application:
    """What applying one manifest would do."""

    key: Key
    action: Literal["created", "updated", "unchanged", "refused"]
    manifest: Mapping[str, Any]
    """As it is to be stored."""
    refusal: str | None = None
    """Why not: the fields, both values, and the remedy."""


class Store:
    """Reads and writes resources and statuses; every write replaces a file as a whole, and only when it differs."""

    def __init__(self, home: Home) -> None:
        self._home = home
        self._read: dict[Key, tuple[tuple[int, ...], Stored]] = {}

    def all(self) -> list[Key]:
        """Return all stored resources: kinds in the order of the pipeline, then names in the order of creation."""
        found = []
        for kind in KINDS:
            created = {
                path.stem: self._created(Key(kind, path.stem)) for path in (self._home.resources / kind).glob("*.json")
            }
            found += [Key(kind, name) for name in sorted(created, key=lambda name: (created[name], name))]
        return found

    def read(self, key: Key) -> Stored | None:
        """Return the resource with its status, why it cannot be read, or None; raises DamagedFile."""
        paths = (self._resource_path(key), self._status_path(key))
        stamp = tuple(stat for path in paths for stat in stamp_of(path))
        known = self._read.get(key)
        if known is None or known[0] != stamp:
            fresh = self._parse(key)
            if fresh is None:
                self._read.pop(key, None)
                return None
            known = self._read[key] = (stamp, fresh)
        return known[1]

    def manifest(self, key: Key) -> dict[str, Any] | None:
        """Return the stored object without its status."""
        return read_object(self._resource_path(key))

    def status(self, key: Key) -> Status | None:
        """Return the stored status; raises DamagedFile."""
        path = self._status_path(key)
        if not path.is_file():
            return None
        try:
            return Status.model_validate_json(path.read_bytes())
        except ValidationError as error:
            raise DamagedFile(path, f"not a status: {error.errors()[0]['msg']}") from error

    def compare(self, resources: Iterable[AnyResource], now: datetime) -> list[Application]:
        """Return what applying the resources would do; nothing is written. No two are created at the same moment."""
        moments = (now + timedelta(microseconds=index) for index in count())
        return [self._compare(resource, moment) for resource, moment in zip(resources, moments, strict=False)]

    def commit(self, applications: Iterable[Application]) -> None:
        """Write what was created or updated."""
        for application in applications:
            if application.action in ("created", "updated"):
                write_json(self._resource_path(application.key), dict(application.manifest))

    def write_status(self, key: Key, status: Status, now: datetime) -> bool:
        """Write the status and its history where it differs from the stored one; return whether it did."""
        before = self.status(key)
        if before == status or not self._resource_path(key).is_file():
            return False
        write_json(self._status_path(key), status.to_json())
        lines = [json.dumps({"time": now.isoformat(), **change}) for change in changes_between(before, status)]
        if lines:
            path = self._history_path(key)
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("a", encoding="utf-8") as file:
                file.write("".join(f"{line}\n" for line in lines))
        return True

    def history(self, key: Key) -> list[dict[str, Any]]:
        """Return what happened to the resource, oldest first; a line cut by a crash is left out."""
        path = self._history_path(key)
        lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
        return [json.loads(line) for line in lines if line.endswith("}")]

    def delete(self, key: Key) -> None:
        """Forget the resource, its status and its history."""
        for path in (self._resource_path(key), self._status_path(key), self._history_path(key)):
            path.unlink(missing_ok=True)

    def _compare(self, resource: AnyResource, now: datetime) -> Application:
        key = key_of(resource)
        data = resource.model_dump(mode="json", by_alias=True, exclude_unset=True)
        given = data["metadata"]
        metadata = {"name": resource.metadata.name, "namespace": resource.metadata.namespace}
        described = {name: given[name] for name in ("labels", "annotations") if given.get(name)}
        stored, before = self.manifest(key), self.read(key)
        if stored is None or before is None:
            made = {**metadata, "uid": str(uuid4()), "generation": 1, "creationTimestamp": _timestamp(now)}
            return Application(key, "created", _object(resource, {**made, **described}, data["spec"]))
        kept = {name: stored["metadata"][name] for name in ("uid", "generation", "creationTimestamp")}
        if isinstance(before, Invalid):
            why = f"what is stored of it cannot be read ({before.problems[0]}); {_delete_first(key)}"
            return Application(key, "refused", stored, why)
        changes = spec_changes(before, resource)
        if fixed := [change for change in changes if not change.mutable]:
            return Application(key, "refused", stored, _refusal(key, fixed))
        if changes:
            kept["generation"] += 1
        after = _object(resource, {**metadata, **kept, **described}, data["spec"] if changes else stored["spec"])
        return Application(key, "unchanged" if after == stored else "updated", after)

    def _parse(self, key: Key) -> Stored | None:
        data = self.manifest(key)
        if data is None:
            return None
        status = self.status(key)
        model = KINDS[key.kind].model
        try:
            resource = model.parse(json.dumps(data))
        except ValidationError as error:
            problems = tuple(str(problem) for problem in field_problems(error, model))
            return Invalid(key, int(data.get("metadata", {}).get("generation", 1)), problems, status)
        return resource.model_copy(update={"status": status})

    def _created(self, key: Key) -> str:
        return str(((self.manifest(key) or {}).get("metadata") or {}).get("creationTimestamp", ""))

    def _resource_path(self, key: Key) -> Path:
        return self._home.resources / key.kind / f"{key.name}.json"

    def _status_path(self, key: Key) -> Path:
        return self._home.statuses / key.kind / f"{key.name}.json"

    def _history_path(self, key: Key) -> Path:
        return self._home.history / key.kind / f"{key.name}.jsonl"


def _object(resource: AnyResource, metadata: Mapping[str, Any], spec: Mapping[str, Any]) -> dict[str, Any]:
    return {"apiVersion": resource.api_version, "kind": resource.kind, "metadata": dict(metadata), "spec": spec}


def _refusal(key: Key, changes: list[FieldChange]) -> str:
    listed = "; ".join(str(change) for change in changes)
    return f"{listed}: what defines a run never changes. Give the resource a new name, or {_delete_first(key)}"


def _delete_first(key: Key) -> str:
    return f"delete it first: herdsman delete {key.kind.lower()} {key.name} --purge"


def _timestamp(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
