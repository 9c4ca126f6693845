"""What is kept of an object in memory: what decisions are made from, and nothing else.

With ten thousand objects the rest (managed fields, the pod's own spec, configurations) would be most of the memory.
"""

import hashlib
import json
import sys
from collections.abc import Callable, Mapping
from typing import Any

Body = Mapping[str, Any]

_METADATA = frozenset(
    {
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
    }
)
_ANNOTATION = "kubectl.kubernetes.io/last-applied-configuration"
_JOB_SPEC = frozenset({"suspend", "parallelism", "completions", "activeDeadlineSeconds", "ttlSecondsAfterFinished"})
_POD_STATUS = frozenset(
    {"phase", "reason", "message", "conditions", "podIP", "containerStatuses", "initContainerStatuses", "startTime"}
)
_CONTAINER_STATUS = frozenset({"name", "state", "lastState", "restartCount", "ready"})
DIGEST = "sha256:"


def trimmed(body: Body) -> Body:
    """Return the part of an object that is kept."""
    kind = body["kind"]
    metadata = {key: value for key, value in body["metadata"].items() if key in _METADATA}
    if _ANNOTATION in (metadata.get("annotations") or {}):
        metadata["annotations"] = {key: value for key, value in metadata["annotations"].items() if key != _ANNOTATION}
    rest = {key: value for key, value in body.items() if key not in ("metadata", "managedFields")}
    cut: Body = _BY_KIND.get(kind, _whole)({**rest, "metadata": metadata})
    return _shared(cut)  # type: ignore[no-any-return]


def _whole(body: Body) -> Body:
    return body


def _job(body: Body) -> Body:
    spec = {key: value for key, value in (body.get("spec") or {}).items() if key in _JOB_SPEC}
    return {**body, "spec": spec}


def _pod(body: Body) -> Body:
    status = {key: value for key, value in (body.get("status") or {}).items() if key in _POD_STATUS}
    for field in ("containerStatuses", "initContainerStatuses"):
        if field in status:
            status[field] = [
                {key: value for key, value in item.items() if key in _CONTAINER_STATUS} for item in status[field] or ()
            ]
    status["conditions"] = [
        {key: value for key, value in item.items() if key in ("type", "status", "reason", "message")}
        for item in status.get("conditions") or ()
        if item["status"] != "True" or item["type"] == "DisruptionTarget"
    ]
    names = [{"name": item["name"]} for item in (body.get("spec") or {}).get("containers") or ()]
    return {**body, "spec": {"containers": names}, "status": status}


def _config_map(body: Body) -> Body:
    """Keep a digest of each file: enough to see whether it is what was planned."""
    data = {name: digest_of(text) for name, text in (body.get("data") or {}).items()}
    return {**body, "data": data}


def digest_of(text: str) -> str:
    """Return what stands for a ConfigMap's file in memory; a digest stands for itself."""
    return text if text.startswith(DIGEST) else DIGEST + hashlib.sha256(text.encode()).hexdigest()


def fingerprint(body: Body) -> str:
    """Return a digest of an object as it was applied."""
    return hashlib.sha256(json.dumps(body, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


_BY_KIND: Mapping[str, Callable[[Body], Body]] = {"Job": _job, "Pod": _pod, "ConfigMap": _config_map}


def _shared(value: Any) -> Any:
    """Return the value with every key and every short word stored only once."""
    if isinstance(value, dict):
        return {sys.intern(key): _shared(member) for key, member in value.items()}
    if isinstance(value, list):
        return [_shared(item) for item in value]
    return sys.intern(value) if isinstance(value, str) and len(value) <= 32 else value
