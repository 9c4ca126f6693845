"""How an attempt ended: the pods of one Job, boiled down to one cause.

In a gang the first pod to fall takes the others with it, so the cause is ranked: what no retry can mend, then what came
from outside (an eviction, a lost machine), then want of memory, then a pod that stood still and was waited for, then
whichever pod ended first.
"""

from dataclasses import dataclass
from datetime import UTC, datetime

from herdsman.api.exit_codes import ExitCode, TerminationMessage
from herdsman.api.v1alpha1.status import Artifact, Failure, Reason
from herdsman.core.conditions import shortened
from herdsman.core.hints import hint_for
from herdsman.core.world import JobFacts, PodFacts

SIGNAL_BASE = 128
"""A process ended by signal n has this plus n as its exit code."""
SIGKILL_CODE = SIGNAL_BASE + 9
SIGTERM_CODE = SIGNAL_BASE + 15
_REASONS = {reason.value: reason for reason in Reason}
_FAR = datetime.max.replace(tzinfo=UTC)


@dataclass(frozen=True)
class Ending:
    """The end of one attempt."""

    reason: Reason
    counted: bool = False
    """Whether it counts against maxRestarts."""
    permanent: bool = False
    """Whether a retry would end the same way."""
    exit_code: int | None = None
    failure: Failure | None = None
    """None after a success."""
    artifact: Artifact | None = None
    """After a success; a preflight makes none."""


def ending(job: JobFacts) -> Ending | None:
    """Return how the attempt ended; None while it has not."""
    if job.state == "Complete":
        return _success(job)
    if job.state != "Failed":
        return None
    fallen = [pod for pod in job.pods if has_fallen(pod)]
    if not fallen:
        return _without_pods(job)
    return min(((pod, cause_of(pod)) for pod in fallen), key=lambda pair: _rank(*pair))[1]


def exit_code(pod: PodFacts) -> int | None:
    """Return the exit code as a shell would: 128 + n for signal n, however the platform writes it."""
    code = pod.exit_code
    return SIGNAL_BASE - code if code is not None and code < 0 else code


def has_fallen(pod: PodFacts) -> bool:
    """Whether a pod has ended, and not well."""
    return pod.phase == "Failed" or pod.disrupted or exit_code(pod) not in (None, ExitCode.DONE)


def _success(job: JobFacts) -> Ending:
    ordered = sorted(job.pods, key=lambda pod: pod.index)
    artifact = next((pod.termination.artifact for pod in ordered if pod.termination and pod.termination.artifact), None)
    if artifact is not None or job.preflight:
        return Ending(Reason.SUCCEEDED, exit_code=ExitCode.DONE, artifact=artifact)
    message = f"The Job {job.name} finished, and its termination message names no artifact."
    failure = Failure(
        reason=Reason.CRASHED,
        message=message,
        hint="The next attempt finds the finished work on the volume; if this repeats, the image is not Herdsman's.",
        exit_code=ExitCode.DONE,
    )
    return Ending(Reason.CRASHED, counted=True, exit_code=ExitCode.DONE, failure=failure)


def _without_pods(job: JobFacts) -> Ending:
    if job.reason == Reason.DEADLINE_EXCEEDED:
        return Ending(Reason.DEADLINE_EXCEEDED, permanent=True, failure=deadline_failure(job.name))
    failure = Failure(
        reason=Reason.LOST,
        message=f"The Job {job.name} failed and its pods are gone, so the cause is not known."
        f"{_platform_says(job.reason, job.message)}",
        hint=hint_for(Reason.LOST),
    )
    return Ending(Reason.LOST, counted=True, failure=failure)


def deadline_failure(where: str) -> Failure:
    """Return the failure of a run that worked longer than it may."""
    return Failure(
        reason=Reason.DEADLINE_EXCEEDED,
        message=f"{where} worked longer than spec.activeDeadlineSeconds allows and was stopped.",
        hint=hint_for(Reason.DEADLINE_EXCEEDED),
    )


