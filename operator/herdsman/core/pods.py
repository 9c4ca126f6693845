"""Pods: the template that jobs and servers share. Every pod meets the restricted Pod Security Standard.

A container sees each claim under the site's root, its configuration as one file, and writes nowhere else but to the
workspace's claim, /tmp and /dev/shm.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from herdsman.api.meta import API_VERSION
from herdsman.api.v1alpha1.compute import Compute
from herdsman.api.v1alpha1.registry import AnyResource
from herdsman.api.v1alpha1.secrets import SecretKeyRef
from herdsman.core.environment import escaped
from herdsman.core.site import Site

USER = 10001
"""The user and group of every container, and the group of the volumes."""
GPU = "nvidia.com/gpu"
NODE_LOST_SECONDS = 60
"""How long a pod stays bound to a node that does not answer; Kubernetes' default is 300."""
CONFIG_VOLUME = "config"
CONFIG_KEY = "job.json"
"""The key of the configuration in its ConfigMap, and so the name of the mounted file."""
_UNREACHABLE = ("node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable")


@dataclass(frozen=True)
class ContainerSpec:
    """What differs between a trainer's and a server's container."""

    name: str
    image: str
    module: str
    """The Python module that runs."""
    ports: Mapping[str, int]
    config_map: str | None = None
    """The ConfigMap with its configuration; without one it gets `arguments`, and no shared memory."""
    arguments: Sequence[str] = ()
    """What the module is given instead."""
    writes: str | None = None
    """The claim that is mounted for writing."""
    reads: Iterable[str] = ()
    """Claims that are mounted read-only."""
    grace_seconds: int = 30
    env: Sequence[Mapping[str, Any]] = ()
    """Its environment."""
    config_files: Mapping[str, str] = field(default_factory=dict)
    """Further ConfigMaps that are mounted, and follow a change of theirs, by the path of the file."""
    secrets: Mapping[str, SecretKeyRef] = field(default_factory=dict)
    """Values of Secrets that are mounted as files, which follow a change of the Secret, by the path of the file."""


def owner_references(resource: AnyResource) -> list[dict[str, Any]]:
    """Return the reference by which Kubernetes removes a child together with its parent."""
    meta = resource.metadata
    return [
        {
            "apiVersion": API_VERSION,
            "kind": resource.kind,
            "name": meta.name,
            "uid": meta.uid,
            "controller": True,
            "blockOwnerDeletion": True,
        }
    ]


def command(container: ContainerSpec, site: Site) -> list[str]:
    """Return the container's command, escaped."""
    argv = [site.python, "-m", container.module]
    if container.config_map is not None:
        argv += ["--config", site.config_path(container.config_map)]
    return [escaped(argument) for argument in (*argv, *container.arguments)]


