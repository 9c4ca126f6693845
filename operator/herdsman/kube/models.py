"""Resources as the API models read them, each version once."""

import json
from collections import OrderedDict
from typing import Any

from pydantic import ValidationError

from herdsman.api.v1alpha1.registry import KINDS, AnyResource
from herdsman.api.v1alpha1.status import Status
from herdsman.cluster import Invalid
from herdsman.core.world import Key
from herdsman.kube.trimming import Body

REMEMBERED = 300
"""Parsed resources that are kept; the rest is parsed again when it is needed."""


class Models:
    """Reads resources from what the API server stores, remembering the last ones by uid and version."""

    def __init__(self, size: int = REMEMBERED) -> None:
        self._size = size
        self._read: OrderedDict[tuple[str, str], AnyResource | Invalid] = OrderedDict()

    def read(self, body: Body) -> AnyResource | Invalid:
        """Return the resource, or why it does not fit its model."""
        metadata = body["metadata"]
        key = metadata.get("uid", ""), metadata.get("resourceVersion", "")
        if key in self._read:
            self._read.move_to_end(key)
            return self._read[key]
        found = _parse(body)
        self._read[key] = found
        if len(self._read) > self._size:
            self._read.popitem(last=False)
        return found

    def specified(self, body: Body) -> AnyResource | None:
        """Return the resource without its status, or None for one whose spec does not fit its model.

        Of thousands that are listed at a start only this is needed, and it is not kept.
        """
        if "status" not in body:
            return self.resource(body)
        try:
            return KINDS[body["kind"]].model.read(_without_status(body))
        except ValidationError:
            return None

    def resource(self, body: Body | None) -> AnyResource | None:
        """Return the resource, or None for one that is absent or does not fit its model."""
        found = self.read(body) if body is not None else None
        return None if isinstance(found, Invalid) else found


def stored_status(body: Body) -> Status | None:
    """Return the status as far as it can be read: members that this version does not know are left out."""
    given = body.get("status")
    if not given:
        return None
    for _ in range(3):
        try:
            return Status.model_validate_json(json.dumps(given))
        except ValidationError as error:
            given = _without(given, error)
    return None


def _without_status(body: Body) -> Body:
    return {key: value for key, value in body.items() if key != "status"}


def _parse(body: Body) -> AnyResource | Invalid:
    model = KINDS[body["kind"]].model
    metadata = body["metadata"]
    try:
        return model.read(body)
    except ValidationError as error:
        problems = _problems(error)
    status = stored_status(body)
    try:
        without = model.read(_without_status(body))
        return without.model_copy(update={"status": status})  # written by another version: the spec is what counts
    except ValidationError as error:
        problems = _problems(error)
    key = Key(body["kind"], metadata["name"])
    return Invalid(key, metadata.get("generation", 0), problems, status)


def _problems(error: ValidationError) -> tuple[str, ...]:
    """Return one sentence for each wrong field, with its path."""
    return tuple(f"{_path(item['loc'])}: {item['msg']}." for item in error.errors(include_url=False))


def _path(location: tuple[int | str, ...]) -> str:
    text = ""
    for step in location:
        text += f"[{step}]" if isinstance(step, int) else f".{step}" if text else step
    return text or "the object"


def _without(document: Any, error: ValidationError) -> Any:
    """Return the document without the members that the error names."""
    copy = json.loads(json.dumps(document))
    for item in error.errors(include_url=False):
        here = copy
        *way, last = item["loc"]
        for step in way:
            inside = isinstance(here, dict) and step in here
            inside = inside or (isinstance(here, list) and isinstance(step, int) and step < len(here))
            here = here[step] if inside else None
        if isinstance(here, dict):
            here.pop(last, None)
    return copy
