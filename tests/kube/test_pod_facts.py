"""What a pod's status says, as facts."""

import json
from datetime import UTC, datetime

import pytest

from herdsman.api.exit_codes import TerminationMessage
from herdsman.kube.pod_facts import Cause, deletion_asked, pod_facts, termination_message
from kube.objects import END, START, pod, running, terminated, waiting

STARTED, ENDED = datetime(2026, 1, 2, 3, 0, tzinfo=UTC), datetime(2026, 1, 2, 3, 30, tzinfo=UTC)
PULL = "failed to resolve reference docker.io/nosuch:1: not found"
NO_NODE = "0/3 nodes are available: 3 Insufficient nvidia.com/gpu."
NO_CLAIM = 'persistentvolumeclaim "corpora" not found. not found'
UNBOUND = "pod has unbound immediate PersistentVolumeClaims. not found"


def unscheduled(message):
    scheduled = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message}
    return pod(phase="Pending", conditions=[scheduled])


PENDING = {
    "a pod that is being made has no cause": (pod(phase="Pending"), None, None),
    "a container that is being made has none either": (waiting("ContainerCreating"), None, None),
    "no node has what it asks for": (unscheduled(NO_NODE), "Unschedulable", NO_NODE),
    "its claim does not exist": (unscheduled(NO_CLAIM), "FailedMount", NO_CLAIM),
    "its claim is not bound": (unscheduled(UNBOUND), "FailedMount", UNBOUND),
    "the image is not there": (waiting("ErrImagePull", PULL), "ErrImagePull", PULL),
    "the image is still not there": (
        waiting("ImagePullBackOff", f'Back-off pulling image "nosuch:1": ErrImagePull: {PULL}'),
        "ImagePullBackOff",
        PULL,
    ),
    "a Secret is missing": (
        waiting("CreateContainerConfigError", 'secret "key" not found'),
        "SecretNotFound",
        'secret "key" not found',
    ),
    "the name of the image is nonsense": (waiting("InvalidImageName", "bad"), "InvalidImageName", "bad"),
    "the scheduler was told to wait": (
        pod(phase="Pending", conditions=[{"type": "PodScheduled", "status": "False", "reason": "SchedulingGated"}]),
        None,
        None,
    ),
}


@pytest.mark.parametrize("name", PENDING)
def test_why_a_pod_does_not_start(name):
    body, reason, message = PENDING[name]
    facts = pod_facts(body)
    assert (facts.phase, facts.reason, facts.message) == ("Pending", reason, message)


def test_what_events_say_counts_where_the_status_is_silent():
    mount = Cause("FailedMount", "configmap not found")
    assert pod_facts(waiting("ContainerCreating"), cause=mount).message == "configmap not found"
    assert pod_facts(waiting("ErrImagePull", PULL), cause=mount).message == PULL
    assert pod_facts(running(), cause=mount).reason is None


def test_a_running_pod():
    facts = pod_facts(running(index=3))
    assert (facts.phase, facts.index, facts.started, facts.exit_code) == ("Running", 3, STARTED, None)


def test_a_pod_that_succeeded_with_its_last_words():
    words = TerminationMessage(reason="Succeeded", step=200)
    facts = pod_facts(terminated(0, message=words.to_bytes().decode()))
    assert (facts.phase, facts.exit_code, facts.termination) == ("Succeeded", 0, words)
    assert (facts.started, facts.ended, facts.reason) == (STARTED, ENDED, None)


FALLEN = {
    "a crash tells the last line of its log": (
        terminated(1, message="Traceback\n  File x\nRuntimeError: no\n\n"),
        (1, None, "RuntimeError: no", False),
    ),
    "out of memory": (terminated(137, reason="OOMKilled"), (137, "OOMKilled", None, False)),
    "killed": (terminated(137), (137, None, None, False)),
    "no such command": (terminated(128, reason="StartError", message="exec: x"), (128, "StartError", "exec: x", False)),
    "evicted": (
        pod(
            phase="Failed",
            reason="Evicted",
            message="The node was low on resource: memory.",
            conditions=[{"type": "DisruptionTarget", "status": "True", "reason": "TerminationByKubelet"}],
        ),
        (None, "Evicted", "The node was low on resource: memory.", True),
    ),
    "preempted after saving": (
        terminated(75, conditions=[{"type": "DisruptionTarget", "status": "True", "reason": "PreemptionByScheduler"}]),
        (75, None, None, True),
    ),
    "the node was shut down": (pod(phase="Failed", reason="NodeShutdown"), (None, "NodeShutdown", None, True)),
    "the node had no room after all": (pod(phase="Failed", reason="OutOfcpu"), (None, "OutOfcpu", None, True)),
}


@pytest.mark.parametrize("name", FALLEN)
def test_how_a_pod_fell(name):
    body, expected = FALLEN[name]
    facts = pod_facts(body)
    assert facts.phase == "Failed"
    assert (facts.exit_code, facts.reason, facts.message, facts.disrupted) == expected


def test_a_crashing_server_tells_how_it_ended_last():
    last = {"exitCode": 42, "reason": "Error", "message": '{"reason": "BadInput", "message": "no model"}'}
    state = {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 10s"}}
    statuses = [{"name": "server", "state": state, "lastState": {"terminated": last}}]
    facts = pod_facts(pod(phase="Running", containerStatuses=statuses))
    assert (facts.container, facts.exit_code, facts.reason) == ("server", 42, None)
    assert facts.termination.message == "no model"


def test_a_failed_init_container_speaks_for_the_pod():
    init = [{"name": "preflight", "state": {"terminated": {"exitCode": 42, "reason": "Error", "finishedAt": END}}}]
    main = [{"name": "trainer", "state": {"waiting": {"reason": "PodInitializing"}}}]
    facts = pod_facts(pod(phase="Failed", initContainerStatuses=init, containerStatuses=main))
    assert (facts.container, facts.exit_code) == ("preflight", 42)


@pytest.mark.parametrize("text", ["", "Killed", "[]", "{}", '{"reason": 7}', '{"reason": "x"'])
def test_other_text_is_no_termination_message(text):
    assert termination_message(text) is None


def test_a_newer_trainer_may_say_more():
    text = json.dumps({"reason": "Succeeded", "resumedFromStep": 5, "mood": "good"})
    assert termination_message(text) == TerminationMessage(reason="Succeeded", resumed_from_step=5)


def test_a_pod_was_asked_to_go_a_grace_period_before_its_deletion_timestamp():
    body = pod(metadata={"deletionTimestamp": END, "deletionGracePeriodSeconds": 1800})
    assert deletion_asked(body) == datetime.fromisoformat(START)


def test_long_messages_are_cut():
    assert len(pod_facts(waiting("ErrImagePull", "x" * 5000)).message) == 1024
