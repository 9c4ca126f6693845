"""What the API server would say to a manifest: asked as a dry run, so nothing is written."""

import json
from dataclasses import dataclass
from typing import Any

from herdsman.api.v1alpha1.registry import AnyResource
from herdsman.kube.errors import ApiError
from herdsman.kube.port import Body
from herdsman.kubectl.connection import Connection
from herdsman.kubectl.places import path_to
from herdsman.kubectl.refusals import is_missing_kind, refusal_of


@dataclass(frozen=True)
class Answer:
    """What would happen to a manifest."""

    action: str
    """created, updated, unchanged or refused."""
    refusal: str | None = None


async def ask(connection: Connection, namespace: str, resource: AnyResource, stored: Body | None) -> Answer:
    """Ask what creating the resource, or changing the stored one to it, would lead to; raises where it cannot be asked.

    The manifest is read by the models before, so it is sent as they write it: what it leaves out takes its default.
    """
    name = resource.metadata.name
    query = {"dryRun": "All", "fieldValidation": "Strict"}
    body = _body(resource, namespace)
    try:
        if stored is None:
            await connection.send("POST", path_to(resource.kind, namespace), body, **query)
            return Answer("created")
        body["metadata"] = _metadata(stored, body)
        changed = await connection.send("PUT", path_to(resource.kind, namespace, name), body, **query)
    except ApiError as error:
        if is_missing_kind(error) or error.temporary or error.status == 401:
            raise
        return Answer("refused", _refusal(error, resource))
    same = changed.get("spec") == stored.get("spec") and body["metadata"] == _metadata(stored, {"metadata": {}})
    return Answer("unchanged" if same else "updated")


def _body(resource: AnyResource, namespace: str) -> dict[str, Any]:
    """Return the manifest as it was written: members that take their default are left to the API server."""
    written: dict[str, Any] = json.loads(
        resource.model_dump_json(by_alias=True, exclude_unset=True, exclude_none=True, exclude={"status"})
    )
    metadata = written["metadata"]
    kept = {name: metadata[name] for name in ("name", "labels", "annotations") if name in metadata}
    spec = written.get("spec") or {}
    return {
        "apiVersion": resource.api_version,
        "kind": resource.kind,
        "metadata": {**kept, "namespace": namespace},
        "spec": spec,
    }


def _metadata(stored: Body, given: Body) -> dict[str, Any]:
    """Return the stored metadata with the manifest's labels and annotations laid over it."""
    metadata = {name: value for name, value in stored["metadata"].items() if name != "managedFields"}
    for field in ("labels", "annotations"):
        metadata[field] = {**(metadata.get(field) or {}), **(given["metadata"].get(field) or {})}
    return metadata


def _refusal(error: ApiError, resource: AnyResource) -> str:
    """Return the API server's words, without the sentence that names the resource once more."""
    if error.status in (400, 409, 422):
        _, found, told = error.message.partition(" is invalid: ")
        text = (told if found else error.message).strip("[] ")
        return f"The API server refuses it: {text}{'' if text.endswith('.') else '.'}"
    refused = refusal_of(error)
    return f"{resource.kind} cannot be created: {refused.message if refused is not None else error.message}."
