"""Servers: a Deployment behind a Service, rolled out anew when the configuration changes."""

import hashlib
import json
from collections.abc import Iterable
from typing import Any

from herdsman.api.job_config import ServerConfig
from herdsman.api.v1alpha1.model_server import ModelServer
from herdsman.core import names, pods
from herdsman.core.jobs import config_map, queue_label
from herdsman.core.plan_types import Manifest
from herdsman.core.site import Site

CONTAINER = "server"
CONFIG_DIGEST = "herdsman.dev/config-digest"
"""On the pod template: another configuration is another template, and so a rollout."""
GENERATION = "herdsman.dev/generation"
"""On the Deployment: the generation of the ModelServer it was made from."""
GRACE_SECONDS = 120
"""Time to finish the answers under way."""
LOADING_SECONDS = 1800
"""A model may take this long to load before the pod is started again."""


def server_manifests(resource: ModelServer, config: ServerConfig, reads: Iterable[str], site: Site) -> list[Manifest]:
    """Return the ConfigMap, the Deployment and the Service."""
    name = names.server(resource.metadata.name)
    labels = names.labels(resource)
    settings = config_map(resource, name, config, labels)
    metadata = {key: settings["metadata"][key] for key in ("name", "namespace", "labels", "ownerReferences")}
    return [settings, _deployment(resource, config, metadata, set(reads), site), _service(resource, metadata)]


def config_digest(config: ServerConfig) -> str:
    """Return SHA-256 of a configuration's JSON, independent of the order of its keys."""
    return hashlib.sha256(json.dumps(config.to_json(), sort_keys=True).encode()).hexdigest()


def selector(resource: ModelServer) -> str:
    """Return the label selector of the pods, for the scale subresource."""
    return ",".join(f"{name}={value}" for name, value in sorted(names.labels(resource).items()))


def _deployment(
    resource: ModelServer, config: ServerConfig, metadata: dict[str, Any], reads: set[str], site: Site
) -> Manifest:
    spec = resource.spec
    container = pods.ContainerSpec(
        name=CONTAINER,
        image=site.server_image,
        module="herdsman_server",
        config_map=metadata["name"],
        ports={"http": spec.port},
        reads=reads,
        grace_seconds=GRACE_SECONDS,
    )
    pod = pods.pod_spec(container, spec.compute, metadata["labels"], site, extra=_probes())
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {
            **metadata,
            "labels": {**metadata["labels"], **queue_label(spec.compute)},
            "annotations": {GENERATION: str(resource.metadata.generation)},
        },
        "spec": {
            "replicas": spec.replicas,
            "selector": {"matchLabels": metadata["labels"]},
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}},
            "template": {
                "metadata": {"labels": metadata["labels"], "annotations": {CONFIG_DIGEST: config_digest(config)}},
                "spec": pod,
            },
        },
    }


def _probes() -> dict[str, Any]:
    period = 5
    health = {"httpGet": {"path": "/healthz", "port": "http"}}
    ready = {"httpGet": {"path": "/readyz", "port": "http"}}
    return {
        "startupProbe": {**health, "periodSeconds": period, "failureThreshold": LOADING_SECONDS // period},
        "livenessProbe": {**health, "periodSeconds": 10, "failureThreshold": 6},
        "readinessProbe": {**ready, "periodSeconds": period},
    }


def _service(resource: ModelServer, metadata: dict[str, Any]) -> Manifest:
    port = {"name": "http", "port": resource.spec.port, "targetPort": "http"}
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": metadata,
        "spec": {"type": "ClusterIP", "selector": metadata["labels"], "ports": [port]},
    }
