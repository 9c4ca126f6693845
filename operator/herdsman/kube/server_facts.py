"""From a Deployment and its pods to facts about a server."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType

from herdsman.core.serving import ASLEEP, CONTAINER, GENERATION, config_of
from herdsman.core.world import PodFacts, ServerFacts
from herdsman.kube.pod_facts import Body, Cause, pod_facts, shortened

NOTHING: Mapping[str, Cause] = MappingProxyType({})


def server_facts(
    deployment: Body, pods: Sequence[Body], *, configs: Sequence[str] = (), told: Mapping[str, Cause] = NOTHING
) -> ServerFacts:
    """Return what is observed of a ModelServer's Deployment; old replicas do not count as having the new generation.

    `configs` are the names of the server's ConfigMaps, `told` is what Events say of pods, by the pod's name.
    """
    metadata, spec, status = deployment["metadata"], deployment["spec"], deployment.get("status") or {}
    wanted = spec.get("replicas", 1)
    annotations = metadata.get("annotations") or {}
    made_from = annotations.get(GENERATION, "0")
    seen = (status.get("observedGeneration") or 0) >= (metadata.get("generation") or 0)
    rolled_out = (
        seen
        and (status.get("updatedReplicas") or 0) >= wanted
        and (status.get("replicas") or 0) <= (status.get("updatedReplicas") or 0)
    )
    port = spec["template"]["spec"]["containers"][0]["ports"][0]["containerPort"]
    staying = [pod for pod in pods if not pod["metadata"].get("deletionTimestamp")]
    facts = [pod_facts(pod, cause=told.get(pod["metadata"]["name"])) for pod in staying]
    return ServerFacts(
        replicas=status.get("replicas") or 0,
        ready=status.get("readyReplicas") or 0,
        url=f"http://{metadata['name']}.{metadata['namespace']}.svc:{port}/v1",
        observed_generation=int(made_from) if rolled_out and made_from.isdigit() else 0,
        pods=(*not_made(deployment, CONTAINER), *facts),
        wanted=wanted,
        config=config_of(deployment) if rolled_out else None,
        configs=tuple(configs),
        asleep=ASLEEP in annotations and wanted == 0,
    )


def not_made(deployment: Body, container: str) -> tuple[PodFacts, ...]:
    """Return a stand-in for the pods that a quota or a policy forbids, which only the Deployment tells of."""
    conditions = (deployment.get("status") or {}).get("conditions") or ()
    failing = (item for item in conditions if item["type"] == "ReplicaFailure" and item["status"] == "True")
    if (condition := next(failing, None)) is None:
        return ()
    message = condition.get("message") or ""
    reason = "QuotaExceeded" if "exceeded quota" in message else "FailedCreate"
    name = deployment["metadata"]["name"]
    return (PodFacts(name, container=container, reason=reason, message=shortened(message)),)
