"""What was made for a resource: its pods, its Jobs or its Deployment, its volumes, and how they are."""

import asyncio
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from herdsman.cli.names import title
from herdsman.cli.observed import Observed
from herdsman.core import names
from herdsman.core.world import Key
from herdsman.kube.errors import ApiError
from herdsman.kube.pod_facts import INDEX_LABEL, pod_facts
from herdsman.kube.port import Body
from herdsman.kubectl.connection import Connection
from herdsman.kubectl.refusals import is_missing_kind

_OF_RUNS = ("Job", "Service")
_OF_SERVERS = ("Deployment", "Service", "Ingress", "HorizontalPodAutoscaler", "PodDisruptionBudget")
_STYLES = {"Pending": "yellow", "Running": "cyan", "Succeeded": "green", "Failed": "bold red"}


@dataclass
class Children:
    """The objects of one resource."""

    pods: list[Body] = field(default_factory=list)
    others: list[Body] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    """What could not be looked at, and why."""


class PodState(NamedTuple):
    """A pod in words."""

    attempt: str
    rank: str
    phase: str
    style: str
    told: str
    """Why it waits, or how it ended."""
    restarts: int


def selector_of(key: Key, attempt: int | None = None) -> str:
    """Return the label selector of a resource's children, or of those of one attempt."""
    labels = {names.LABEL_KIND: key.kind, names.LABEL_NAME: key.name}
    if attempt is not None:
        labels[names.LABEL_ATTEMPT] = str(attempt)
    return ",".join(f"{name}={value}" for name, value in labels.items())


async def pods_of(connection: Connection, key: Key, attempt: int | None = None) -> list[Body]:
    """Return the pods of a resource, by attempt and rank."""
    pods = await connection.items("Pod", connection.namespace, labelSelector=selector_of(key, attempt))
    return sorted(pods, key=lambda pod: (attempt_of(pod) or 0, rank_of(pod) or 0, pod["metadata"]["name"]))


async def children_of(connection: Connection, found: Observed) -> Children:
    """Return everything that was made for a resource, as far as one may look at it."""
    children = Children()

    async def listed(kind: str) -> list[Body]:
        try:
            if kind == "Pod":
                return await pods_of(connection, found.key)
            return await connection.items(kind, found.namespace, labelSelector=selector_of(found.key))
        except ApiError as error:
            if error.status != 403 and not is_missing_kind(error):
                raise
            if error.status == 403:
                children.notes.append(f"{kind}s of {title(found.key)} are not shown: {error.message}")
            return []

    kinds = _OF_SERVERS if found.key.kind == "ModelServer" else _OF_RUNS
    children.pods, *others = await asyncio.gather(listed("Pod"), *(listed(kind) for kind in kinds))
    claims = await _claims(connection, found, children)
    children.others = [*(body for bodies in others for body in bodies), *claims]
    return children


async def _claims(connection: Connection, found: Observed, children: Children) -> list[Body]:
    spec = found.manifest.get("spec") or {}
    wanted = dict.fromkeys(_claim_names(spec))
    if found.key.kind != "ModelServer" and not (spec.get("workspace") or {}).get("claim"):
        wanted[names.claim(found.key.kind, found.key.name)] = None
    for pod in children.pods:
        for volume in (pod.get("spec") or {}).get("volumes") or ():
            if claim := (volume.get("persistentVolumeClaim") or {}).get("claimName"):
                wanted[claim] = None
    bodies = []
    for claim in wanted:
        try:
            bodies.append(await connection.find("PersistentVolumeClaim", found.namespace, claim))
        except ApiError as error:
            if error.status not in (403, 404):
                raise
            missing = {"name": claim, "namespace": found.namespace}
            phase = "does not exist" if error.status == 404 else "may not be read"
            bodies.append({"kind": "PersistentVolumeClaim", "metadata": missing, "status": {"phase": phase}})
    return bodies


