"""Planning against a cluster: what the operator would make of manifests, told without writing anything."""

import asyncio
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

from herdsman.api.v1alpha1.registry import KINDS, AnyResource
from herdsman.cluster import Invalid
from herdsman.core import names, references, volumes
from herdsman.core.plan import plan
from herdsman.core.plan_types import Plan
from herdsman.core.pods import GPU
from herdsman.core.preview import Preview, assumed_success, make_preview, unfinished_inputs
from herdsman.core.site import Site
from herdsman.core.world import JobFacts, Key, VolumeFacts, World, WritePath
from herdsman.kube.errors import ApiError
from herdsman.kube.facts import job_facts, volume_facts
from herdsman.kube.models import Models
from herdsman.kube.port import Body
from herdsman.kubectl.admission import Answer, ask
from herdsman.kubectl.connection import Connection


@dataclass
class Snapshot:
    """One namespace as it is, with the manifests laid over it."""

    now: datetime
    resources: dict[Key, AnyResource] = field(default_factory=dict)
    bodies: dict[Key, Body] = field(default_factory=dict)
    """As the API server stores them."""
    volumes: dict[str, VolumeFacts] = field(default_factory=dict)
    jobs: list[tuple[Body, list[Body]]] = field(default_factory=list)
    """Jobs with their pods."""
    largest_node: int | None = None
    """The most GPUs of one node; None where nodes may not be listed."""


async def previews(
    connection: Connection, namespace: str, given: Sequence[AnyResource], claims: Iterable[str], site: Site
) -> list[Preview]:
    """Return what would happen to each resource, inputs first; what the others make is taken as made.

    Resources that the cluster holds already are planned with their status, so a run at work stays at work.
    """
    snapshot = await _snapshot(connection, namespace)
    for claim in claims:
        snapshot.volumes.setdefault(claim, VolumeFacts(claim, access_modes=(), bound=False))
    mine = {references.key_of(resource): resource for resource in given}
    answers = await asyncio.gather(
        *(ask(connection, namespace, resource, snapshot.bodies.get(key)) for key, resource in mine.items())
    )
    actions = dict(zip(mine, answers, strict=True))
    for key, resource in mine.items():
        snapshot.resources[key] = _laid_over(resource, snapshot.resources.get(key), namespace)
    found: list[Preview] = []
    for key in references.inputs_first(mine, snapshot.resources):
        preview = _preview(snapshot, key, actions.get(key, Answer("unchanged")), site)
        found.append(preview)
        if not (preview.problems or preview.blocked or preview.done):
            _take_as_made(snapshot, key, preview)
    told = [replace(each, after=unfinished_inputs(each.key, snapshot.resources, found)) for each in found]
    return [each for each in told if each.key in mine]


async def _snapshot(connection: Connection, namespace: str) -> Snapshot:
    snapshot, models = Snapshot(datetime.now(UTC)), Models()
    selector = f"{names.LABEL_MANAGED_BY}={names.MANAGED_BY}"
    stored, claims, jobs, pods, nodes = await asyncio.gather(
        asyncio.gather(*(connection.items(kind, namespace) for kind in KINDS)),
        connection.items("PersistentVolumeClaim", namespace),
        connection.items("Job", namespace, labelSelector=selector),
        connection.items("Pod", namespace, labelSelector=selector),
        _nodes(connection),
    )
    for body in (body for bodies in stored for body in bodies):
        key = Key(body["kind"], body["metadata"]["name"])
        snapshot.bodies[key] = body
        resource = models.read(body)
        if not isinstance(resource, Invalid):
            snapshot.resources[key] = resource
    snapshot.volumes = {body["metadata"]["name"]: volume_facts(body) for body in claims}
    snapshot.jobs = [(job, [pod for pod in pods if _owner(pod) == job["metadata"]["uid"]]) for job in jobs]
    if nodes is not None:
        snapshot.largest_node = max((gpus_of(node) for node in nodes), default=0)
    return snapshot


