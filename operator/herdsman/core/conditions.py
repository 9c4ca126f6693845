"""Conditions: all of a kind's from the first write; a time changes only together with its status; the phase follows."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from herdsman.api.meta import Condition
from herdsman.api.v1alpha1.status import ConditionType, Phase, Reason, Status

MAX_MESSAGE = 2048

JOB_CONDITIONS = (
    ConditionType.ACCEPTED,
    ConditionType.DEPENDENCIES_READY,
    ConditionType.PROGRESSING,
    ConditionType.COMPLETE,
    ConditionType.FAILED,
    ConditionType.SUSPENDED,
)
SERVER_CONDITIONS = (
    ConditionType.ACCEPTED,
    ConditionType.DEPENDENCIES_READY,
    ConditionType.PROGRESSING,
    ConditionType.READY,
)


@dataclass(frozen=True)
class Finding:
    """What one condition should say now."""

    status: Literal["True", "False", "Unknown"]
    reason: Reason
    message: str


def settle(
    previous: Sequence[Condition], findings: Mapping[ConditionType, Finding], generation: int, now: datetime
) -> list[Condition]:
    """Return the conditions for the findings; lastTransitionTime is kept where the status is the same as before."""
    before = {condition.type: condition for condition in previous}
    settled = []
    for kind, finding in findings.items():
        old = before.get(kind)
        since = now.replace(microsecond=0)
        if old is not None and old.status == finding.status:
            since = old.last_transition_time
        settled.append(
            Condition(
                type=kind.value,
                status=finding.status,
                reason=finding.reason.value,
                message=shortened(finding.message, MAX_MESSAGE),
                observed_generation=generation,
                last_transition_time=since,
            )
        )
    return settled


def shortened(text: str, limit: int) -> str:
    """Return the text, cut to `limit` characters with an ellipsis where it is longer."""
    return text if len(text) <= limit else text[: limit - 1] + "…"


def find(status: Status | None, kind: ConditionType) -> Condition | None:
    """Return the condition of this type, or None where there is none yet."""
    return next((item for item in status.conditions if item.type == kind), None) if status is not None else None


def holds(status: Status | None, kind: ConditionType) -> bool:
    """Whether the condition is True."""
    found = find(status, kind)
    return found is not None and found.status == "True"


def phase(conditions: Iterable[Condition]) -> Phase:
    """Return the one-word summary of a job's or a server's conditions."""
    by_type = {condition.type: condition for condition in conditions}
    if ConditionType.READY in by_type:
        return _server_phase(by_type)

    def true(kind: ConditionType) -> bool:
        return kind in by_type and by_type[kind].status == "True"

    progressing = by_type.get(ConditionType.PROGRESSING)
    reason = progressing.reason if progressing is not None else Reason.PENDING
    if true(ConditionType.COMPLETE):
        return Phase.SUCCEEDED
    if true(ConditionType.FAILED):
        return Phase.FAILED
    if reason == Reason.RUNNING:
        return Phase.RUNNING
    if true(ConditionType.SUSPENDED):
        return Phase.SUSPENDED
    if reason in _QUEUED:
        return Phase.QUEUED
    if reason in _MADE:
        return Phase.PENDING
    if _not_yet(by_type):
        return Phase.WAITING
    return Phase.PENDING


_QUEUED = (Reason.QUEUED, Reason.UNSCHEDULABLE, Reason.QUOTA_EXCEEDED)
_MADE = (Reason.STARTING, Reason.IMAGE_UNAVAILABLE, Reason.VOLUME_UNAVAILABLE)


def _not_yet(by_type: Mapping[str, Condition]) -> bool:
    """Whether somebody else has to do something first: finish an input, or change a manifest."""
    first = (ConditionType.ACCEPTED, ConditionType.DEPENDENCIES_READY)
    return any(kind in by_type and by_type[kind].status == "False" for kind in first)


def _server_phase(by_type: Mapping[str, Condition]) -> Phase:
    progressing = by_type.get(ConditionType.PROGRESSING)
    reason = progressing.reason if progressing is not None else Reason.PENDING
    if reason == Reason.SUSPENDED:
        return Phase.SUSPENDED
    if reason == Reason.READY:
        return Phase.READY
    if reason == Reason.SCALED_TO_ZERO:
        return Phase.IDLE
    if progressing is not None and progressing.status == "True":
        return Phase.PROGRESSING
    if reason == Reason.PENDING:
        return Phase.WAITING if _not_yet(by_type) else Phase.PENDING
    return Phase.DEGRADED
