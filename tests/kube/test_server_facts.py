"""From a Deployment and its pods to facts about a server."""

import pytest

from herdsman.kube.pod_facts import Cause
from herdsman.kube.server_facts import server_facts
from kube.objects import END, meta, terminated, waiting


def deployment(generation=2, **status):
    container = {"name": "server", "ports": [{"name": "http", "containerPort": 8000}]}
    volumes = [{"name": "tmp", "emptyDir": {}}, {"name": "config", "configMap": {"name": "ms-chat-abc"}}]
    return {
        "kind": "Deployment",
        "metadata": meta("ms-chat", generation=5, annotations={"herdsman.dev/generation": str(generation)}),
        "spec": {"replicas": 2, "template": {"spec": {"containers": [container], "volumes": volumes}}},
        "status": {"observedGeneration": 5, **status},
    }


ROLLOUTS = {
    "just made": ({}, (0, 0, 0)),
    "half way": ({"replicas": 3, "updatedReplicas": 1, "readyReplicas": 2}, (3, 2, 0)),
    "an old replica is left": ({"replicas": 3, "updatedReplicas": 2, "readyReplicas": 3}, (3, 3, 0)),
    "done": ({"replicas": 2, "updatedReplicas": 2, "readyReplicas": 2}, (2, 2, 2)),
    "not seen by the controller": (
        {"replicas": 2, "updatedReplicas": 2, "readyReplicas": 2, "observedGeneration": 4},
        (2, 2, 0),
    ),
}


@pytest.mark.parametrize("name", ROLLOUTS)
def test_replicas_count_as_new_only_after_the_rollout(name):
    status, expected = ROLLOUTS[name]
    facts = server_facts(deployment(**status), [])
    assert (facts.replicas, facts.ready, facts.observed_generation) == expected
    assert facts.config == ("ms-chat-abc" if facts.observed_generation else None)
    assert facts.wanted == 2


def test_a_server_answers_at_its_service_and_shows_the_pods_that_stay():
    leaving = terminated(143, name="old", metadata={"deletionTimestamp": END})
    facts = server_facts(deployment(), [leaving, waiting("ErrImagePull", name="new")])
    assert facts.url == "http://ms-chat.team.svc:8000/v1"
    assert [entry.name for entry in facts.pods] == ["new"]


def test_a_quota_that_forbids_the_pods_is_told_by_the_deployment_alone():
    message = 'pods "ms-chat-x" is forbidden: exceeded quota: none, requested: pods=1'
    condition = {"type": "ReplicaFailure", "status": "True", "reason": "FailedCreate", "message": message}
    (stand_in,) = server_facts(deployment(conditions=[condition]), []).pods
    assert (stand_in.name, stand_in.container, stand_in.reason) == ("ms-chat", "server", "QuotaExceeded")
    assert stand_in.message == message
    assert server_facts(deployment(conditions=[{**condition, "status": "False"}]), []).pods == ()


SECRETS = {
    "a Secret that does not exist": 'secret "chat-keys" not found',
    "a key that the Secret lacks": "couldn't find key api in Secret team/chat-keys",
}


@pytest.mark.parametrize("what", SECRETS)
def test_a_missing_secret_has_a_reason_of_its_own(what):
    (entry,) = server_facts(deployment(), [waiting("CreateContainerConfigError", SECRETS[what])]).pods
    assert (entry.reason, entry.message) == ("SecretNotFound", SECRETS[what])


def test_another_reason_not_to_configure_a_container_is_no_missing_secret():
    message = 'configmap "ms-chat" not found'
    (entry,) = server_facts(deployment(), [waiting("CreateContainerConfigError", message)]).pods
    assert entry.reason == "CreateContainerConfigError"


def test_what_events_say_of_a_pod_counts_where_its_status_is_silent():
    told = {"a": Cause("FailedAttachVolume", "Multi-Attach error"), "b": Cause("FailedMount", "no")}
    silent, loud = waiting("ContainerCreating", name="a"), waiting("ErrImagePull", name="b")
    facts = server_facts(deployment(), [silent, loud], told=told)
    assert [entry.reason for entry in facts.pods] == ["FailedAttachVolume", "ErrImagePull"]