async def _nodes(connection: Connection) -> list[Body] | None:
    try:
        return await connection.items("Node")
    except ApiError as error:
        if error.status == 403:
            return None
        raise


def gpus_of(node: Body) -> int:
    """Return the GPUs a node offers to pods."""
    amount = ((node.get("status") or {}).get("allocatable") or {}).get(GPU, "0")
    return int(amount) if str(amount).isdigit() else 0


def _laid_over(given: AnyResource, stored: AnyResource | None, namespace: str) -> AnyResource:
    """Return the manifest as the resource it would be: with the identity and the status of the stored one."""
    metadata: dict[str, Any] = {"namespace": namespace}
    if stored is not None:
        metadata |= {"uid": stored.metadata.uid, "creation_timestamp": stored.metadata.creation_timestamp}
        metadata["generation"] = stored.metadata.generation + (stored.spec != given.spec)
    changed = given.metadata.model_copy(update=metadata)
    return given.model_copy(update={"metadata": changed, "status": stored.status if stored is not None else None})


def _preview(snapshot: Snapshot, key: Key, answer: Answer, site: Site) -> Preview:
    resource = snapshot.resources[key]
    world = World(
        now=snapshot.now,
        jobs={fact.name: fact for fact in _jobs(snapshot, resource)},
        resources={other: found for other, found in snapshot.resources.items() if other != key},
        volumes=snapshot.volumes,
        writers=_elder_writers(snapshot, key),
    )
    planned = plan(resource, world, site)
    refusals = [answer.refusal] if answer.refusal is not None else []
    return make_preview(key, answer.action, resource, planned, refusals, _wants(snapshot, resource, planned))


def _jobs(snapshot: Snapshot, resource: AnyResource) -> list[JobFacts]:
    if not resource.metadata.uid:
        return []
    return [job_facts(job, pods) for job, pods in snapshot.jobs if _owner(job) == resource.metadata.uid]


def _elder_writers(snapshot: Snapshot, key: Key) -> dict[WritePath, Key]:
    """Return what those write that come before this one: what exists, and of new ones the first by name."""
    me = _seniority(snapshot, key)
    found = {}
    for other, resource in snapshot.resources.items():
        target = volumes.writes(resource)
        if target is not None and _seniority(snapshot, other) < me:
            found[target] = other
    return found


def _seniority(snapshot: Snapshot, key: Key) -> tuple[bool, str, Key]:
    created = (snapshot.bodies.get(key) or {"metadata": {}})["metadata"].get("creationTimestamp")
    return created is None, created or "", key


def _wants(snapshot: Snapshot, resource: AnyResource, planned: Plan) -> list[str]:
    """Return what no node has; an autoscaler may bring it, so it is no problem yet."""
    asked, most = resource.spec.compute.gpus_per_node, snapshot.largest_node
    if most is None or asked <= most or not planned.children:
        return []
    has = f"the largest has {most}" if most else "no node has any"
    return [f"asks for {asked} GPUs a pod ({GPU}), and {has}; without an autoscaler it stays Queued"]


def _take_as_made(snapshot: Snapshot, key: Key, preview: Preview) -> None:
    """Lay the claims it would make and its success over the cluster, for those that read its artifact."""
    for child in preview.children:
        if child["kind"] == "PersistentVolumeClaim":
            facts = volume_facts(json.loads(json.dumps(child, default=dict)))
            snapshot.volumes.setdefault(facts.claim, facts)
    resource = snapshot.resources[key]
    if (made := assumed_success(resource, snapshot.resources, snapshot.now)) is not None:
        snapshot.resources[key] = resource.model_copy(update={"status": made})


def _owner(body: Body) -> str | None:
    owners = body["metadata"].get("ownerReferences") or ()
    return next((owner["uid"] for owner in owners if owner.get("controller")), None)
