"""What the conditions that jobs and servers share say about a plan."""

from herdsman.api.v1alpha1.status import Estimate, Failure, Reason
from herdsman.core.conditions import MAX_MESSAGE, Finding, shortened
from herdsman.core.plan_types import Plan, Problem

MAX_HINT = 1024


def accepted(plan: Plan) -> Finding:
    """Say whether the spec, and the place it takes among the others, is acceptable."""
    if plan.refused is None or plan.refused.reason is Reason.ARTIFACT_MISMATCH:
        return Finding("True", Reason.ACCEPTED, "The spec is valid.")
    return Finding("False", plan.refused.reason, sentence(plan.refused))


def dependencies(plan: Plan, *, alive: bool) -> Finding:
    """Say whether all inputs are there and fit together; `alive` work goes on without those that went away."""
    if plan.refused is not None and plan.refused.reason is Reason.ARTIFACT_MISMATCH:
        return Finding("False", plan.refused.reason, sentence(plan.refused))
    if plan.waiting_for:
        told = " ".join(sentence(problem) for problem in plan.waiting_for)
        more = " What runs goes on with what it started with." if alive else ""
        return Finding("False", plan.waiting_for[0].reason, f"{told}{more}")
    if plan.refused is not None:
        return Finding("Unknown", Reason.PENDING, "Looked at once the resource is accepted.")
    return Finding("True", Reason.DEPENDENCIES_READY, "All inputs are there, and they fit together.")


def sentence(problem: Problem) -> str:
    """Return a problem and its remedy in one text."""
    return f"{problem.message} {problem.hint}" if problem.hint else problem.message


def refusal(problem: Problem) -> Failure:
    """Return a refusal as the status shows it."""
    return Failure(
        reason=problem.reason.value,
        message=shortened(problem.message, MAX_MESSAGE),
        hint=shortened(problem.hint, MAX_HINT) if problem.hint else None,
    )


def known(estimate: Estimate | None) -> Estimate | None:
    """Return the estimate, or None where it says nothing."""
    return estimate if estimate is not None and estimate != Estimate() else None
