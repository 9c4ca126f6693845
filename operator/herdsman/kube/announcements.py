"""Which changes of a status are worth a Kubernetes Event: what `kubectl describe` and alerting should show."""

from collections.abc import Callable, Iterable, Mapping
from typing import Literal, NamedTuple

from herdsman.api.meta import Condition
from herdsman.api.v1alpha1.status import ConditionType, Reason, Status

_BLOCKING = frozenset({Reason.REFERENCE_FAILED, Reason.ARTIFACT_MISMATCH, Reason.VOLUME_NOT_FOUND})
"""Why inputs are not ready although waiting for another run does not help."""
_HINDERED = frozenset(
    {
        Reason.RESTARTING,
        Reason.UNSCHEDULABLE,
        Reason.QUOTA_EXCEEDED,
        Reason.IMAGE_UNAVAILABLE,
        Reason.VOLUME_UNAVAILABLE,
        Reason.SECRET_NOT_FOUND,
    }
)
_MAX_MESSAGE = 1024
"""An Event's message has at most so many characters."""


Level = Literal["Normal", "Warning"] | None


class Announcement(NamedTuple):
    """One Event, without the object it is about."""

    severity: Literal["Normal", "Warning"]
    reason: str
    message: str


def announcements(before: Status | None, after: Status) -> list[Announcement]:
    """Return what has changed for people, in the order of the conditions."""
    old = {item.type: item for item in before.conditions} if before is not None else {}
    found = [_announce(item, old.get(item.type)) for item in after.conditions]
    return _distinct(item for item in found if item is not None)


def _announce(now: Condition, before: Condition | None) -> Announcement | None:
    if before is not None and (before.status, before.reason) == (now.status, now.reason):
        return None
    severity = _SEVERITY.get(now.type)
    level = severity(now, before) if severity is not None else None
    return Announcement(level, now.reason, now.message[:_MAX_MESSAGE]) if level is not None else None


def _accepted(now: Condition, _before: Condition | None) -> Level:
    return "Warning" if now.status == "False" else None


def _dependencies(now: Condition, before: Condition | None) -> Level:
    if now.status == "True":
        return "Normal" if before is not None and before.status == "False" else None
    return "Warning" if now.reason in _BLOCKING else None


def _progressing(now: Condition, before: Condition | None) -> Level:
    """A plain start is no news: the pod's own Events tell of it; that something works again is."""
    if now.reason in _HINDERED:
        return "Warning"
    again = before is not None and before.reason in (*_HINDERED, Reason.SUSPENDED)
    return "Normal" if now.reason == Reason.SUSPENDED or (now.reason == Reason.RUNNING and again) else None


def _complete(now: Condition, _before: Condition | None) -> Level:
    return "Normal" if now.status == "True" else None


def _failed(now: Condition, _before: Condition | None) -> Level:
    return "Warning" if now.status == "True" else None


def _ready(now: Condition, before: Condition | None) -> Level:
    if now.status == "True":
        return "Normal"
    return "Warning" if before is not None and before.status == "True" else None


_SEVERITY: Mapping[str, Callable[[Condition, Condition | None], Level]] = {
    ConditionType.ACCEPTED: _accepted,
    ConditionType.DEPENDENCIES_READY: _dependencies,
    ConditionType.PROGRESSING: _progressing,
    ConditionType.COMPLETE: _complete,
    ConditionType.FAILED: _failed,
    ConditionType.READY: _ready,
}


def _distinct(items: Iterable[Announcement]) -> list[Announcement]:
    """Drop what two conditions say in the same words."""
    return list(dict.fromkeys(items))
