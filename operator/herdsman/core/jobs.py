"""Jobs: one Indexed Job per attempt, with its configuration and, for several nodes, a headless Service.

A pod that falls ends the whole attempt (backoffLimit 0); the next attempt is another Job, which goes on from the newest
checkpoint. A Job's template is never changed, whatever happens to the operator's defaults: a shell makes a Job once and
afterwards only carries over `spec.suspend`.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from herdsman.api.exit_codes import PERMANENT
from herdsman.api.job_config import (
    DatasetInput,
    EvaluationConfig,
    InstructionSetConfig,
    Launch,
    ModelImportConfig,
    Owner,
    RunConfig,
    TrainingConfig,
    WorkspaceDir,
)
from herdsman.api.meta import ApiModel
from herdsman.api.v1alpha1.compute import Compute, RunPolicy
from herdsman.api.v1alpha1.model_server import ModelServer
from herdsman.api.v1alpha1.registry import AnyResource
from herdsman.core import names, pods, preflight
from herdsman.core.environment import Entry
from herdsman.core.plan_types import Manifest
from herdsman.core.site import Site
from herdsman.core.world import WritePath

CONTAINER = "trainer"
QUEUE_LABEL = "kueue.x-k8s.io/queue-name"
SHORTEST_GRACE, LONGEST_GRACE = 60, 1800
"""Seconds a trainer has to save after SIGTERM."""
SAVE_BYTES_PER_SECOND = 200e6
"""A slow network volume; three times the time this gives is granted."""


@dataclass(frozen=True)
class Frame:
    """What the configuration of every run has."""

    owner: Owner
    attempt: int
    workspace: WorkspaceDir
    launch: Launch
    metrics_port: int
    stall_seconds: int

    def members(self) -> dict[str, Any]:
        """Return the members of RunConfig."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__ if name in RunConfig.model_fields}


@dataclass(frozen=True)
class AttemptOptions:
    """What an attempt's Job depends on besides its spec and configuration."""

    reads: frozenset[str]
    """The claims of its inputs."""
    suspend: bool = False
    seconds_left: float | None = None
    """What the attempts before have left of activeDeadlineSeconds; None without a deadline."""
    checkpoint_bytes: int = 0
    preflight: bool = False
    env: Sequence[Entry] = ()
    """The environment of its containers."""


def frame(resource: AnyResource, compute: Compute, target: WritePath, attempt: int, site: Site) -> Frame:
    """Return the frame of one attempt."""
    assert not isinstance(resource, ModelServer), "a server has no attempts"
    meta = resource.metadata
    root = site.mount(target.claim)
    address, port = site.rendezvous(names.job(resource.kind, meta.name, attempt))
    return Frame(
        owner=Owner(kind=resource.kind, name=meta.name, namespace=meta.namespace, uid=meta.uid),
        attempt=attempt,
        workspace=WorkspaceDir(
            root=root,
            path=root if target.path == "." else f"{root}/{target.path}",
            claim=target.claim,
            relative=target.path,
        ),
        launch=Launch(
            nodes=compute.nodes,
            processes_per_node=compute.processes,
            master_address=address if compute.nodes > 1 else "127.0.0.1",
            master_port=port,
        ),
        metrics_port=site.metrics_port,
        stall_seconds=resource.spec.stall_seconds,
    )


def config_map(resource: AnyResource, name: str, config: ApiModel, labels: dict[str, str]) -> Manifest:
    """Return the ConfigMap with a configuration as one JSON file."""
    text = json.dumps(config.to_json(), indent=2, ensure_ascii=False, sort_keys=True)
    metadata = _metadata(resource, name, labels)
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": {pods.CONFIG_KEY: text + "\n"}}


def attempt_manifests(
    resource: AnyResource, policy: RunPolicy, config: RunConfig, options: AttemptOptions, site: Site
) -> list[Manifest]:
    """Return the ConfigMap, the headless Service of several nodes, and the Job of one attempt."""
    name = names.job(resource.kind, resource.metadata.name, config.attempt)
    labels = names.labels(resource, config.attempt, preflight=options.preflight)
    settings = {**config_map(resource, name, config, labels), "immutable": True}
    marks = {**labels, **queue_label(policy.compute)}
    job = {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": _metadata(resource, name, marks),
        "spec": _job_spec(policy, config, name, labels, options, site),
    }
    if policy.compute.nodes == 1:
        return [settings, job]
    return [settings, _headless_service(resource, name, labels, config.launch.master_port), job]


