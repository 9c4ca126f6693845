"""From Kubernetes objects to facts: what Jobs, claims and Events say, as the core understands it."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Literal

from herdsman.api.v1alpha1.status import AdapterStatus, CheckpointStatus, Progress
from herdsman.core.names import LABEL_ATTEMPT, LABEL_PREFLIGHT
from herdsman.core.world import JobFacts, PodFacts, VolumeFacts
from herdsman.kube.pod_facts import MAX_MESSAGE, Body, Cause, deletion_asked, is_over, moment, pod_facts

_BY_CODE = re.compile(r"^Container (?P<container>\S+) for pod \S+/(?P<pod>\S+) failed with exit code (?P<code>\d+)")
_BY_CONDITION = re.compile(r"^Pod \S+/(?P<pod>\S+) has condition DisruptionTarget")
_EVENTS = {
    "FailedCreate": "FailedCreate",
    "FailedMount": "FailedMount",
    "FailedAttachVolume": "FailedAttachVolume",
    "ProvisioningFailed": "FailedMount",
    "FailedBinding": "FailedMount",
    "FailedScheduling": "Unschedulable",
}
"""Warnings that tell why something does not get on, and the reason each of them gives."""
_SUMMARY = "Unable to attach or mount volumes"
_NO_SECRET = re.compile(r'secret "[^"]*" not found|references non-existent secret key')
"""How a kubelet says that a Secret it is to mount does not exist, or lacks the key."""


@dataclass(frozen=True)
class LiveReport:
    """What a running trainer or a replica of a server says of itself."""

    progress: Progress | None = None
    checkpoint: CheckpointStatus | None = None
    adapters: tuple[AdapterStatus, ...] | None = None
    """A server's hot adapters."""


def job_facts(
    job: Body,
    pods: Sequence[Body],
    departed: Sequence[Body] = (),
    *,
    cause: Cause | None = None,
    live: LiveReport | None = None,
) -> JobFacts:
    """Return what is observed of an attempt's Job and its pods; those that are gone tell how a finished Job ended."""
    spec, status = job.get("spec") or {}, job.get("status") or {}
    since = moment(status.get("startTime"))
    bodies = _current([*pods, *(departed if is_finished(job) else ())], since)
    facts = tuple(sorted((_gang_member(body, bodies, cause) for body in bodies), key=lambda pod: (pod.index, pod.name)))
    final = _final_condition(status)
    state = _state(final, spec, facts)
    started = min((pod.started for pod in facts if pod.started), default=None)
    said = live or LiveReport()
    last_words = [pod.termination for pod in facts if pod.termination]
    base = JobFacts(
        name=job["metadata"]["name"],
        attempt=attempt_of(job),
        preflight=is_preflight(job),
        state=state,
        pods=facts,
        started=started or (since if final else None),
        progress=said.progress,
        checkpoint=next((words.checkpoint for words in last_words if words.checkpoint), said.checkpoint),
    )
    if final is None:
        return base if facts or cause is None else replace(base, reason=cause.reason, message=cause.message)
    ended = moment(status.get("completionTime")) or moment(final.get("lastTransitionTime"))
    if state == "Complete":
        report = next((words.report for words in last_words if words.report), ())
        return replace(base, ended=ended, report=tuple(report))
    reason, message = final.get("reason"), _shortened(final.get("message") or "")
    if reason == "DeadlineExceeded":
        facts = ()
    elif not any(pod.phase == "Failed" or pod.disrupted for pod in facts):
        facts = (*facts, *_told_by_the_job(message))
    return replace(base, ended=ended, reason=reason, message=message or None, pods=facts)


def attempt_of(body: Body) -> int:
    """Return the attempt an object belongs to; 0 where it does not say."""
    number = (body["metadata"].get("labels") or {}).get(LABEL_ATTEMPT, "")
    return int(number) if number.isdigit() else 0


def is_preflight(body: Body) -> bool:
    """Whether an object belongs to an attempt that only checks the inputs."""
    return LABEL_PREFLIGHT in (body["metadata"].get("labels") or {})


def is_finished(job: Body) -> bool:
    """Whether the Job has ended."""
    return _final_condition(job.get("status") or {}) is not None


def pods_are_known(job: Body, pods: Sequence[Body]) -> bool:
    """Whether the end of every pod of a finished Job is among these; what is missing may not have been heard yet."""
    status = job.get("status") or {}
    counted = (status.get("succeeded") or 0) + (status.get("failed") or 0)
    current = _current(pods, moment(status.get("startTime")))
    return all(is_over(pod) for pod in current) and len(current) >= counted


