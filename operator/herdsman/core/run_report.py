"""The status of a run: conditions, phase, progress, attempts, failure and artifact."""

from herdsman.api.durations import duration
from herdsman.api.v1alpha1.model_server import ModelServer
from herdsman.api.v1alpha1.registry import AnyResource
from herdsman.api.v1alpha1.status import Artifact, ConditionType, Failure, Progress, Reason, Status
from herdsman.core import volumes
from herdsman.core.conditions import Finding, phase, settle
from herdsman.core.findings import accepted, dependencies, known, refusal
from herdsman.core.plan_types import Plan
from herdsman.core.run_status import Run, RunState, judge
from herdsman.core.world import World

MAX_REPORT = 40
"""status.report holds at most so many figures."""
ARTIFACT_DIRECTORY = "artifact"
"""Where a run leaves its result, in the directory it owns."""


def run_status(resource: AnyResource, plan: Plan, world: World) -> Status:
    """Return the status of a resource whose work is a Job."""
    assert not isinstance(resource, ModelServer)
    previous, run = resource.status or Status(), judge(resource, world)
    generation = resource.metadata.generation
    idle = run.state in (RunState.NEW, RunState.RETRY)
    failed = _failed(run)
    suspended = _suspended(resource.spec.suspend, run)
    findings = {
        ConditionType.ACCEPTED: accepted(plan),
        ConditionType.DEPENDENCIES_READY: dependencies(plan, alive=not idle),
        ConditionType.PROGRESSING: _progressing(plan, run, resource.spec.suspend, resource.spec.compute.queue_name),
        ConditionType.COMPLETE: _complete(run, failed),
        ConditionType.FAILED: failed,
        ConditionType.SUSPENDED: suspended,
    }
    conditions = settle(previous.conditions, findings, generation, world.now)
    progress = (run.job.progress if run.job is not None else None) or previous.progress
    done = run.state is RunState.SUCCEEDED or run.artifact is not None
    return Status(
        phase=phase(conditions),
        observed_generation=generation,
        conditions=conditions,
        progress=_finished(progress) if done else _under_way(progress, run),
        checkpoint=(run.job.checkpoint if run.job is not None else None) or previous.checkpoint,
        attempts=list(run.attempts),
        restarts=run.restarts,
        failure=_failure(plan, run, idle),
        estimate=known(plan.estimate),
        artifact=_placed(run.artifact, resource),
        report=list(run.job.report if run.job is not None else ())[:MAX_REPORT] or previous.report,
    )


def _progressing(plan: Plan, run: Run, suspend: bool, queue: str | None) -> Finding:
    match run.state:
        case RunState.SUCCEEDED:
            return Finding("False", Reason.SUCCEEDED, "The run is finished.")
        case RunState.FAILED:
            return Finding("False", _reason(run.failure), "The run has failed; no further attempt is made.")
        case RunState.LIVE:
            return _living(run, suspend, queue)
    if plan.refused is not None:
        return Finding("False", Reason.PENDING, f"Nothing is started: {plan.refused.message}")
    if plan.waiting_for:
        return Finding("False", Reason.PENDING, f"Nothing is started before this: {plan.waiting_for[0].message}")
    if suspend:
        return Finding("False", Reason.SUSPENDED, "Nothing is started while spec.suspend is true.")
    if plan.not_before is not None:
        when = plan.not_before.strftime("%Y-%m-%dT%H:%M:%SZ")
        return Finding("False", Reason.RESTARTING, f"Attempt {run.number} starts at {when}.{_because(run)}")
    return _starting(run, preflight=plan.preflight)


def _living(run: Run, suspend: bool, queue: str | None) -> Finding:
    state = run.job.state if run.job is not None else "Pending"
    preflight = run.planned is not None and run.planned.preflight
    if state == "Suspended":
        if suspend:
            return Finding("False", Reason.SUSPENDED, f"Attempt {run.number} is stopped while spec.suspend is true.")
        where = f"in the queue {queue}" if queue is not None else "to go on"
        return Finding("False", Reason.QUEUED, f"Attempt {run.number} waits {where}.")
    if state == "Running":
        more = ", and stops after saving, because spec.suspend is true" if suspend else ""
        does = _CHECKS if preflight else "works"
        return Finding("True", Reason.RUNNING, f"Attempt {run.number} {does}{more}.{_because(run)}")
    if run.failure is not None and run.failure.exit_code is None and run.failure.reason in _HINDERING:
        return Finding("False", Reason(run.failure.reason), run.failure.message)
    return _starting(run, preflight=preflight)


