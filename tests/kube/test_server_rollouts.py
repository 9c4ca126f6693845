"""A rollout that cannot succeed: its cause is told within ten seconds, and the replicas of before go on answering."""

import pytest

from kube.station import NAMESPACE, run
from kube.test_server_children import change, condition, served, serving


def pod_of_a_server(name, state):
    labels = {
        "app.kubernetes.io/managed-by": "herdsman",
        "herdsman.dev/kind": "ModelServer",
        "herdsman.dev/name": "chat",
    }
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": NAMESPACE, "labels": labels},
        "spec": {"containers": [{"name": "server"}]},
        "status": {"phase": "Pending", "containerStatuses": [{"name": "server", "state": {"waiting": state}}]},
    }


async def stuck(station, state, *events):
    """A rollout whose new pod stays in this state."""
    station.platform._roll_out = lambda _: None
    await change(station, modelName="other")
    station.api.change("Deployment", NAMESPACE, "ms-chat", {"status": {"replicas": 2, "updatedReplicas": 1}})
    pod = station.api.add(pod_of_a_server("ms-chat-new", state))
    for event in events:
        station.api.add({**event, "involvedObject": {"uid": pod["metadata"]["uid"]}})
    begun = station.seconds
    while "failure" not in station.status(served()) and station.seconds < begun + 60:
        await station.work()
        station.seconds += 1
    return station.seconds - begun


def test_a_missing_secret_is_the_cause_of_a_stuck_rollout_while_the_replicas_of_before_answer():
    async def story():
        station = await serving()
        message = 'secret "chat-keys" not found'
        seconds = await stuck(station, {"reason": "CreateContainerConfigError", "message": message})
        return station, seconds

    station, seconds = run(story)
    status = station.status(served())
    assert seconds <= 10
    assert (status["phase"], status["failure"]["reason"]) == ("Degraded", "SecretNotFound")
    assert 'secret "chat-keys" not found' in status["failure"]["message"]
    assert condition(station, "Ready")["status"] == "True"
    assert "1 of 1 replicas answer" in condition(station, "Progressing")["message"]


def ended(code, *, reason="Error", message=""):
    """A container that has ended and is held back."""
    last = {"exitCode": code, "reason": reason, "message": message}
    return {"waiting": {"reason": "CrashLoopBackOff"}}, {"terminated": last}


DAMAGED = (
    '{"reason": "BadInput", "message": "The file is damaged.", "file": "model.safetensors", "hint": "Copy it again."}'
)
CANNOT_LOAD = {
    "a damaged file": (ended(42, message=DAMAGED), "BadInput", "model.safetensors: The file is damaged."),
    "too little memory": (ended(137, reason="OOMKilled"), "OutOfMemory", "memory"),
}


@pytest.mark.parametrize("what", CANNOT_LOAD)
def test_a_model_that_cannot_be_loaded_is_told_within_ten_seconds_while_the_replica_of_before_answers(what):
    (state, last), reason, words = CANNOT_LOAD[what]

    async def story():
        station = await serving()
        station.platform._roll_out = lambda _: None
        await change(station, modelName="other")
        station.api.change("Deployment", NAMESPACE, "ms-chat", {"status": {"replicas": 2, "updatedReplicas": 1}})
        pod = station.api.add(pod_of_a_server("ms-chat-new", {"reason": "ContainerCreating"}))
        container = {"name": "server", "state": state, "lastState": last, "restartCount": 1}
        status = {"status": {"phase": "Running", "containerStatuses": [container]}}
        station.api.change("Pod", NAMESPACE, pod["metadata"]["name"], status)
        begun = station.seconds
        while "failure" not in station.status(served()) and station.seconds < begun + 60:
            await station.work()
            station.seconds += 1
        return station, station.seconds - begun

    station, seconds = run(story)
    status = station.status(served())
    assert seconds <= 10
    assert (status["phase"], status["failure"]["reason"]) == ("Degraded", reason)
    assert words in status["failure"]["message"]
    assert condition(station, "Ready")["status"] == "True"


NO_SECRET = 'MountVolume.SetUp failed for volume "secret-0" : secret "chat-keys" not found'
TOLD = {
    "a volume that another node holds": ("FailedAttachVolume", "Multi-Attach error for volume", "VolumeUnavailable"),
    "a Secret that cannot be mounted": ("FailedMount", NO_SECRET, "SecretNotFound"),
}


@pytest.mark.parametrize("what", TOLD)
def test_events_tell_of(what):
    event, message, reason = TOLD[what]

    async def story():
        station = await serving()
        metadata = {"name": "e", "namespace": NAMESPACE}
        warning = {"apiVersion": "v1", "kind": "Event", "metadata": metadata, "type": "Warning", "reason": event}
        seconds = await stuck(station, {"reason": "ContainerCreating"}, {**warning, "message": message})
        return station, seconds

    station, seconds = run(story)
    assert seconds <= 10
    assert station.status(served())["failure"]["reason"] == reason
    assert message in station.status(served())["failure"]["message"]
    assert condition(station, "Ready")["status"] == "True"
