"""Objects as an API server returns them, shortened: nouns with modifiers."""

from typing import Any

START, END, LATER = "2026-01-02T03:00:00Z", "2026-01-02T03:30:00Z", "2026-01-02T03:31:00Z"


def meta(name: str, namespace: str = "team", **more: Any) -> dict[str, Any]:
    return {"name": name, "namespace": namespace, "uid": f"uid-{name}", "resourceVersion": "7", **more}


def pod(*, name: str = "pj-zh-1-0-abcde", index: int = 0, job: str = "pj-zh-1", **more: Any) -> dict[str, Any]:
    """A pod of an Indexed Job; `status` and `metadata` members may be given."""
    labels = {
        "app.kubernetes.io/managed-by": "herdsman",
        "herdsman.dev/kind": "PretrainJob",
        "herdsman.dev/name": "zh",
        "herdsman.dev/attempt": "1",
        "batch.kubernetes.io/job-name": job,
        "batch.kubernetes.io/job-completion-index": str(index),
    }
    owner = {"apiVersion": "batch/v1", "kind": "Job", "name": job, "uid": f"uid-{job}", "controller": True}
    metadata = meta(name, labels=labels, ownerReferences=[owner], creationTimestamp=START, **more.pop("metadata", {}))
    spec = {"containers": [{"name": "trainer", "image": "herdsman/trainer:0.1.0"}]}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec, "status": more}


def waiting(reason: str, message: str = "", **more: Any) -> dict[str, Any]:
    """A pod whose container waits."""
    state = {"waiting": {"reason": reason, "message": message}}
    return pod(phase="Pending", containerStatuses=[{"name": "trainer", "state": state, "ready": False}], **more)


def running(**more: Any) -> dict[str, Any]:
    state = {"running": {"startedAt": START}}
    statuses = [{"name": "trainer", "state": state, "ready": True}]
    return pod(phase="Running", podIP="10.244.0.7", containerStatuses=statuses, **more)


def terminated(
    code: int, *, message: str = "", reason: str | None = None, at: str = END, **more: Any
) -> dict[str, Any]:
    """A pod whose container has ended."""
    said = {"reason": reason or ("Completed" if code == 0 else "Error"), "message": message}
    state = {"terminated": {"exitCode": code, "startedAt": START, "finishedAt": at, **said}}
    phase = "Succeeded" if code == 0 else "Failed"
    return pod(**{"phase": phase, "containerStatuses": [{"name": "trainer", "state": state}], **more})


def job(*conditions: dict[str, Any], name: str = "pj-zh-1", pods: int = 1, **status: Any) -> dict[str, Any]:
    labels = {
        "app.kubernetes.io/managed-by": "herdsman",
        "herdsman.dev/kind": "PretrainJob",
        "herdsman.dev/name": "zh",
        "herdsman.dev/attempt": "1",
    }
    owner = {
        "apiVersion": "herdsman.dev/v1alpha1",
        "kind": "PretrainJob",
        "name": "zh",
        "uid": "uid-zh",
        "controller": True,
    }
    spec = {"parallelism": pods, "completions": pods, "suspend": status.pop("suspend", False)}
    started = {"startTime": START, **status}
    metadata = meta(name, labels=labels, ownerReferences=[owner], creationTimestamp=START)
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": metadata,
        "spec": spec,
        "status": {**started, "conditions": list(conditions)},
    }


def condition(kind: str, reason: str = "", message: str = "", at: str = LATER) -> dict[str, Any]:
    return {"type": kind, "status": "True", "reason": reason, "message": message, "lastTransitionTime": at}


def event(reason: str, message: str, *, at: str = START, kind: str = "Warning", uid: str = "uid-x") -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": meta(f"event-{reason}-{at}"),
        "type": kind,
        "reason": reason,
        "message": message,
        "lastTimestamp": at,
        "involvedObject": {"uid": uid},
    }
