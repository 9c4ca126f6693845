"""What is observed of one pod: its phase, how its container ended, and what the platform says against it."""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import lru_cache
from typing import Any, Literal

from pydantic import ValidationError

from herdsman.api.exit_codes import TerminationMessage
from herdsman.core.world import PodFacts

Body = Mapping[str, Any]

MAIN_CONTAINERS = frozenset({"trainer", "server"})
INDEX_LABEL = "batch.kubernetes.io/job-completion-index"
JOB_LABEL = "batch.kubernetes.io/job-name"
MAX_MESSAGE = 1024
"""Characters of what the platform says that are passed on."""
_FROM_OUTSIDE = frozenset(
    {"NodeLost", "NodeShutdown", "Shutdown", "Terminated", "Preempting", "NodeAffinity", "UnexpectedAdmissionError"}
)
"""Reasons of a failed pod that say nothing against what ran in it."""
_STARTING = frozenset({"ContainerCreating", "PodInitializing"})
_INNER = "ErrImagePull: "
_NO_SECRET = re.compile(r'^secret "|find key .* in Secret ')
"""How a kubelet says that a Secret does not exist, or lacks the key."""


@dataclass(frozen=True)
class Cause:
    """What the platform says of an object that does not get on."""

    reason: str
    message: str


def pod_facts(pod: Body, *, cause: Cause | None = None) -> PodFacts:
    """Return what is observed of a pod; `cause` is what its Events say, used where its status says nothing."""
    status, metadata = pod.get("status") or {}, pod["metadata"]
    containers = list(_containers(status))
    speaking = _speaking(containers)
    ended = _termination_state(speaking)
    platform = _platform_cause(status, containers) or (cause if _waits(status) else None)
    said = (ended or {}).get("message") or ""
    return PodFacts(
        name=metadata["name"],
        index=_index(metadata),
        phase=_phase(status),
        container=speaking["name"] if speaking else _first_container(pod),
        exit_code=ended.get("exitCode") if ended else None,
        reason=platform.reason if platform else _ended_reason(status, ended),
        message=(platform.message if platform else _last_line(said) or status.get("message")) or None,
        termination=termination_message(said),
        disrupted=is_disrupted(pod),
        started=moment((ended or {}).get("startedAt")) or _running_since(containers),
        ended=moment((ended or {}).get("finishedAt")),
    )


def is_disrupted(pod: Body) -> bool:
    """Whether the platform ended the pod for reasons that are not its own; a plain deletion does not count here."""
    status = pod.get("status") or {}
    conditions = status.get("conditions") or ()
    if any(item["type"] == "DisruptionTarget" and item["status"] == "True" for item in conditions):
        return True
    reason = status.get("reason") or ""
    return status.get("phase") == "Failed" and (reason in _FROM_OUTSIDE or reason.startswith("OutOf"))


def deletion_asked(pod: Body) -> datetime | None:
    """Return when the pod was asked to go, or None; its deletionTimestamp lies a grace period later."""
    metadata = pod["metadata"]
    deadline = moment(metadata.get("deletionTimestamp"))
    return deadline - timedelta(seconds=metadata.get("deletionGracePeriodSeconds") or 0) if deadline else None


def is_over(pod: Body) -> bool:
    """Whether the pod has ended."""
    return (pod.get("status") or {}).get("phase") in ("Succeeded", "Failed")


@lru_cache(maxsize=512)
def termination_message(text: str) -> TerminationMessage | None:
    """Read a trainer's last words, whatever a newer trainer adds to them; None for other text, such as a log's end."""
    if not text.startswith("{"):
        return None
    try:
        data = json.loads(text)
        known = {name for field, info in TerminationMessage.model_fields.items() for name in (field, info.alias)}
        kept = {name: value for name, value in data.items() if name in known}
        return TerminationMessage.model_validate_json(json.dumps(kept))
    except (ValueError, AttributeError, ValidationError):
        return None


def moment(text: str | None) -> datetime | None:
    """Read a Kubernetes time."""
    return datetime.fromisoformat(text) if text else None


def _containers(status: Body) -> Iterator[Body]:
    yield from status.get("initContainerStatuses") or ()
    yield from status.get("containerStatuses") or ()


def _speaking(containers: list[Body]) -> Body | None:
    """Return the container that tells how the pod is: one that has failed, else the main one."""
    fallen = [item for item in containers if (_termination_state(item) or {}).get("exitCode")]
    main = [item for item in containers if item["name"] in MAIN_CONTAINERS]
    return next(iter([*fallen, *main, *containers]), None)


def _termination_state(container: Body | None) -> Body | None:
    """Return how the container ended; for one that is held back after crashes, how it ended last."""
    if container is None:
        return None
    state = container.get("state") or {}
    if "terminated" in state:
        ended: Body = state["terminated"]
        return ended
    if (state.get("waiting") or {}).get("reason") == "CrashLoopBackOff":
        last: Body | None = (container.get("lastState") or {}).get("terminated")
        return last
    return None


def _platform_cause(status: Body, containers: list[Body]) -> Cause | None:
    for container in containers:
        waiting = (container.get("state") or {}).get("waiting") or {}
        reason = waiting.get("reason")
        if reason and reason not in _STARTING and reason != "CrashLoopBackOff":
            return _waiting_cause(reason, waiting.get("message") or "")
    for condition in status.get("conditions") or ():
        if condition["type"] == "PodScheduled" and condition["status"] == "False":
            message = condition.get("message") or ""
            volume = "persistentvolumeclaim" in message.lower()
            reason = "FailedMount" if volume else condition.get("reason") or "Unschedulable"
            return None if reason == "SchedulingGated" else Cause(reason, shortened(message))
    return None


def _waiting_cause(reason: str, message: str) -> Cause:
    if reason == "CreateContainerConfigError" and _NO_SECRET.search(message):
        return Cause("SecretNotFound", shortened(message))
    return Cause(reason, shortened(_inner(message)))


def _inner(message: str) -> str:
    """Drop what alternates while an image is not to be had, so that the message stays the same."""
    return message.rpartition(_INNER)[2]


def _waits(status: Body) -> bool:
    return bool(status.get("phase", "Pending") == "Pending")


def _ended_reason(status: Body, ended: Body | None) -> str | None:
    reason: str | None = status.get("reason") or (ended or {}).get("reason")
    return None if reason in ("Completed", "Error") else reason


def _phase(status: Body) -> Literal["Pending", "Running", "Succeeded", "Failed"]:
    match status.get("phase"):
        case "Succeeded":
            return "Succeeded"
        case "Failed":
            return "Failed"
        case "Running" | "Unknown":
            return "Running"
        case _:
            return "Pending"


def _running_since(containers: list[Body]) -> datetime | None:
    states = [(item.get("state") or {}).get("running") or {} for item in containers if item["name"] in MAIN_CONTAINERS]
    return next((moment(state.get("startedAt")) for state in states if state.get("startedAt")), None)


def _index(metadata: Body) -> int:
    index = (metadata.get("labels") or {}).get(INDEX_LABEL) or (metadata.get("annotations") or {}).get(INDEX_LABEL)
    return int(index) if index and index.isdigit() else 0


def _first_container(pod: Body) -> str:
    containers = (pod.get("spec") or {}).get("containers") or [{"name": "trainer"}]
    return str(containers[0]["name"])


def _last_line(text: str) -> str:
    """Return the last line of a log that has anything in it."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return shortened(lines[-1]) if lines else ""


def shortened(text: str) -> str:
    """Return what the platform says, cut to what is passed on."""
    return text if len(text) <= MAX_MESSAGE else text[: MAX_MESSAGE - 1] + "…"