def volume_facts(claim: Body) -> VolumeFacts:
    """Return what is observed of a PersistentVolumeClaim."""
    spec, status = claim.get("spec") or {}, claim.get("status") or {}
    phase = status.get("phase", "Pending")
    return VolumeFacts(
        claim=claim["metadata"]["name"],
        access_modes=tuple(status.get("accessModes") or spec.get("accessModes") or ()),
        bound=phase == "Bound",
        message=None if phase == "Bound" else f"The claim is {phase}.",
    )


def cause_of_events(events: Iterable[Body]) -> Cause | None:
    """Return what the newest Warning that tells anything says."""
    telling = [event for event in events if event.get("type") == "Warning" and event.get("reason") in _EVENTS]
    if not telling:
        return None
    newest = max(telling, key=_last_seen)
    if _message(newest).startswith(_SUMMARY):
        # After two minutes the kubelet only says which volumes it waits for; why, it said before.
        mounts = (event for event in telling if event["reason"] == "FailedMount")
        newest = max(
            (event for event in mounts if not _message(event).startswith(_SUMMARY)), key=_last_seen, default=newest
        )
    reason, message = _EVENTS[newest["reason"]], _message(newest)
    if reason == "FailedMount" and _NO_SECRET.search(message):
        return Cause("SecretNotFound", _shortened(message))
    return Cause("QuotaExceeded" if "exceeded quota" in message else reason, _shortened(message))


def _message(event: Body) -> str:
    return event.get("message") or event.get("note") or ""


def _last_seen(event: Body) -> str:
    series = event.get("series") or {}
    times = (series.get("lastObservedTime"), event.get("lastTimestamp"), event.get("eventTime"))
    return next((time for time in times if time), event["metadata"].get("creationTimestamp") or "")


def _current(pods: Sequence[Body], since: datetime | None) -> list[Body]:
    """Return the pods made since the Job was last started: those from before a suspension are history."""
    made = [(moment(pod["metadata"].get("creationTimestamp")), pod) for pod in pods]
    return [pod for created, pod in made if since is None or created is None or created >= since]


def _gang_member(pod: Body, gang: Sequence[Body], cause: Cause | None) -> PodFacts:
    """Return a pod's facts; one that was deleted before any other had fallen was ended from outside.

    When a Job fails, the Job controller deletes the pods that still work, so a deletion after a fall says nothing.
    """
    facts = pod_facts(pod, cause=cause)
    asked = deletion_asked(pod)
    if asked is None or facts.disrupted:
        return facts
    falls = [pod_facts(other).ended for other in gang if other is not pod and _fell_by_itself(other)]
    return facts if any(fall is not None and fall <= asked for fall in falls) else replace(facts, disrupted=True)


def _fell_by_itself(pod: Body) -> bool:
    if (pod.get("status") or {}).get("phase") != "Failed":
        return False
    asked, ended = deletion_asked(pod), pod_facts(pod).ended
    return asked is None or (ended is not None and ended < asked)


def _final_condition(status: Body) -> Body | None:
    ends = (item for item in status.get("conditions") or () if item["type"] in ("Complete", "Failed"))
    return next((item for item in ends if item["status"] == "True"), None)


def _state(
    final: Body | None, spec: Body, pods: Sequence[PodFacts]
) -> Literal["Pending", "Running", "Suspended", "Complete", "Failed"]:
    if final is not None:
        return "Complete" if final["type"] == "Complete" else "Failed"
    alive = any(pod.phase == "Running" for pod in pods)
    if spec.get("suspend", False):
        return "Running" if alive else "Suspended"
    started = {pod.index for pod in pods if pod.phase != "Pending"}
    return "Running" if len(started) >= (spec.get("parallelism") or 1) else "Pending"


def _told_by_the_job(message: str) -> tuple[PodFacts, ...]:
    """Return the pod that the Job's own condition names, for when the pod itself is gone."""
    if found := _BY_CODE.match(message):
        return (PodFacts(found["pod"], phase="Failed", container=found["container"], exit_code=int(found["code"])),)
    if found := _BY_CONDITION.match(message):
        return (PodFacts(found["pod"], phase="Failed", disrupted=True),)
    return ()


def _shortened(text: str) -> str:
    return text if len(text) <= MAX_MESSAGE else text[: MAX_MESSAGE - 1] + "…"
