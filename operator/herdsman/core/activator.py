"""The activator of a server that may be scaled to zero: a Deployment that clients reach in place of the replicas, and
the Service by which it reaches those.
"""

from typing import Any

from herdsman.api.job_config import API_KEY_FILE_VARIABLE, ServerConfig
from herdsman.api.v1alpha1.compute import Compute, Resources
from herdsman.api.v1alpha1.model_server import METRICS_PORT, ModelServer, ModelServerSpec, ScaleToZero
from herdsman.core import names, pods
from herdsman.core.plan_types import Manifest
from herdsman.core.site import Site
from herdsman.core.world import Key

CONTAINER = "activator"
CONTROL_PORT = "herdsman.dev/control-port"
"""On an activator's pods: the port on which the operator asks how much is asked for."""
KEYS_FILE = "/etc/herdsman-keys/keys"
"""Where the value of the Secret with the API keys is mounted, as in the replicas."""
ACCEPT_SECONDS = 10
"""In this time the cluster sends new requests elsewhere when an activator is stopped."""
SPARE_SECONDS = 10
MEMORY, CPU = "128Mi", "20m"


def activator_children(resource: ModelServer, config: ServerConfig, service: Manifest, site: Site) -> list[Manifest]:
    """Return the activators and the Service of the replicas, made after the one of the clients; none without them."""
    scaling = resource.spec.scale_to_zero
    if scaling is None or site.local:
        return []
    name = resource.metadata.name
    metadata = {**service["metadata"], "name": names.activator(name), "labels": names.activator_labels(name)}
    replicas = {**service, "metadata": {**service["metadata"], "name": names.replicas(name)}}
    return [_deployment(resource, scaling, config, metadata, site), replicas]


def unwanted_activator(name: str) -> list[Key]:
    """Return what a server without activators may have left of them."""
    return [Key("Deployment", names.activator(name)), Key("Service", names.replicas(name))]


def in_front(service: Manifest, name: str) -> Manifest:
    """Return the Service of the clients as one that leads to the activators."""
    return {**service, "spec": {**service["spec"], "selector": names.activator_labels(name)}}


def control_port(spec: ModelServerSpec) -> int:
    """Return the port of an activator that is not for clients."""
    return METRICS_PORT if spec.port != METRICS_PORT else METRICS_PORT + 1


def _deployment(
    resource: ModelServer, scaling: ScaleToZero, config: ServerConfig, metadata: dict[str, Any], site: Site
) -> Manifest:
    spec, name = resource.spec, resource.metadata.name
    control = control_port(spec)
    answering = int(scaling.hold_seconds + config.limits.request_seconds)
    key = spec.api_key
    container = pods.ContainerSpec(
        name=CONTAINER,
        image=site.activator_image,
        module="herdsman.activator",
        arguments=_arguments(scaling, config, f"http://{names.replicas(name)}:{spec.port}", control),
        ports={"http": spec.port, "metrics": control},
        grace_seconds=ACCEPT_SECONDS + answering + SPARE_SECONDS,
        env=[{"name": API_KEY_FILE_VARIABLE, "value": KEYS_FILE}] if key is not None else [],
        secrets={KEYS_FILE: key.secret} if key is not None else {},
    )
    # As many nodes as pods: they are spread over those there are.
    compute = Compute(nodes=scaling.activators, resources=Resources(cpu=CPU, memory=MEMORY))
    labels = metadata["labels"]
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": metadata,
        "spec": {
            "replicas": scaling.activators if spec.replicas else 0,
            "revisionHistoryLimit": 3,
            "selector": {"matchLabels": labels},
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}},
            "template": {
                "metadata": {"labels": labels, "annotations": {CONTROL_PORT: str(control)}},
                "spec": pods.pod_spec(container, compute, labels, site, extra=_probes()),
            },
        },
    }


def _arguments(scaling: ScaleToZero, config: ServerConfig, backend: str, control: int) -> list[str]:
    most = scaling.hold_requests or config.limits.queue_length
    return [
        f"--backend={backend}",
        f"--model={config.model_name}",
        f"--port={config.port}",
        f"--control-port={control}",
        f"--hold-seconds={scaling.hold_seconds}",
        # Divided, so that what all of them hold finds place in the queue of one replica.
        f"--hold-requests={max(1, most // scaling.activators)}",
        f"--accept-seconds={ACCEPT_SECONDS}",
        *(f"--origin={origin}" for origin in config.cors_origins),
    ]


def _probes() -> dict[str, Any]:
    health = {"httpGet": {"path": "/healthz", "port": "metrics"}}
    return {
        "startupProbe": {**health, "periodSeconds": 1, "failureThreshold": 60},
        "livenessProbe": {**health, "periodSeconds": 10, "failureThreshold": 6},
        "readinessProbe": {**health, "periodSeconds": 5},
    }