def queue_label(compute: Compute) -> dict[str, str]:
    """Return the label by which Kueue takes an object into a queue; none without a queue."""
    return {QUEUE_LABEL: compute.queue_name} if compute.queue_name is not None else {}


def grace_seconds(checkpoint_bytes: int) -> int:
    """Return the seconds a trainer gets to save a checkpoint of this size: three times what a slow volume takes.

    One may be on its way when the signal comes, and the last one follows it.
    """
    return int(min(LONGEST_GRACE, max(SHORTEST_GRACE, 3 * checkpoint_bytes / SAVE_BYTES_PER_SECOND)))


def _metadata(resource: AnyResource, name: str, labels: dict[str, str]) -> dict[str, Any]:
    return {
        "name": name,
        "namespace": resource.metadata.namespace,
        "labels": labels,
        "ownerReferences": pods.owner_references(resource),
    }


def _headless_service(resource: AnyResource, name: str, labels: dict[str, str], port: int) -> Manifest:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": _metadata(resource, name, labels),
        "spec": {
            "clusterIP": "None",
            "publishNotReadyAddresses": True,  # the ranks find each other before any of them is ready
            "selector": labels,
            "ports": [{"name": "rendezvous", "port": port}],
        },
    }


def _job_spec(
    policy: RunPolicy, config: RunConfig, name: str, labels: dict[str, str], options: AttemptOptions, site: Site
) -> dict[str, Any]:
    compute = policy.compute
    container = pods.ContainerSpec(
        name=CONTAINER,
        image=site.trainer_image,
        module="herdsman_trainer",
        config_map=name,
        ports={"metrics": config.metrics_port},
        writes=config.workspace.claim,
        reads=options.reads,
        grace_seconds=grace_seconds(options.checkpoint_bytes),
        env=options.env,
    )
    pod = pods.pod_spec(container, compute, labels, site, extra={})
    pod["restartPolicy"] = "Never"
    if compute.nodes > 1:
        pod["subdomain"] = name
    if options.preflight:
        pod["affinity"] = preflight.NEAR_GPUS
    spec: dict[str, Any] = {
        "completionMode": "Indexed",
        "completions": compute.nodes,
        "parallelism": compute.nodes,
        "backoffLimit": 0,
        "podReplacementPolicy": "Failed",
        "podFailurePolicy": _failure_policy(),
        "template": {"metadata": {"labels": {**labels, **_reaches(config)}}, "spec": pod},
    }
    if options.seconds_left is not None:
        spec["activeDeadlineSeconds"] = max(1, int(options.seconds_left))
    if options.suspend or compute.queue_name is None:
        spec["suspend"] = options.suspend  # with a queue, Kueue decides when the Job may start
    return spec


def _reaches(config: RunConfig) -> dict[str, str]:
    """Return the labels by which a cluster's fences let a pod reach more than the pods of runs."""
    asked = config.generate.endpoint if isinstance(config, InstructionSetConfig) and config.generate else None
    elsewhere = asked is not None and not asked.ours
    elsewhere = elsewhere or (isinstance(config, ModelImportConfig) and config.remote is not None)
    elsewhere = elsewhere or (isinstance(config, EvaluationConfig) and any(task.judge for task in config.tasks))
    elsewhere = elsewhere or any(dataset.remote is not None for dataset in _datasets(config))
    found = {names.LABEL_ASKS_SERVERS: asked is not None and asked.ours, names.LABEL_DOWNLOADS: elsewhere}
    return {label: "true" for label, wanted in found.items() if wanted}


def _datasets(config: RunConfig) -> Sequence[DatasetInput]:
    if isinstance(config, TrainingConfig):
        return config.datasets
    if isinstance(config, EvaluationConfig):
        return list(config.datasets.values())
    return [source.dataset for source in config.sources] if isinstance(config, InstructionSetConfig) else []


def _failure_policy() -> dict[str, Any]:
    """The Job's condition then tells what ended it, even where the pods are gone before anybody looked."""
    codes = sorted(int(code) for code in PERMANENT)
    return {
        "rules": [
            {
                "action": "FailJob",
                "onExitCodes": {"containerName": CONTAINER, "operator": "In", "values": codes},
            },
            {"action": "FailJob", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
        ]
    }
