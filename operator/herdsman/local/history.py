"""The sentence that tells best how a resource stands, and the record of how it changed."""

from typing import Any, NamedTuple

from herdsman.api.meta import Condition
from herdsman.api.v1alpha1.status import ConditionType, Phase, Status


class Headline(NamedTuple):
    """Why a resource is as it is."""

    reason: str
    message: str


def headline(status: Status) -> Headline:
    """Return the reason and the sentence of the condition that matters most just now."""
    found = {condition.type: condition for condition in status.conditions}
    order = (
        (ConditionType.ACCEPTED, "False"),
        (ConditionType.FAILED, "True"),
        (ConditionType.COMPLETE, "True"),
        (ConditionType.READY, "True"),
        (ConditionType.SUSPENDED, "True"),
        (ConditionType.DEPENDENCIES_READY, "False"),
    )
    telling = next((found[kind] for kind, value in order if kind in found and found[kind].status == value), None)
    if telling is None and status.failure is not None:
        return Headline(status.failure.reason, status.failure.message)
    telling = telling or found.get(ConditionType.PROGRESSING) or found.get(ConditionType.READY)
    return _of(telling) if telling else Headline("", "")


def changes_between(before: Status | None, after: Status) -> list[dict[str, Any]]:
    """Return what is worth remembering of a change of status: a new phase, a new reason, a new attempt."""
    was = (before.phase, headline(before).reason, len(before.attempts)) if before else (Phase.PENDING, "", 0)
    reason, message = headline(after)
    if was == (after.phase, reason, len(after.attempts)):
        return []
    return [{"phase": str(after.phase), "reason": reason, "message": message}]


def _of(condition: Condition) -> Headline:
    return Headline(condition.reason, condition.message)
