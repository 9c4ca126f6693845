"""Jobs, Deployments, claims and Events as facts."""

from datetime import UTC, datetime

import pytest

from herdsman.api.exit_codes import TerminationMessage
from herdsman.api.v1alpha1.status import CheckpointStatus, Metric, Progress
from herdsman.core.endings import ending
from herdsman.kube.facts import (
    LiveReport,
    cause_of_events,
    job_facts,
    pods_are_known,
    volume_facts,
)
from herdsman.kube.pod_facts import Cause
from kube.objects import END, LATER, START, condition, event, job, meta, pod, running, terminated, waiting

DISRUPTED = [{"type": "DisruptionTarget", "status": "True", "reason": "EvictionByEvictionAPI"}]
EVICTED_MESSAGE = "Pod team/pj-zh-1-0-abcde has condition DisruptionTarget matching FailJob rule at index 1"
CODE_MESSAGE = (
    "Container trainer for pod team/pj-zh-1-0-abcde failed with exit code 42 matching FailJob rule at index 0"
)
FAILED = condition("Failed", "BackoffLimitExceeded", "Job has reached the specified backoff limit")


STATES = {
    "just made": (job(), [], "Pending"),
    "its pod waits": (job(), [waiting("ContainerCreating")], "Pending"),
    "its pod works": (job(), [running()], "Running"),
    "one of two works": (job(pods=2), [running(), waiting("ContainerCreating", index=1)], "Pending"),
    "both work": (job(pods=2), [running(), running(index=1, name="b")], "Running"),
    "one has succeeded, one works": (job(pods=2), [terminated(0), running(index=1, name="b")], "Running"),
    "to be stopped, still saving": (job(suspend=True), [running()], "Running"),
    "stopped": (job(suspend=True), [], "Suspended"),
    "its pod fell, the Job says nothing yet": (job(condition("FailureTarget")), [terminated(1)], "Running"),
    "complete": (job(condition("Complete"), completionTime=LATER), [terminated(0)], "Complete"),
    "failed": (job(FAILED), [terminated(1)], "Failed"),
}


@pytest.mark.parametrize("name", STATES)
def test_the_state_of_a_job(name):
    body, pods, state = STATES[name]
    assert job_facts(body, pods).state == state


def test_a_job_knows_its_attempt_its_times_and_its_pods_in_order():
    facts = job_facts(job(FAILED, pods=2), [terminated(1, index=1, name="b"), terminated(75)])
    assert (facts.attempt, [entry.index for entry in facts.pods]) == (1, [0, 1])
    assert (facts.started, facts.ended) == (
        datetime.fromisoformat(START),
        datetime.fromisoformat(LATER),
    )


def deleted(seconds_after_start, **more):
    """A pod that was asked to go so many seconds after 03:00:00, and ended a second later with code 75."""
    asked = f"2026-01-02T03:{seconds_after_start // 60:02d}:{seconds_after_start % 60:02d}Z"
    ended = f"2026-01-02T03:{seconds_after_start // 60:02d}:{seconds_after_start % 60 + 1:02d}Z"
    metadata = {"deletionTimestamp": asked, "deletionGracePeriodSeconds": 0}
    return terminated(75, at=ended, metadata=metadata, **more)


CAUSES = {
    "an eviction": (FAILED, [terminated(143, conditions=DISRUPTED)], [], ("Interrupted", False)),
    "a deletion": (FAILED, [deleted(600)], [], ("Interrupted", False)),
    "a deletion, seen only by its last event": (FAILED, [], [deleted(600)], ("Interrupted", False)),
    "a deletion takes the other rank down": (
        FAILED,
        [terminated(1, at="2026-01-02T03:10:02Z", index=1, name="b")],
        [deleted(600)],
        ("Interrupted", False),
    ),
    "a crash makes the Job delete the other rank": (
        FAILED,
        [terminated(1, at="2026-01-02T03:10:00Z", index=1, name="b")],
        [deleted(601)],
        ("Crashed", True),
    ),
    "the other rank ran out of memory": (
        FAILED,
        [terminated(137, reason="OOMKilled", index=1, name="b", at="2026-01-02T03:10:00Z")],
        [deleted(601)],
        ("OutOfMemory", True),
    ),
    "an eviction, of which only the Job tells": (
        condition("Failed", "PodFailurePolicy", EVICTED_MESSAGE),
        [],
        [],
        ("Interrupted", False),
    ),
    "bad input, of which only the Job tells": (
        condition("Failed", "PodFailurePolicy", CODE_MESSAGE),
        [],
        [],
        ("BadInput", False),
    ),
    "nobody tells anything": (FAILED, [], [], ("Lost", True)),
    "too long": (
        condition("Failed", "DeadlineExceeded", "Job was active longer than specified deadline"),
        [terminated(75)],
        [],
        ("DeadlineExceeded", False),
    ),
}


@pytest.mark.parametrize("name", CAUSES)
def test_why_an_attempt_failed(name):
    final, pods, departed, expected = CAUSES[name]
    end = ending(job_facts(job(final, pods=2), pods, departed))
    assert (end.reason.value, end.counted) == expected


