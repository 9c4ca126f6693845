"""What a server may have beside its Deployment and Service: a way in, autoscaling, a budget for evictions, a scrape.

All have the server's name, so what the spec no longer asks for is found by its name, and nothing has to be remembered.
"""

from collections.abc import Mapping
from typing import Any

from herdsman.api.v1alpha1.model_server import (
    Autoscaling,
    DisruptionBudget,
    ModelServer,
    Monitoring,
    ServerIngress,
)
from herdsman.core.plan_types import Manifest

OPTIONAL_KINDS = ("Ingress", "HorizontalPodAutoscaler", "PodDisruptionBudget", "ServiceMonitor")
"""The server works without them: one that the platform does not take is told of and tried again."""
WAITING_METRIC = "herdsman_server_waiting_requests"
"""The server's own metric that autoscaling may follow."""
TOKENS_METRIC = "herdsman_server_completion_tokens_per_second"
"""What an adapter makes of the server's counter herdsman_server_completion_tokens_total."""


def optional_children(resource: ModelServer, metadata: Mapping[str, Any]) -> list[Manifest]:
    """Return those that the spec asks for, with the metadata that all children of the server have."""
    spec = resource.spec
    found: list[Manifest] = []
    if spec.ingress is not None:
        found.append(_ingress(spec.ingress, metadata))
    if spec.autoscaling is not None:
        found.append(_autoscaler(spec.autoscaling, metadata))
    most = spec.replicas if spec.autoscaling is None else spec.autoscaling.max_replicas
    if spec.disruption_budget is not None or most > 1:
        found.append(_budget(spec.disruption_budget or DisruptionBudget(max_unavailable=1), metadata))
    if spec.monitoring.service_monitor:
        found.append(_monitor(spec.monitoring, metadata))
    return found


def _ingress(ingress: ServerIngress, metadata: Mapping[str, Any]) -> Manifest:
    backend = {"service": {"name": metadata["name"], "port": {"name": "http"}}}
    path = {"path": ingress.path, "pathType": "Prefix", "backend": backend}
    spec: dict[str, Any] = {"rules": [{"host": ingress.host, "http": {"paths": [path]}}]}
    if ingress.class_name is not None:
        spec["ingressClassName"] = ingress.class_name
    if ingress.tls_secret_name is not None:
        spec["tls"] = [{"hosts": [ingress.host], "secretName": ingress.tls_secret_name}]
    if ingress.annotations:
        metadata = {**metadata, "annotations": dict(sorted(ingress.annotations.items()))}
    return {"apiVersion": "networking.k8s.io/v1", "kind": "Ingress", "metadata": metadata, "spec": spec}


def _autoscaler(scaling: Autoscaling, metadata: Mapping[str, Any]) -> Manifest:
    """It scales the Deployment, not the ModelServer, whose spec stays what its author wrote (docs/decisions/0009)."""
    metrics: list[dict[str, Any]] = []
    if (share := scaling.target_cpu_utilization_percentage) is not None:
        by_share = {"type": "Utilization", "averageUtilization": share}
        metrics.append({"type": "Resource", "resource": {"name": "cpu", "target": by_share}})
    by_metric = {WAITING_METRIC: scaling.target_waiting_requests, TOKENS_METRIC: scaling.target_tokens_per_second}
    for name, wanted in by_metric.items():
        if wanted is not None:
            by_count = {"type": "AverageValue", "averageValue": str(wanted)}
            metrics.append({"type": "Pods", "pods": {"metric": {"name": name}, "target": by_count}})
    spec = {
        "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": metadata["name"]},
        "minReplicas": scaling.min_replicas,
        "maxReplicas": scaling.max_replicas,
        "metrics": metrics,
    }
    return {"apiVersion": "autoscaling/v2", "kind": "HorizontalPodAutoscaler", "metadata": metadata, "spec": spec}


def _budget(budget: DisruptionBudget, metadata: Mapping[str, Any]) -> Manifest:
    """A replica that does not answer is in nobody's way: it may always be evicted."""
    member, value = budget.chosen
    field = "minAvailable" if member.startswith("min_available") else "maxUnavailable"
    spec = {
        field: f"{value}%" if member.endswith("_percent") else value,
        "unhealthyPodEvictionPolicy": "AlwaysAllow",
        "selector": {"matchLabels": metadata["labels"]},
    }
    return {"apiVersion": "policy/v1", "kind": "PodDisruptionBudget", "metadata": metadata, "spec": spec}


def _monitor(monitoring: Monitoring, metadata: Mapping[str, Any]) -> Manifest:
    spec = {
        "selector": {"matchLabels": metadata["labels"]},
        "endpoints": [{"targetPort": "metrics", "interval": monitoring.interval}],
    }
    return {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "ServiceMonitor",
        "metadata": {**metadata, "labels": {**monitoring.labels, **metadata["labels"]}},
        "spec": spec,
    }