def _starting(run: Run, *, preflight: bool) -> Finding:
    then = f"; it {_CHECKS}" if preflight else ""
    return Finding("True", Reason.STARTING, f"Attempt {run.number} is being started{then}.{_because(run)}")


_CHECKS = "checks the inputs and tokenises the data on a CPU, before any GPU is taken"


_HINDERING = frozenset(
    {
        Reason.QUEUED,
        Reason.UNSCHEDULABLE,
        Reason.QUOTA_EXCEEDED,
        Reason.IMAGE_UNAVAILABLE,
        Reason.VOLUME_UNAVAILABLE,
    }
)
"""What keeps a made attempt from starting."""


def _because(run: Run) -> str:
    """Return why there is more than one attempt."""
    ended = [attempt for attempt in run.attempts if attempt.ended is not None and attempt.number < run.number]
    if not ended:
        return ""
    checked = ended[-1].preflight and ended[-1].reason == Reason.SUCCEEDED
    return " The inputs are checked." if checked else f" The one before ended: {ended[-1].reason}."


def _complete(run: Run, failed: Finding) -> Finding:
    if run.state is RunState.SUCCEEDED:
        return Finding("True", Reason.SUCCEEDED, f"The run is finished, and its artifact is complete.{_closing(run)}")
    if run.state is RunState.FAILED:
        return Finding("False", failed.reason, "The run has failed.")
    return Finding("False", Reason.PENDING, "The run is not finished.")


def _closing(run: Run) -> str:
    """Return what the trainer said of its success, where it said anything."""
    said = (pod.termination for pod in (run.job.pods if run.job is not None else ()) if pod.termination is not None)
    return next((f" {words.message}" for words in said if words.artifact is not None and words.message), "")


def _failed(run: Run) -> Finding:
    if run.state is not RunState.FAILED or run.failure is None:
        return Finding("False", Reason.NOT_FAILED, "Nothing has failed for good.")
    hint = f" {run.failure.hint}" if run.failure.hint else ""
    return Finding("True", _reason(run.failure), f"{run.failure.message}{hint}")


def _suspended(suspend: bool, run: Run) -> Finding:
    if run.state in (RunState.SUCCEEDED, RunState.FAILED):
        return Finding("False", Reason.NOT_SUSPENDED, "The run has ended.")
    if not suspend:
        return Finding("False", Reason.NOT_SUSPENDED, "spec.suspend is false.")
    if run.state is RunState.LIVE and run.job is not None and run.job.state != "Suspended":
        return Finding("False", Reason.NOT_SUSPENDED, "spec.suspend is true, and the run saves before it stops.")
    return Finding("True", Reason.SUSPENDED, "Set spec.suspend to false to go on.")


def _failure(plan: Plan, run: Run, idle: bool) -> Failure | None:
    if idle and plan.refused is not None:
        return refusal(plan.refused)
    return run.failure if run.failure is not None and run.failure.reason != Reason.QUEUED else None


def _reason(failure: Failure | None) -> Reason:
    """Return the failure's reason as one of the documented words."""
    return Reason(failure.reason) if failure is not None and failure.reason in set(Reason) else Reason.CRASHED


def _under_way(progress: Progress | None, run: Run) -> Progress | None:
    """Return the progress with the time to go in words, for as long as the run works."""
    if progress is None:
        return None
    works = run.state is RunState.LIVE and run.job is not None and run.job.state == "Running"
    seconds = progress.estimated_remaining_seconds
    return progress.model_copy(update={"remaining": duration(seconds) if works and seconds is not None else None})


def _finished(progress: Progress | None) -> Progress:
    """Return the progress of a finished run: all of it."""
    last = progress or Progress()
    step = last.total_steps if last.total_steps is not None else last.step
    ended = {"remaining": None, "activity": None}
    return last.model_copy(update={"percent": 100, "step": step, "estimated_remaining_seconds": 0, **ended})


def _placed(artifact: Artifact | None, resource: AnyResource) -> Artifact | None:
    """Return the artifact with its claim and path, should the trainer have left them out."""
    target = volumes.writes(resource)
    if artifact is None or target is None:
        return artifact
    inside = ARTIFACT_DIRECTORY if target.path == "." else f"{target.path}/{ARTIFACT_DIRECTORY}"
    return artifact.model_copy(update={"claim": artifact.claim or target.claim, "path": artifact.path or inside})