def test_pods_from_before_a_suspension_are_history():
    before = deleted(0, name="old")
    before["metadata"]["creationTimestamp"] = "2026-01-02T02:00:00Z"
    facts = job_facts(job(FAILED), [terminated(1, name="new")], [before])
    assert [entry.name for entry in facts.pods] == ["new"]


def test_what_events_say_of_a_job_without_pods():
    quota = Cause("QuotaExceeded", "exceeded quota: none")
    facts = job_facts(job(), [], cause=quota)
    assert (facts.state, facts.reason, facts.message) == ("Pending", "QuotaExceeded", "exceeded quota: none")


def test_a_trainers_own_report():
    live = LiveReport(Progress(percent=40, step=80))
    assert job_facts(job(), [running()], live=live).progress.step == 80


def test_the_figures_of_a_finished_run_come_with_its_last_words():
    figures = [Metric(name="heldout_loss_per_char_after", value="2.9")]
    words = TerminationMessage(reason="Succeeded", report=figures).to_bytes().decode()
    facts = job_facts(job(condition("Complete"), completionTime=LATER), [terminated(0, message=words)])
    assert (facts.state, facts.report) == ("Complete", tuple(figures))


def test_the_checkpoint_of_the_last_words_is_newer_than_what_was_last_asked_for():
    live = LiveReport(Progress(step=80), CheckpointStatus(latest="checkpoints/step-00000080", step=80, count=1))
    saved = CheckpointStatus(latest="checkpoints/step-00000093", step=93, verified=True, count=2)
    words = TerminationMessage(reason="Interrupted", checkpoint=saved).to_bytes().decode()
    assert job_facts(job(), [running()], live=live).checkpoint.step == 80
    assert job_facts(job(FAILED), [terminated(75, message=words)], live=live).checkpoint == saved


KNOWN = {
    "the pod that succeeded": ([terminated(0)], True),
    "none": ([], False),
    "one that still seems to work": ([running()], False),
    "an older one of before a suspension": (
        [{**terminated(0), "metadata": {**terminated(0)["metadata"], "creationTimestamp": "2026-01-02T02:00:00Z"}}],
        False,
    ),
}


@pytest.mark.parametrize("name", KNOWN)
def test_whether_the_end_of_every_pod_is_known(name):
    pods, known = KNOWN[name]
    assert pods_are_known(job(condition("Complete"), succeeded=1), pods) is known


NO_SECRET = 'MountVolume.SetUp failed for volume "secret-0" : secret "chat-keys" not found'
NO_KEY = 'MountVolume.SetUp failed for volume "secret-0" : references non-existent secret key: api'
UNMOUNTED = "Unable to attach or mount volumes: unmounted volumes=[secret-0]: timed out waiting for the condition"
EVENTS = {
    "nothing": ([], None),
    "what is normal": ([event("SuccessfulCreate", "Created pod", kind="Normal")], None),
    "what tells nothing": ([event("Unhealthy", "probe failed")], None),
    "a quota": (
        [event("FailedCreate", 'pods "x" is forbidden: exceeded quota: none, requested: pods=1')],
        Cause("QuotaExceeded", 'pods "x" is forbidden: exceeded quota: none, requested: pods=1'),
    ),
    "a policy": (
        [event("FailedCreate", 'pods "x" is forbidden: violates PodSecurity "restricted"')],
        Cause("FailedCreate", 'pods "x" is forbidden: violates PodSecurity "restricted"'),
    ),
    "the newest of several": (
        [event("FailedMount", "old", at=START), event("FailedAttachVolume", "new", at=END)],
        Cause("FailedAttachVolume", "new"),
    ),
    "a Secret that is missing": (
        [event("FailedMount", NO_SECRET)],
        Cause("SecretNotFound", NO_SECRET),
    ),
    "a Secret that is missing, of which only the volume was told since": (
        [event("FailedMount", NO_SECRET, at=START), event("FailedMount", UNMOUNTED, at=END)],
        Cause("SecretNotFound", NO_SECRET),
    ),
    "a Secret without the key": ([event("FailedMount", NO_KEY)], Cause("SecretNotFound", NO_KEY)),
    "volumes that are waited for": (
        [event("FailedScheduling", "none", at=START), event("FailedMount", UNMOUNTED, at=END)],
        Cause("FailedMount", UNMOUNTED),
    ),
    "a missing StorageClass": ([event("ProvisioningFailed", "no class")], Cause("FailedMount", "no class")),
}


@pytest.mark.parametrize("name", EVENTS)
def test_the_cause_that_events_tell(name):
    events, cause = EVENTS[name]
    assert cause_of_events(events) == cause


def test_claims():
    body = {"metadata": meta("w"), "spec": {"accessModes": ["ReadWriteOnce"]}, "status": {"phase": "Pending"}}
    facts = volume_facts(body)
    assert (facts.access_modes, facts.bound, facts.message) == (("ReadWriteOnce",), False, "The claim is Pending.")
    assert volume_facts({**body, "status": {"phase": "Bound", "accessModes": ["ReadWriteMany"]}}).bound


def test_times_are_utc():
    assert job_facts(job(FAILED), [terminated(1)]).ended == datetime(2026, 1, 2, 3, 31, tzinfo=UTC)


def test_a_pod_without_a_status_is_pending():
    assert job_facts(job(), [pod()]).pods[0].phase == "Pending"
