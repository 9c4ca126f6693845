"""Planning without touching anything: what a run of these manifests would make, input by input."""

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

from herdsman.api.meta import Condition
from herdsman.api.v1alpha1.registry import KINDS, AnyResource
from herdsman.api.v1alpha1.status import Artifact, ConditionType, Phase, Reason, Status
from herdsman.core.conditions import holds
from herdsman.core.inputs import made_by
from herdsman.core.plan import plan
from herdsman.core.plan_types import Manifest, Plan
from herdsman.core.references import direct, key_of, volumes
from herdsman.core.site import Site
from herdsman.core.volumes import writes
from herdsman.core.world import Key
from herdsman.local.cluster import LocalCluster
from herdsman.local.follow import with_inputs
from herdsman.local.home import Home, local_site
from herdsman.local.job_record import JobRecord
from herdsman.local.machine import Machine
from herdsman.local.scheduler import shortage
from herdsman.local.store import Application

ASSUMED_DIGEST = "0" * 64
"""The digest of an artifact that does not exist yet."""


@dataclass(frozen=True)
class Preview:
    """What would happen to one resource."""

    key: Key
    action: str
    """created, updated, unchanged or refused."""
    plan: Plan
    done: bool
    """Whether it is finished already."""
    after: tuple[Key, ...]
    """The resources it waits for, which are not finished yet."""
    problems: tuple[str, ...]
    """Why it would not run anywhere."""
    wants: tuple[str, ...]
    """What it needs and this machine does not have: volumes, GPUs."""
    blocked: bool = False
    """Whether something it needs has a problem."""

    @property
    def children(self) -> tuple[Manifest, ...]:
        """The objects that would be made."""
        return self.plan.children


class PreviewCluster(LocalCluster):
    """A home with resources that were not applied to it."""

    def __init__(self, home: Home, machine: Machine, mapped: Mapping[str, Path], claims: Collection[str]) -> None:
        super().__init__(home, machine, mapped, assumed=True)
        self.claims = claims
        """Volumes that the same manifests make."""
        self.overlay: dict[Key, AnyResource] = {}

    def resources(self) -> dict[Key, AnyResource]:
        """Return the resources of the home, with the new ones laid over them."""
        return {**super().resources(), **self.overlay}


async def preview(cluster: PreviewCluster, applications: Sequence[Application]) -> list[Preview]:
    """Return what would happen to each resource, inputs first; what the others make is taken as made."""
    site = local_site(cluster.home)
    actions = {application.key: application for application in applications}
    for key, application in actions.items():
        resource = KINDS[key.kind].model.parse(json.dumps(application.manifest))
        cluster.overlay[key] = resource.model_copy(update={"status": cluster.store.status(key)})
    previews = []
    for key in with_inputs(actions, cluster):
        found = await _preview(cluster, cluster.resources()[key], actions.get(key), site)
        previews.append(found)
        if not (found.problems or found.blocked or found.done):
            _assume_success(cluster, key)
    unfinished = {each.key for each in previews if not each.done}
    return [_with_order(each, cluster, unfinished) for each in previews if each.key in actions]


async def _preview(cluster: PreviewCluster, resource: AnyResource, applied: Application | None, site: Site) -> Preview:
    key = key_of(resource)
    planned = plan(resource, await cluster.observe(resource), site)
    problems = [applied.refusal] if applied is not None and applied.refusal is not None else []
    waiting = [problem for problem in planned.waiting_for if problem.reason is not Reason.REFERENCE_NOT_READY]
    for problem in (*([planned.refused] if planned.refused else []), *waiting):
        problems.append(f"{problem.message} {problem.hint or ''}".rstrip())
    done = holds(resource.status, ConditionType.COMPLETE)
    if holds(resource.status, ConditionType.FAILED):
        problems.append("It has failed before, which never changes; delete it, or give it a new name.")
    action = applied.action if applied is not None else "unchanged"
    wants = () if done else (*_missing_volumes(cluster, resource), *_missing_gpus(cluster, resource, planned))
    return Preview(key, action, planned, done, (), tuple(problems), wants, len(waiting) < len(planned.waiting_for))


def _missing_volumes(cluster: PreviewCluster, resource: AnyResource) -> Iterator[str]:
    for _, volume in volumes(resource):
        if not cluster.volumes.exists(volume.claim) and volume.claim not in cluster.claims:
            yield f"the volume {volume.claim} is not here; give it with --volume {volume.claim}=DIRECTORY"


def _missing_gpus(cluster: PreviewCluster, resource: AnyResource, planned: Plan) -> Iterator[str]:
    for child in planned.children:
        if child["kind"] == "Job":
            record = JobRecord(child["metadata"]["name"], key_of(resource), resource.metadata.uid, 0.0, child)
            if (hindrance := shortage(record.request, cluster.machine)) is not None:
                yield hindrance


def _with_order(found: Preview, cluster: PreviewCluster, unfinished: set[Key]) -> Preview:
    after = dict.fromkeys(key for _, key in direct(cluster.resources()[found.key]) if key in unfinished)
    return replace(found, after=tuple(after))


def _assume_success(cluster: PreviewCluster, key: Key) -> None:
    """Give the resource the status it would have after success, as far as its spec tells."""
    resource = cluster.resources()[key]
    kind, target = made_by(resource), writes(resource)
    if kind is None or target is None:
        return
    parents = _parents(resource, cluster.resources())
    path = "artifact" if target.path == "." else f"{target.path}/artifact"
    artifact = Artifact(kind=kind.value, claim=target.claim, path=path, digest=ASSUMED_DIGEST, bytes=0, parents=parents)
    complete = _condition(ConditionType.COMPLETE, Reason.SUCCEEDED, resource.metadata.generation, cluster.now())
    status = Status(phase=Phase.SUCCEEDED, conditions=[complete], artifact=artifact)
    cluster.overlay[key] = resource.model_copy(update={"status": status})


def _parents(resource: AnyResource, resources: Mapping[Key, AnyResource]) -> list[str]:
    """Return the parents of the adapter it makes: one that goes on from another adapter takes that one's place."""
    adapter = getattr(resource.spec, "adapter", None)
    for field, source in direct(resource) if adapter is not None else []:
        status = resources[source].status if field.startswith("spec.adapter.") and source in resources else None
        if status is not None and status.artifact is not None:
            return list(status.artifact.parents)
    return []


def _condition(kind: ConditionType, reason: Reason, generation: int, now: datetime) -> Condition:
    return Condition(
        type=kind.value, status="True", reason=reason.value, observed_generation=generation, last_transition_time=now
    )