def _claim_names(value: Any) -> list[str]:
    """Return the claims that a spec names."""
    if isinstance(value, list):
        return [name for item in value for name in _claim_names(item)]
    if not isinstance(value, dict):
        return []
    own = [value["claim"]] if isinstance(value.get("claim"), str) else []
    return own + [name for member in value.values() for name in _claim_names(member)]


def attempt_of(pod: Body) -> int | None:
    """Return the attempt a pod belongs to; None for a server's."""
    number = (pod["metadata"].get("labels") or {}).get(names.LABEL_ATTEMPT, "")
    return int(number) if number.isdigit() else None


def rank_of(pod: Body) -> int | None:
    """Return a pod's place in its Job; None for a server's."""
    metadata = pod["metadata"]
    index = (metadata.get("labels") or {}).get(INDEX_LABEL) or (metadata.get("annotations") or {}).get(INDEX_LABEL)
    return int(index) if index and index.isdigit() else None


def pod_state(pod: Body) -> PodState:
    """Return how a pod is."""
    facts, status = pod_facts(pod), pod.get("status") or {}
    phase = "Terminating" if pod["metadata"].get("deletionTimestamp") else facts.phase
    words = facts.termination
    ended = f"exit code {facts.exit_code}" if facts.exit_code is not None else ""
    reason = words.reason if words is not None else facts.reason
    message = words.message if words is not None else facts.message
    told = ": ".join(part for part in (", ".join(filter(None, (reason, ended))), message) if part)
    attempt, rank = attempt_of(pod), rank_of(pod)
    restarts = sum(item.get("restartCount") or 0 for item in status.get("containerStatuses") or ())
    columns = "" if attempt is None else str(attempt), "" if rank is None else str(rank)
    return PodState(*columns, phase, _STYLES.get(phase, "dim"), told, restarts)


def state_of(body: Body) -> str:
    """Return in a few words how an object is."""
    spec, status = body.get("spec") or {}, body.get("status") or {}
    match body["kind"]:
        case "Job":
            return _job_state(spec, status)
        case "Deployment":
            wanted, updated = spec.get("replicas", 1), status.get("updatedReplicas") or 0
            rolling = "" if updated >= wanted else f", {updated} updated"
            return f"{status.get('readyReplicas') or 0} of {wanted} ready{rolling}"
        case "PersistentVolumeClaim":
            size = (status.get("capacity") or {}).get("storage") or (
                ((spec.get("resources") or {}).get("requests") or {}).get("storage")
            )
            modes = ",".join(status.get("accessModes") or spec.get("accessModes") or ())
            parts = (status.get("phase", "Pending"), size, modes, spec.get("storageClassName"))
            return " ".join(part for part in parts if part)
        case "Service":
            ports = ",".join(str(port["port"]) for port in spec.get("ports") or ())
            return f"{'headless' if spec.get('clusterIP') == 'None' else spec.get('clusterIP', '')}:{ports}"
        case "Ingress":
            return ", ".join(rule.get("host", "*") for rule in spec.get("rules") or ())
        case "HorizontalPodAutoscaler":
            now = status.get("currentReplicas") or 0
            return f"{now} replicas, {spec.get('minReplicas', 1)} to {spec.get('maxReplicas', '')}"
        case "PodDisruptionBudget":
            return f"{status.get('disruptionsAllowed') or 0} disruptions allowed"
    return ""


def _job_state(spec: dict[str, Any], status: dict[str, Any]) -> str:
    for condition in status.get("conditions") or ():
        if condition["status"] == "True" and condition["type"] in ("Complete", "Failed"):
            reason = condition.get("reason")
            return f"{condition['type']} ({reason})" if condition["type"] == "Failed" and reason else condition["type"]
    if spec.get("suspend"):
        return "suspended"
    return (
        f"{status.get('active') or 0} of {spec.get('completions') or 1} pods active, {status.get('ready') or 0} ready"
    )
