"""Volumes: what a resource writes and reads."""

from collections.abc import Mapping

from herdsman.api.v1alpha1.model_server import ModelServer
from herdsman.api.v1alpha1.registry import AnyResource
from herdsman.core import names, references
from herdsman.core.world import Key, WritePath


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
