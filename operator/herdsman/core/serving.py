"""Servers: a Deployment behind a Service, rolled out anew when the configuration changes.

Every configuration has a ConfigMap of its own, which stays as long as a replica has it: a replica of before that is
moved to another node while the new ones cannot start comes up again as what it was.
"""

import hashlib
import json
from collections.abc import Iterable
from typing import Any

from herdsman.api.job_config import API_KEY_FILE_VARIABLE, API_KEY_VARIABLE, AdapterList, ServerConfig
from herdsman.api.v1alpha1.model_server import ApiKey, ModelServer, ModelServerSpec
from herdsman.core import names, pods, vllm
from herdsman.core.activator import KEYS_FILE, activator_children, in_front, unwanted_activator
from herdsman.core.environment import from_secret, no_hub
from herdsman.core.jobs import config_map, queue_label
from herdsman.core.optional_children import OPTIONAL_KINDS, optional_children
from herdsman.core.plan_types import Manifest
from herdsman.core.site import Site
from herdsman.core.world import Key, ServerFacts

CONTAINER = "server"
CONFIG_DIGEST = "herdsman.dev/config-digest"
"""On the pod template: another configuration is another template, and so a rollout."""
GENERATION = "herdsman.dev/generation"
"""On the Deployment: the generation of the ModelServer it was made from."""
SPARE_SECONDS = 10
"""Between the last answer that is cut off and the end of the pod's time."""
ASLEEP = "herdsman.dev/asleep"
"""On a Deployment that has no replicas because nobody asked for a while."""
LOADING_SECONDS = 1800
"""A model may take this long to load before the pod is started again."""


def server_manifests(
    resource: ModelServer,
    config: ServerConfig,
    reads: Iterable[str],
    site: Site,
    adapters: AdapterList | None = None,
    *,
    asleep: bool = False,
    activated: bool = False,
) -> list[Manifest]:
    """Return the ConfigMap, the Deployment, the Service, and what else the spec asks for.

    `adapters` are those that are loaded while it runs; a change of them changes a ConfigMap of their own and no pod.
    `activated`: activators are ready to stand between the clients and the replicas.
    """
    name = names.server_config(resource.metadata.name, config_digest(config))
    settings = {**config_map(resource, name, config, names.labels(resource)), "immutable": True}
    metadata = {**settings["metadata"], "name": names.server(resource.metadata.name)}
    deployment = _deployment(resource, config, metadata, set(reads), site, asleep=asleep)
    service = _service(resource, metadata)
    activators = activator_children(resource, config, service, site)
    front = in_front(service, resource.metadata.name) if activators and activated else service
    lists = []
    if config.adapters_file is not None:
        name = names.server_adapters(resource.metadata.name)
        lists.append(config_map(resource, name, adapters or AdapterList(), names.labels(resource)))
    return [settings, *lists, deployment, front, *optional_children(resource, metadata), *activators]


def config_of(deployment: Manifest) -> str | None:
    """Return the name of the ConfigMap that the pods of a Deployment mount."""
    volumes = deployment["spec"]["template"]["spec"].get("volumes") or ()
    mounted = (volume["configMap"]["name"] for volume in volumes if volume["name"] == pods.CONFIG_VOLUME)
    return next(mounted, None)


def unwanted_children(resource: ModelServer, children: Iterable[Manifest], server: ServerFacts | None) -> list[Key]:
    """Return what the server has or may have and no longer needs: configurations once no replica has them any more,
    and optional children that are not among those planned.
    """
    planned = {Key(child["kind"], child["metadata"]["name"]) for child in children}
    name = names.server(resource.metadata.name)
    found = [Key(kind, name) for kind in OPTIONAL_KINDS] + unwanted_activator(resource.metadata.name)
    if server is not None and Key("ConfigMap", server.config or "") in planned:
        found += [Key("ConfigMap", config) for config in server.configs]
    return [key for key in found if key not in planned]


def config_digest(config: ServerConfig) -> str:
    """Return SHA-256 of a configuration's JSON, independent of the order of its keys."""
    return hashlib.sha256(json.dumps(config.to_json(), sort_keys=True).encode()).hexdigest()


def selector(resource: ModelServer) -> str:
    """Return the label selector of the pods, for the scale subresource."""
    return ",".join(f"{name}={value}" for name, value in sorted(names.labels(resource).items()))


def awake_replicas(spec: ModelServerSpec) -> int:
    """Return how many replicas a server has when it wakes; autoscaling goes on from there."""
    return spec.replicas if spec.autoscaling is None else spec.autoscaling.min_replicas


def _deployment(
    resource: ModelServer,
    config: ServerConfig,
    metadata: dict[str, Any],
    reads: set[str],
    site: Site,
    *,
    asleep: bool,
) -> Manifest:
    spec = resource.spec
    container = pods.ContainerSpec(
        name=CONTAINER,
        image=site.server_image,
        module="herdsman_server",
        config_map=names.server_config(resource.metadata.name, config_digest(config)),
        ports={"http": spec.port, "metrics": config.metrics_port},
        reads=reads,
        grace_seconds=config.accept_seconds + config.limits.drain_seconds + SPARE_SECONDS,
        env=[*no_hub(site), *_api_key(spec.api_key, site)],
        config_files=_lists(resource, config, site),
        secrets={KEYS_FILE: spec.api_key.secret} if spec.api_key is not None and not site.local else {},
    )
    compute = vllm.gateway(spec.compute) if config.engine == "vllm" else spec.compute
    pod = pods.pod_spec(container, compute, metadata["labels"], site, extra=_probes())
    if config.engine == "vllm":
        pod = vllm.beside(pod, resource, config, vllm.port_beside(spec, config.metrics_port), site)
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {
            **metadata,
            "labels": {**metadata["labels"], **queue_label(spec.compute)},
            "annotations": {
                GENERATION: str(resource.metadata.generation),
                **({ASLEEP: "true"} if asleep else {}),
            },
        },
        "spec": {
            **({"replicas": 0} if asleep else _replicas(spec)),
            "revisionHistoryLimit": 3,
            "progressDeadlineSeconds": LOADING_SECONDS + 600,
            "selector": {"matchLabels": metadata["labels"]},
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}},
            "template": {
                "metadata": {"labels": metadata["labels"], "annotations": {CONFIG_DIGEST: config_digest(config)}},
                "spec": pod,
            },
        },
    }


def _replicas(spec: ModelServerSpec) -> dict[str, int]:
    """With autoscaling the number is not named: it belongs to whoever scales, and 0 switches that off too."""
    return {"replicas": spec.replicas} if spec.autoscaling is None or spec.replicas == 0 else {}


def _lists(resource: ModelServer, config: ServerConfig, site: Site) -> dict[str, str]:
    """One machine has no mounts: the file is where the server is told to look."""
    if config.adapters_file is None or site.local:
        return {}
    return {config.adapters_file: names.server_adapters(resource.metadata.name)}


def _api_key(key: ApiKey | None, site: Site) -> list[dict[str, Any]]:
    """A file follows its Secret (docs/decisions/0014); one machine has no Secrets, and so the variable alone."""
    if key is None:
        return []
    if site.local:
        return [from_secret(API_KEY_VARIABLE, key.secret)]
    return [{"name": API_KEY_FILE_VARIABLE, "value": KEYS_FILE}]


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
    # The metrics have no port here: a Prometheus asks the pods, and whoever reaches the Service does not.
    port = {"name": "http", "port": resource.spec.port, "targetPort": "http"}
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": metadata,
        "spec": {"type": "ClusterIP", "selector": metadata["labels"], "ports": [port]},
    }
