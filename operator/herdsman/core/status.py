"""Status: what is reported of a resource. Fed back, it changes nothing; a terminal state never changes."""

from collections.abc import Sequence
from datetime import datetime

from herdsman.api.v1alpha1.model_server import ModelServer
from herdsman.api.v1alpha1.registry import KINDS, AnyResource
from herdsman.api.v1alpha1.status import ConditionType, Failure, Reason, Status
from herdsman.core.conditions import (
    JOB_CONDITIONS,
    MAX_MESSAGE,
    SERVER_CONDITIONS,
    Finding,
    find,
    holds,
    phase,
    settle,
    shortened,
)
from herdsman.core.plan_types import Plan
from herdsman.core.run_report import run_status
from herdsman.core.server_report import server_status
from herdsman.core.world import World


def status(resource: AnyResource, plan: Plan, world: World) -> Status:
    """Return what is to be reported now, given the plan that was just carried out."""
    if resource.status is not None and is_final(resource.status):
        return _seen(resource.status, resource.metadata.generation)
    if isinstance(resource, ModelServer):
        return server_status(resource, plan, world)
    return run_status(resource, plan, world)


def invalid_status(
    previous: Status | None, generation: int, problems: Sequence[str], now: datetime, kind: str | None = None
) -> Status:
    """Return the status of a stored resource that does not fit its model: what is wrong, each field in a sentence.

    What was known stays, and a terminal state does; `kind` says which conditions there are where none is recorded yet.
    """
    before = previous or Status()
    if is_final(before):
        return _seen(before, generation)
    message = shortened(" ".join(problems) or "The resource cannot be read.", MAX_MESSAGE)
    serves = find(before, ConditionType.READY) is not None or (kind in KINDS and KINDS[kind].serves)
    findings = {name: _kept(before, name) for name in (SERVER_CONDITIONS if serves else JOB_CONDITIONS)}
    findings[ConditionType.ACCEPTED] = Finding("False", Reason.INVALID_SPEC, message)
    conditions = settle(before.conditions, findings, generation, now)
    hint = "Correct the manifest; fields that cannot be changed need the resource deleted and applied again."
    return before.model_copy(
        update={
            "phase": phase(conditions),
            "observed_generation": generation,
            "conditions": conditions,
            "failure": Failure(reason=Reason.INVALID_SPEC, message=message, hint=hint),
        }
    )


def is_final(status: Status) -> bool:
    """Whether the state never changes again: Complete or Failed."""
    return holds(status, ConditionType.COMPLETE) or holds(status, ConditionType.FAILED)


def is_refused(status: Status) -> bool:
    """Whether nothing runs, and only a change of a manifest helps; one `herdsman run` ends with it.

    It is not final: what is in the way may be deleted or made anew (docs/decisions/0004).
    """
    if is_final(status) or holds(status, ConditionType.PROGRESSING) or holds(status, ConditionType.READY):
        return False
    accepted, inputs = find(status, ConditionType.ACCEPTED), find(status, ConditionType.DEPENDENCIES_READY)
    mismatch = inputs is not None and inputs.status == "False" and inputs.reason == Reason.ARTIFACT_MISMATCH
    return mismatch or (accepted is not None and accepted.status == "False")


def _kept(before: Status, kind: ConditionType) -> Finding:
    condition = find(before, kind)
    if condition is None:
        return Finding("Unknown", Reason.PENDING, "Looked at once the spec is valid.")
    reason = Reason(condition.reason) if condition.reason in set(Reason) else Reason.PENDING
    return Finding(condition.status, reason, condition.message)


def _seen(status: Status, generation: int) -> Status:
    """Return a terminal status as it was, with the generation that was looked at."""
    conditions = [condition.model_copy(update={"observed_generation": generation}) for condition in status.conditions]
    return status.model_copy(update={"observed_generation": generation, "conditions": conditions})
