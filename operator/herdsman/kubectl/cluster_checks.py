"""Checks of the whole cluster: the API server, the CRDs, volumes, GPUs, monitoring."""

import re
from collections.abc import Iterator
from typing import Any, get_args

from herdsman.api.meta import GROUP, VERSION, ApiModel
from herdsman.api.v1alpha1.registry import KINDS
from herdsman.core.pods import GPU
from herdsman.kube.errors import ApiError, NotFound
from herdsman.kube.port import Body
from herdsman.kubectl.connection import Connection
from herdsman.kubectl.findings import Finding, fail, ok, unknown, warn
from herdsman.kubectl.planning import gpus_of

OLDEST = (1, 30)
"""The chart's kubeVersion: podReplacementPolicy and the rules of the CRDs are on by default from here."""
SHARED_STORAGE = re.compile(
    r"nfs|cephfs|efs|azurefile|file\.csi\.azure|filestore|glusterfs|lustre|beegfs|gpfs|spectrumscale|weka|vast|juicefs"
    r"|longhorn|portworx|pxd|quobyte|moosefs|seaweedfs|netapp|trident|isilon|powerscale|manila|smb|fsx",
    re.IGNORECASE,
)
"""Names of provisioners whose volumes several nodes can mount."""
DEFAULT_CLASS = "storageclass.kubernetes.io/is-default-class"
_SHOWN = 5


async def api_server(connection: Connection) -> list[Finding]:
    """Whether the API server answers, and is new enough."""
    version = await connection.read("/version")
    found = tuple(int("".join(filter(str.isdigit, version.get(part, ""))) or 0) for part in ("major", "minor"))
    named = version.get("gitVersion") or ".".join(map(str, found))
    if found < OLDEST:
        needed = ".".join(map(str, OLDEST))
        return [fail("API server", f"Kubernetes {named}", f"Herdsman needs Kubernetes {needed} or newer")]
    return [ok("API server", f"Kubernetes {named}")]


async def definitions(connection: Connection) -> list[Finding]:
    """Whether all CRDs are there, and are those of this version."""
    try:
        served = await connection.read(f"/apis/{GROUP}/{VERSION}")
    except NotFound:
        served = {}
    plurals = {item["name"] for item in served.get("resources") or ()}
    missing = [info.kind for info in KINDS.values() if info.plural not in plurals]
    if missing:
        told = "none are installed" if len(missing) == len(KINDS) else f"missing: {', '.join(missing)}"
        remedy = "install Herdsman's chart, or kubectl apply --server-side -f crds"
        return [fail("CRDs", told, remedy)]
    lacks: list[str] = []
    try:
        for info in KINDS.values():
            body = await connection.find("CustomResourceDefinition", None, f"{info.plural}.{GROUP}")
            version = next(item for item in body["spec"]["versions"] if item["name"] == VERSION)
            members = version["schema"]["openAPIV3Schema"]["properties"]
            for member in ("spec", "status"):
                for model in _models_in(info.model.model_fields[member].annotation):
                    lacks += _lacking(model, members[member], f"{info.kind}.{member}")
    except ApiError as error:
        if error.status != 403:
            raise
        return [ok("CRDs", f"all {len(KINDS)} kinds are served (their schemas may not be read)")]
    if lacks:
        shown = ", ".join(lacks[:_SHOWN]) + (f" and {len(lacks) - _SHOWN} more" if len(lacks) > _SHOWN else "")
        remedy = "upgrade the CRDs: helm upgrade, or kubectl apply --server-side -f crds"
        return [fail("CRDs", f"of another version: they do not know {shown}", remedy)]
    return [ok("CRDs", f"all {len(KINDS)} kinds, as this version knows them")]


def _lacking(model: type[ApiModel], schema: Body, path: str) -> Iterator[str]:
    """Yield the paths of members that a model has and the CRD does not."""
    for name, field in model.model_fields.items():
        member = field.alias or name
        there = (schema.get("properties") or {}).get(member)
        if there is None:
            yield f"{path}.{member}"
            continue
        inside = there.get("items", there)
        for inner in _models_in(field.annotation):
            yield from _lacking(inner, inside, f"{path}.{member}{'[]' if inside is not there else ''}")


def _models_in(annotation: Any) -> Iterator[type[ApiModel]]:
    """Yield the models in an annotation such as list[Metric] or Progress | None."""
    if isinstance(annotation, type) and issubclass(annotation, ApiModel):
        yield annotation
    for argument in get_args(annotation):
        yield from _models_in(argument)


async def storage(connection: Connection) -> list[Finding]:
    """Whether claims without a class get a volume, and whether one can be shared between nodes."""
    classes = await connection.items("StorageClass")
    if not classes:
        told = "there is no StorageClass: claims that Herdsman makes are never bound"
        return [fail("storage", told, "install a provisioner, or name existing claims in spec.workspace.claim")]
    names = {body["metadata"]["name"]: body.get("provisioner", "") for body in classes}
    default = next((body["metadata"]["name"] for body in classes if _is_default(body)), None)
    shared = [name for name, provisioner in names.items() if SHARED_STORAGE.search(f"{name} {provisioner}")]
    findings = []
    if default is None:
        told = f"no default StorageClass; there are {', '.join(names)}"
        remedy = "mark one as default, or name one in spec.workspace.storageClassName"
        findings.append(warn("storage", told, remedy))
    else:
        findings.append(ok("storage", f"default StorageClass {default} ({names[default]})"))
    if shared:
        findings.append(ok("shared storage", f"{', '.join(shared)}: likely ReadWriteMany"))
    else:
        told = "no StorageClass looks like ReadWriteMany, which training on several nodes needs"
        remedy = "add one (NFS, CephFS, a cloud's file service), or keep compute.nodes at 1"
        findings.append(warn("shared storage", told, remedy))
    return findings


def _is_default(body: Body) -> bool:
    return (body["metadata"].get("annotations") or {}).get(DEFAULT_CLASS) == "true"


async def gpus(connection: Connection) -> list[Finding]:
    """Which nodes offer GPUs."""
    nodes = await connection.items("Node")
    ready = [node for node in nodes if _is_ready(node) and not (node.get("spec") or {}).get("unschedulable")]
    if not ready:
        return [fail("nodes", f"none of {len(nodes)} nodes is ready", "kubectl get nodes; kubectl describe node NAME")]
    counts = [count for node in ready if (count := gpus_of(node))]
    if not counts:
        told = f"none of {len(ready)} ready nodes offers {GPU}: runs that ask for GPUs stay Queued"
        return [warn("GPUs", told, "install the NVIDIA device plugin (or GPU operator), or train on the CPU")]
    kinds = ", ".join(f"{counts.count(size)} x {size}" for size in sorted(set(counts), reverse=True))
    return [ok("GPUs", f"{sum(counts)} on {len(counts)} of {len(ready)} ready nodes ({kinds})")]


def _is_ready(node: Body) -> bool:
    conditions = (node.get("status") or {}).get("conditions") or ()
    return any(item["type"] == "Ready" and item["status"] == "True" for item in conditions)


async def monitoring(connection: Connection) -> list[Finding]:
    """Whether the Prometheus operator is there, which the chart's monitoring objects need."""
    groups = {item["name"] for item in (await connection.read("/apis")).get("groups") or ()}
    if "monitoring.coreos.com" in groups:
        return [ok("monitoring", "the Prometheus operator's API is there; the chart makes ServiceMonitor and alerts")]
    told = "no Prometheus operator: the chart's ServiceMonitor and alerts are not made (optional)"
    return [unknown("monitoring", told)]