def pod_spec(
    container: ContainerSpec, compute: Compute, labels: Mapping[str, str], site: Site, extra: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the spec of the pods with these labels; `extra` members are added to the container, such as probes."""
    volumes, mounts = _volumes(container, compute, site)
    spec: dict[str, Any] = {
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": USER,
            "runAsGroup": USER,
            "fsGroup": USER,
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "terminationGracePeriodSeconds": container.grace_seconds,
        "containers": [
            {
                "name": container.name,
                "image": compute.image or container.image,
                "command": command(container, site),
                "env": list(container.env),
                "ports": [{"name": name, "containerPort": port} for name, port in container.ports.items() if port],
                "resources": resources(compute),
                "securityContext": {
                    "allowPrivilegeEscalation": False,
                    "capabilities": {"drop": ["ALL"]},
                    "readOnlyRootFilesystem": True,
                },
                "terminationMessagePolicy": "FallbackToLogsOnError",
                "volumeMounts": mounts,
                **extra,
            }
        ],
        "tolerations": _tolerations(compute),
        "volumes": volumes,
    }
    if site.image_pull_policy is not None:
        spec["containers"][0]["imagePullPolicy"] = site.image_pull_policy
    if site.image_pull_secrets:
        spec["imagePullSecrets"] = [{"name": name} for name in site.image_pull_secrets]
    if compute.nodes > 1:
        spec["topologySpreadConstraints"] = [_one_a_node(labels)]
    if compute.node_selector:
        spec["nodeSelector"] = dict(sorted(compute.node_selector.items()))
    if compute.priority_class_name is not None:
        spec["priorityClassName"] = compute.priority_class_name
    return spec


def _one_a_node(labels: Mapping[str, str]) -> dict[str, Any]:
    """Pods that train together go to different nodes where there are enough of them."""
    return {
        "maxSkew": 1,
        "topologyKey": "kubernetes.io/hostname",
        "whenUnsatisfiable": "ScheduleAnyway",
        "labelSelector": {"matchLabels": dict(labels)},
    }


def resources(compute: Compute) -> dict[str, Any]:
    """Return what a container asks for.

    Memory and GPUs are limited; CPU is only requested, because a limit would throttle what is idle anyway."""
    asked = compute.resources
    requests = {"cpu": asked.cpu, "memory": asked.memory, "ephemeral-storage": asked.ephemeral_storage}
    limits = {"memory": asked.memory, "ephemeral-storage": asked.ephemeral_storage}
    if compute.gpus_per_node:
        requests[GPU] = limits[GPU] = str(compute.gpus_per_node)
    found = {"requests": _given(requests), "limits": _given(limits)}
    return {name: members for name, members in found.items() if members}


def _given(members: Mapping[str, str | None]) -> dict[str, str]:
    return {name: value for name, value in members.items() if value is not None}


def _tolerations(compute: Compute) -> list[dict[str, Any]]:
    own = [toleration.to_json() for toleration in compute.tolerations]
    named = {toleration.key for toleration in compute.tolerations}
    lost = [
        {"key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": NODE_LOST_SECONDS}
        for key in _UNREACHABLE
        if key not in named
    ]
    return [*own, *lost]


def _volumes(
    container: ContainerSpec, compute: Compute, site: Site
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    volumes: list[dict[str, Any]] = [{"name": "tmp", "emptyDir": {}}]
    mounts: list[dict[str, Any]] = [{"name": "tmp", "mountPath": "/tmp"}]  # noqa: S108 - an emptyDir of the pod's own
    if container.config_map is not None:
        path = site.config_path(container.config_map)
        shared = "8Gi" if compute.gpus_per_node else "1Gi"
        volumes.insert(0, {"name": CONFIG_VOLUME, "configMap": {"name": container.config_map}})
        mounts.insert(0, {"name": CONFIG_VOLUME, "mountPath": path.rpartition("/")[0], "readOnly": True})
        volumes.append({"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": shared}})
        mounts.append({"name": "shm", "mountPath": "/dev/shm"})  # noqa: S108
    for number, (file, config_map) in enumerate(sorted(container.config_files.items())):
        volumes.append({"name": f"config-{number}", "configMap": {"name": config_map}})
        mounts.append({"name": f"config-{number}", "mountPath": file.rpartition("/")[0], "readOnly": True})
    for number, (file, reference) in enumerate(sorted(container.secrets.items())):
        # Not as a subPath, which would stay as it was when the pod started.
        directory, _, name = file.rpartition("/")
        items = [{"key": reference.key, "path": name}]
        secret = {"secretName": reference.name, "items": items, "defaultMode": 0o440}
        volumes.append({"name": f"secret-{number}", "secret": secret})
        mounts.append({"name": f"secret-{number}", "mountPath": directory, "readOnly": True})
    written = {container.writes} if container.writes is not None else set()
    for number, claim in enumerate(sorted(written | set(container.reads))):
        read_only = claim != container.writes
        source = {"claimName": claim, **({"readOnly": True} if read_only else {})}
        volumes.append({"name": f"volume-{number}", "persistentVolumeClaim": source})
        mount = {"name": f"volume-{number}", "mountPath": site.mount(claim)}
        mounts.append({**mount, "readOnly": True} if read_only else mount)
    return volumes, mounts
