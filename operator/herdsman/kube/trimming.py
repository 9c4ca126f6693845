"""What is kept of an object in memory: what decisions are made from, and nothing else.

With ten thousand objects the rest (managed fields, the pod's own spec, configurations) would be most of the memory.
"""

import hashlib
import json
import sys
from collections.abc import Callable, Mapping
from typing import Any

from herdsman.core.optional_children import OPTIONAL_KINDS

Body = Mapping[str, Any]

_METADATA = (
    "name",
    "namespace",
    "uid",
    "resourceVersion",
    "generation",
    "labels",
    "annotations",
    "ownerReferences",
    "creationTimestamp",
    "deletionTimestamp",
    "deletionGracePeriodSeconds",
)
_ANNOTATION = "kubectl.kubernetes.io/last-applied-configuration"
_JOB_SPEC = ("suspend", "parallelism", "completions", "activeDeadlineSeconds", "ttlSecondsAfterFinished")
_JOB_STATUS = ("startTime", "completionTime", "succeeded", "failed")
_JOB_CONDITION = ("type", "status", "reason", "message", "lastTransitionTime")
_POD_STATUS = ("phase", "reason", "message", "podIP")
_CONTAINER_STATUS = ("name", "state", "lastState")
_CONDITION = ("type", "status", "reason", "message")
DIGEST = "sha256:"


def trimmed(body: Body) -> Body:
    """Return the part of an object that is kept."""
    metadata = _picked(body["metadata"], _METADATA)
    if metadata.get("annotations"):
        metadata["annotations"] = {key: value for key, value in metadata["annotations"].items() if key != _ANNOTATION}
    if metadata.get("labels"):
        metadata["labels"] = {sys.intern(key): value for key, value in metadata["labels"].items()}
    found: Body = _BY_KIND.get(body["kind"], _whole)(body)
    return {"kind": sys.intern(body["kind"]), "metadata": metadata, **found}


def _whole(body: Body) -> Body:
    return {key: _shared(value) for key, value in body.items() if key not in ("kind", "metadata")}


def _job(body: Body) -> Body:
    status = _picked(body.get("status"), _JOB_STATUS)
    conditions = (body.get("status") or {}).get("conditions") or ()
    status["conditions"] = [_picked(item, _JOB_CONDITION) for item in conditions]
    return {"spec": _picked(body.get("spec"), _JOB_SPEC), "status": status}


def _pod(body: Body) -> Body:
    given = body.get("status") or {}
    status = _picked(given, _POD_STATUS)
    for field in ("containerStatuses", "initContainerStatuses"):
        if given.get(field):
            status[field] = [_picked(item, _CONTAINER_STATUS) for item in given[field]]
    status["conditions"] = [
        _picked(item, _CONDITION)
        for item in given.get("conditions") or ()
        if item["status"] != "True" or item["type"] == "DisruptionTarget"
    ]
    names = [{"name": item["name"]} for item in (body.get("spec") or {}).get("containers") or ()]
    return {"spec": {"containers": names}, "status": status}


def _config_map(body: Body) -> Body:
    """Keep a digest of each file: enough to see whether it is what was planned."""
    data = {name: digest_of(text) for name, text in (body.get("data") or {}).items()}
    return {**_whole({key: value for key, value in body.items() if key != "data"}), "data": data}


def _without_status(body: Body) -> Body:
    return _whole({key: value for key, value in body.items() if key != "status"})


def _picked(body: Body | None, names: tuple[str, ...]) -> dict[str, Any]:
    """Return these members, under one and the same copy of each name."""
    given = body or {}
    return {name: given[name] for name in names if name in given}


def digest_of(text: str) -> str:
    """Return what stands for a ConfigMap's file in memory; a digest stands for itself."""
    return text if text.startswith(DIGEST) else DIGEST + hashlib.sha256(text.encode()).hexdigest()


def fingerprint(body: Body) -> str:
    """Return a digest of an object as it was applied."""
    return hashlib.sha256(json.dumps(body, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


_BY_KIND: Mapping[str, Callable[[Body], Body]] = {
    "Job": _job,
    "Pod": _pod,
    "ConfigMap": _config_map,
    **dict.fromkeys(OPTIONAL_KINDS, _without_status),
}


def _shared(value: Any) -> Any:
    """Return the value with every key stored only once."""
    if isinstance(value, dict):
        return {sys.intern(key): _shared(member) for key, member in value.items()}
    if isinstance(value, list):
        return [_shared(item) for item in value]
    return value
