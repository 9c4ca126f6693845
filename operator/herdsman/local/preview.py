"""Planning without touching anything: what a run of these manifests would make, input by input."""

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from herdsman.api.v1alpha1.registry import KINDS, AnyResource
from herdsman.core.plan import plan
from herdsman.core.plan_types import Plan
from herdsman.core.preview import Preview, assumed_success, make_preview, unfinished_inputs
from herdsman.core.references import key_of, volumes
from herdsman.core.site import Site
from herdsman.core.world import Key
from herdsman.local.cluster import LocalCluster
from herdsman.local.follow import with_inputs
from herdsman.local.home import Home, local_site
from herdsman.local.job_record import JobRecord
from herdsman.local.machine import Machine
from herdsman.local.store import Application


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
            made = assumed_success(cluster.resources()[key], cluster.resources(), cluster.now())
            if made is not None:
                cluster.overlay[key] = cluster.resources()[key].model_copy(update={"status": made})
    return [
        replace(each, after=unfinished_inputs(each.key, cluster.resources(), previews))
        for each in previews
        if each.key in actions
    ]


async def _preview(cluster: PreviewCluster, resource: AnyResource, applied: Application | None, site: Site) -> Preview:
    key = key_of(resource)
    planned = plan(resource, await cluster.observe(resource), site)
    refusals = [applied.refusal] if applied is not None and applied.refusal is not None else []
    action = applied.action if applied is not None else "unchanged"
    wants = (*_missing_volumes(cluster, resource), *_hindrances(cluster, resource, planned))
    return make_preview(key, action, resource, planned, refusals, wants)


def _missing_volumes(cluster: PreviewCluster, resource: AnyResource) -> Iterator[str]:
    for _, volume in volumes(resource):
        if not cluster.volumes.exists(volume.claim) and volume.claim not in cluster.claims:
            yield f"the volume {volume.claim} is not here; give it with --volume {volume.claim}=DIRECTORY"


def _hindrances(cluster: PreviewCluster, resource: AnyResource, planned: Plan) -> Iterator[str]:
    for child in planned.children:
        if child["kind"] == "Job":
            record = JobRecord(child["metadata"]["name"], key_of(resource), resource.metadata.uid, 0.0, child)
            if (hindrance := cluster.hindrance(record)) is not None:
                yield hindrance.message