def _rank(pod: PodFacts, cause: Ending) -> tuple[int, datetime, bool, int]:
    if cause.permanent:
        first = 0
    elif pod.disrupted:
        first = 1
    elif cause.reason is Reason.LOST:
        first = 2
    elif cause.reason is Reason.OUT_OF_MEMORY:
        first = 3
    elif cause.reason is Reason.STALLED:
        first = 4
    else:
        first = 5
    return first, pod.ended or _FAR, not cause.counted, pod.index


def cause_of(pod: PodFacts) -> Ending:
    """Return how one fallen pod ended."""
    code, said = exit_code(pod), pod.termination
    if code == ExitCode.BAD_INPUT:
        return _end(pod, _said(said, Reason.BAD_INPUT), permanent=True)
    if code == ExitCode.DIVERGED:
        return _end(pod, Reason.DIVERGED, permanent=True)
    if pod.disrupted:
        return _end(pod, Reason.INTERRUPTED)
    if pod.reason == Reason.LOST:
        return _end(pod, Reason.LOST)
    if pod.reason == "OOMKilled" or code == SIGKILL_CODE:
        return _end(pod, Reason.OUT_OF_MEMORY, counted=True)
    if code == ExitCode.INTERRUPTED:
        reason = _said(said, Reason.TEMPORARY)
        return _end(pod, reason, counted=reason is not Reason.INTERRUPTED)
    if code == SIGTERM_CODE:
        return _end(pod, Reason.KILLED)
    return _end(pod, Reason.CRASHED, counted=True)


def _said(said: TerminationMessage | None, otherwise: Reason) -> Reason:
    return _REASONS.get(said.reason, otherwise) if said is not None else otherwise


def _end(pod: PodFacts, reason: Reason, *, counted: bool = False, permanent: bool = False) -> Ending:
    said = pod.termination
    failure = Failure(
        reason=reason,
        message=shortened(_message(pod, reason), 2048),
        hint=shortened((said.hint if said else None) or hint_for(reason) or "", 1024) or None,
        pod=pod.name,
        container=pod.container,
        exit_code=exit_code(pod),
    )
    return Ending(reason, counted=counted, permanent=permanent, exit_code=exit_code(pod), failure=failure)


def _message(pod: PodFacts, reason: Reason) -> str:
    said = pod.termination
    if said is not None and said.message:
        return f"{_place(said)}{said.message}"
    return f"{_sentence(pod, reason)}{_platform_says(pod.reason, pod.message)}"


def _platform_says(reason: str | None, message: str | None) -> str:
    said = " ".join(part for part in (reason, message) if part)
    return f" The platform says: {said}" if said else ""


def _place(said: TerminationMessage) -> str:
    """Return "file, line n: " where the message does not name the place itself."""
    if said.file is None or said.file in said.message:
        return ""
    return f"{said.file}, line {said.line}: " if said.line is not None else f"{said.file}: "


def _sentence(pod: PodFacts, reason: Reason) -> str:
    code = exit_code(pod)
    ended = f"{pod.name} ended with exit code {code}" if code is not None else f"{pod.name} ended"
    signal = f" (signal {code - SIGNAL_BASE})" if code is not None and SIGNAL_BASE < code < SIGNAL_BASE + 65 else ""
    match reason:
        case Reason.INTERRUPTED:
            return f"{pod.name} was stopped from outside; the next attempt goes on from the newest checkpoint."
        case Reason.LOST:
            return f"The machine or the supervisor of {pod.name} went away while it ran."
        case Reason.OUT_OF_MEMORY:
            return f"{pod.name} was killed{signal}, most likely for want of memory."
        case Reason.KILLED:
            return f"{pod.name} was ended from outside{signal} before it could save."
        case _:
            return f"{ended}{signal} without saying why."
