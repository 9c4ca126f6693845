"""Objects of a cluster with runs at work: nouns with modifiers."""

from typing import Any

from builders import manifest

START, END = "2026-01-02T03:00:00Z", "2026-01-02T03:30:00Z"


def model_import(name: str = "base", **spec: Any) -> dict[str, Any]:
    spec.setdefault("source", {"volume": {"claim": "weights", "path": "llama"}})
    return manifest("ModelImport", name, spec)


def pretrain(name: str = "zh", **spec: Any) -> dict[str, Any]:
    spec.setdefault("model", {"modelImport": "base"})
    spec.setdefault("dataset", {"volume": {"claim": "corpora", "path": "zh"}})
    return manifest("PretrainJob", name, spec)


def server(name: str = "chat", **spec: Any) -> dict[str, Any]:
    spec.setdefault("model", {"modelImport": "base"})
    return manifest("ModelServer", name, spec)


def claim(name: str, *modes: str) -> dict[str, Any]:
    spec = {"accessModes": list(modes or ["ReadWriteMany"]), "resources": {"requests": {"storage": "5Gi"}}}
    return {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": name}, "spec": spec}


def condition(kind: str, status: str, reason: str, message: str = "") -> dict[str, Any]:
    told = {"reason": reason, "message": message, "observedGeneration": 1, "lastTransitionTime": START}
    return {"type": kind, "status": status, **told}


def running(**more: Any) -> dict[str, Any]:
    """The status of a run at work."""
    progress = {
        "percent": 50,
        "step": 100,
        "totalSteps": 200,
        "estimatedRemainingSeconds": 80,
        "tokensPerSecond": 12345,
        "metrics": [{"name": "loss", "value": "5.3121"}],
    }
    return {
        "phase": "Running",
        "observedGeneration": 1,
        "conditions": [condition("Progressing", "True", "Running", "Attempt 1 works.")],
        "progress": progress,
        "checkpoint": {"latest": "checkpoints/step-00000090", "step": 90, "verified": True, "count": 2},
        "attempts": [{"number": 1, "started": START}],
        **more,
    }


def failed(message: str = "zh.jsonl, line 7: not JSON.", hint: str = "Mend that line.") -> dict[str, Any]:
    ended = {"number": 1, "started": START, "ended": END, "exitCode": 42, "reason": "BadInput"}
    return {
        "phase": "Failed",
        "observedGeneration": 1,
        "conditions": [condition("Failed", "True", "BadInput", message)],
        "attempts": [ended],
        "failure": {"reason": "BadInput", "message": message, "hint": hint, "exitCode": 42, "pod": "pj-zh-1-0-abcde"},
    }


def succeeded(kind: str = "adapter", claim: str = "pj-zh") -> dict[str, Any]:
    artifact = {"kind": kind, "claim": claim, "path": "artifact", "digest": "a" * 64, "bytes": 13_476_831_232}
    return {
        "phase": "Succeeded",
        "observedGeneration": 1,
        "conditions": [condition("Complete", "True", "Succeeded", "The run is finished.")],
        "attempts": [{"number": 1, "started": START, "ended": END, "exitCode": 0, "reason": "Succeeded"}],
        "artifact": artifact,
    }


def labels(kind: str, name: str, attempt: int | None = None) -> dict[str, str]:
    found = {"app.kubernetes.io/managed-by": "herdsman", "herdsman.dev/kind": kind, "herdsman.dev/name": name}
    return found if attempt is None else {**found, "herdsman.dev/attempt": str(attempt)}


def pod(rank: int = 0, *, attempt: int = 1, state: str = "running", code: int = 0, **metadata: Any) -> dict[str, Any]:
    """A pod of PretrainJob zh: state is running, waiting, or ended with an exit code."""
    states = {
        "running": {"running": {"startedAt": START}},
        "waiting": {"waiting": {"reason": "ErrImagePull", "message": "no such image"}},
        "ended": {"terminated": {"exitCode": code, "reason": "Error" if code else "Completed", "finishedAt": END}},
    }
    phase = {"running": "Running", "waiting": "Pending", "ended": "Failed" if code else "Succeeded"}[state]
    name = f"pj-zh-{attempt}-{rank}-abcde"
    marks = {**labels("PretrainJob", "zh", attempt), "batch.kubernetes.io/job-completion-index": str(rank)}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": marks, **metadata},
        "spec": {"containers": [{"name": "trainer"}], "nodeName": f"node-{rank}"},
        "status": {"phase": phase, "containerStatuses": [{"name": "trainer", "state": states[state]}]},
    }


def server_pod(suffix: str) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": f"ms-chat-5d9-{suffix}", "labels": labels("ModelServer", "chat")},
        "spec": {"containers": [{"name": "server"}]},
        "status": {
            "phase": "Running",
            "containerStatuses": [{"name": "server", "state": {"running": {}}, "restartCount": 2}],
        },
    }


def job(attempt: int = 1, **status: Any) -> dict[str, Any]:
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": f"pj-zh-{attempt}", "labels": labels("PretrainJob", "zh", attempt)},
        "spec": {"parallelism": 2, "completions": 2},
        "status": status,
    }


def event(about: dict[str, Any], reason: str, message: str, *, at: str = START, count: int = 1) -> dict[str, Any]:
    metadata = about["metadata"]
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": f"{metadata['name']}.{reason}.{at[-5:-1]}"},
        "type": "Warning",
        "reason": reason,
        "message": message,
        "count": count,
        "lastTimestamp": at,
        "involvedObject": {"kind": about["kind"], "name": metadata["name"], "uid": metadata["uid"]},
    }
