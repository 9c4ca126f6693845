"""Volumes: what a resource writes and reads, whether it may, and the claim that is made for it."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from herdsman.api.v1alpha1.compute import Workspace
from herdsman.api.v1alpha1.model_server import ModelServer
from herdsman.api.v1alpha1.registry import AnyResource
from herdsman.api.v1alpha1.status import Reason
from herdsman.core import names, references
from herdsman.core.inputs import Found, absent_volume
from herdsman.core.plan_types import Manifest, Problem
from herdsman.core.site import Site
from herdsman.core.world import Key, World, WritePath

ONE_NODE = frozenset({"ReadWriteOnce", "ReadWriteOncePod"})


def writes(resource: AnyResource) -> WritePath | None:
    """Return the directory a resource writes; None for a server, which writes nothing."""
    if isinstance(resource, ModelServer):
        return None
    kind, name, workspace = resource.kind, resource.metadata.name, resource.spec.workspace
    return WritePath(workspace.claim or names.claim(kind, name), workspace.path or names.default_path(kind, name))


def claims(resource: AnyResource, resources: Mapping[Key, AnyResource]) -> list[str]:
    """Return the claims a resource writes or reads, sorted: its own, its volumes' and its references' artifacts'."""
    found = {volume.claim for _, volume in references.volumes(resource)}
    if (own := writes(resource)) is not None:
        found.add(own.claim)
    for _, key in references.direct(resource):
        source = resources.get(key)
        if source is not None and source.status is not None and source.status.artifact is not None:
            found.add(source.status.artifact.claim)
    return sorted(found - {""})


def overlap(one: str, other: str) -> bool:
    """Whether two paths on a claim are the same, or one lies inside the other."""
    return _inside(one, other) or _inside(other, one)


def path_conflict(target: WritePath, writers: Mapping[WritePath, Key]) -> Problem | None:
    """Return that another resource writes the same directory, one inside it, or one around it."""
    for path, owner in sorted(writers.items()):
        if path.claim == target.claim and overlap(path.path, target.path):
            where = "the same directory" if path.path == target.path else f"{path.path}, which overlaps with it"
            return Problem(
                Reason.PATH_CONFLICT,
                f"spec.workspace: {target.path} on the volume {target.claim} belongs to {owner}, which writes {where}.",
                hint="Give this resource another workspace.path or workspace.claim.",
                field="spec.workspace.path",
            )
    return None


def reads_own_output(target: WritePath, inputs: Iterable[Found]) -> Problem | None:
    """Return that an input lies inside the directory the resource itself writes."""
    for found in inputs:
        if found.claim == target.claim and _inside(found.path, target.path):
            return Problem(
                Reason.INVALID_SPEC,
                f"{found.field}: {found.path} lies inside {target.path} on the volume {target.claim}, "
                "which is the directory this resource writes itself.",
                hint="Move the input elsewhere, or set workspace.path.",
                field=found.field,
            )
    return None


def access_problem(
    workspace: Workspace, target: WritePath, nodes: int, inputs: Iterable[Found], world: World, site: Site
) -> Problem | None:
    """Return that several nodes would need a volume that only one node can mount at a time."""
    if nodes == 1:
        return None
    if workspace.access_mode == "ReadWriteOnce":
        return Problem(
            Reason.INVALID_SPEC,
            f"spec.workspace.accessMode: ReadWriteOnce is mounted by one node, and spec.compute.nodes is {nodes}.",
            hint="Leave accessMode out or set ReadWriteMany, with a StorageClass that offers it.",
            field="spec.workspace.accessMode",
        )
    if site.local:
        return None
    own = ("spec.workspace.claim", target.claim) if workspace.claim is not None else None
    for field, claim in [*([own] if own else []), *((found.field, found.claim) for found in inputs)]:
        facts = world.volumes.get(claim)
        if facts is not None and facts.access_modes and ONE_NODE.issuperset(facts.access_modes):
            modes = ", ".join(facts.access_modes)
            return Problem(
                Reason.INVALID_SPEC,
                f"{field}: the volume {claim} is {modes}, mounted by one node, and spec.compute.nodes is {nodes}.",
                hint="Use a claim with ReadWriteMany (ReadOnlyMany for inputs), or compute.nodes: 1.",
                field=field,
            )
    return None


def own_claim_missing(workspace: Workspace, world: World, site: Site) -> Problem | None:
    """Return that workspace.claim names a claim that does not exist; on one machine it is made as a directory."""
    if workspace.claim is None or site.local or workspace.claim in world.volumes:
        return None
    return absent_volume(workspace.claim, "spec.workspace.claim", site)


def claim_manifest(
    resource: AnyResource, workspace: Workspace, nodes: int, owner: Sequence[Manifest]
) -> Manifest | None:
    """Return the PersistentVolumeClaim to make; None where the workspace names an existing one.

    It has an owner, and so goes with the resource, only with workspace.retain: false.
    """
    if workspace.claim is not None:
        return None
    mode = workspace.access_mode or ("ReadWriteOnce" if nodes == 1 else "ReadWriteMany")
    metadata: dict[str, Any] = {
        "name": names.claim(resource.kind, resource.metadata.name),
        "namespace": resource.metadata.namespace,
        "labels": names.labels(resource),
    }
    if not workspace.retain:
        metadata["ownerReferences"] = list(owner)
    spec: dict[str, Any] = {"accessModes": [mode], "resources": {"requests": {"storage": workspace.size}}}
    if workspace.storage_class_name is not None:
        spec["storageClassName"] = workspace.storage_class_name
    return {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": metadata, "spec": spec}


def _inside(path: str, directory: str) -> bool:
    return directory == "." or path == directory or path.startswith(f"{directory}/")
