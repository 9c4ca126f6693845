"""A run over its attempts: which one lives, whether another one follows, and how it ends."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

from herdsman.api.exit_codes import PERMANENT
from herdsman.api.v1alpha1.model_server import ModelServer
from herdsman.api.v1alpha1.registry import AnyResource
from herdsman.api.v1alpha1.status import Artifact, Attempt, Failure, Reason, Status
from herdsman.core.attempts import MAX_KEPT, close, delay, history, seconds_worked
from herdsman.core.conditions import shortened
from herdsman.core.endings import Ending, deadline_failure, ending
from herdsman.core.hints import hint_for
from herdsman.core.thresholds import failure as unmet
from herdsman.core.troubles import TRANSIENT, trouble
from herdsman.core.world import JobFacts, World


class RunState(StrEnum):
    """Where a run stands."""

    NEW = "New"
    """No attempt has been made."""
    LIVE = "Live"
    """An attempt is made or works."""
    RETRY = "Retry"
    """The last attempt ended, and another one follows: after a fault, or after a preflight."""
    SUCCEEDED = "Succeeded"
    FAILED = "Failed"


@dataclass(frozen=True)
class Run:
    """A run as its history and its Jobs tell it."""

    state: RunState
    attempts: tuple[Attempt, ...] = ()
    """All that is remembered, oldest first; a living one has no end."""
    number: int = 1
    """The living attempt, the next one, or the last one of a finished run."""
    job: JobFacts | None = None
    """The Job of the last attempt, where it exists."""
    failure: Failure | None = None
    """Why the last attempt ended or the run failed; None when nothing is wrong."""
    artifact: Artifact | None = None

    @property
    def planned(self) -> Attempt | None:
        """The record of the attempt `number`; None where it has not been made."""
        return next((attempt for attempt in self.attempts if attempt.number == self.number), None)

    @property
    def restarts(self) -> int:
        """Attempts that counted against maxRestarts; the one that ends a failed run is its end and no restart."""
        counted = sum(attempt.counted for attempt in self.attempts)
        return counted - (self.state is RunState.FAILED and self.attempts[-1].counted)

    def not_before(self, *, local: bool) -> datetime | None:
        """When the next attempt may start; None where it need not wait."""
        ended = self.attempts[-1].ended if self.attempts else None
        wait = delay(self.attempts, local=local)
        return ended + timedelta(seconds=wait) if self.state is RunState.RETRY and ended and wait else None


def judge(resource: AnyResource, world: World) -> Run:
    """Return where the run stands, from its recorded status and the Jobs that are there."""
    assert not isinstance(resource, ModelServer), "a server has no attempts"
    status = resource.status or Status()
    endings = {job.attempt: end for job in world.jobs.values() if (end := ending(job)) is not None}
    attempts = history(status, world, endings)
    if not attempts:
        return Run(RunState.NEW)
    last = attempts[-1]
    job = next((job for job in world.jobs.values() if job.attempt == last.number), None)
    deadline = resource.spec.active_deadline_seconds
    if last.ended is None:
        if deadline is not None and seconds_worked(attempts) + _running_seconds(job, world.now) > deadline:
            closed = close(last, Reason.DEADLINE_EXCEEDED, world.now)
            return Run(RunState.FAILED, (*attempts[:-1], closed), last.number, job, deadline_failure(_name(resource)))
        recovered = job is not None and job.state == "Running"
        return Run(RunState.LIVE, attempts, last.number, job, trouble(job) or (None if recovered else _known(status)))
    end = endings.get(last.number)
    done = last.reason == Reason.SUCCEEDED
    artifact = end.artifact if end is not None else status.artifact
    if done and (artifact is not None or not last.preflight):  # a preflight may find that all was done before
        if (missed := unmet(resource, job.report if job is not None and job.report else status.report)) is not None:
            return Run(RunState.FAILED, attempts, last.number, job, missed, artifact)
        return Run(RunState.SUCCEEDED, attempts, last.number, job, None, artifact)
    if deadline is not None and seconds_worked(attempts) > deadline:
        return Run(RunState.FAILED, attempts, last.number, job, deadline_failure(_name(resource)))
    if done:
        return Run(RunState.RETRY, attempts, last.number + 1, job)
    cause = (end.failure if end is not None else None) or _known(status) or _from_record(resource, last)
    if (final := _final(resource.spec.max_restarts, attempts, world, end, cause)) is not None:
        return Run(RunState.FAILED, attempts, last.number, job, final)
    return Run(RunState.RETRY, attempts, last.number + 1, job, cause)


def seconds_left(resource: AnyResource, run: Run, now: datetime) -> float | None:
    """Return how long a run may still work, or None without a deadline."""
    assert not isinstance(resource, ModelServer)
    deadline = resource.spec.active_deadline_seconds
    if deadline is None:
        return None
    return max(0.0, deadline - seconds_worked(run.attempts) - _running_seconds(run.job, now))


def _name(resource: AnyResource) -> str:
    return f"{resource.kind} {resource.metadata.name}"


def _running_seconds(job: JobFacts | None, now: datetime) -> float:
    return (now - job.started).total_seconds() if job and job.state == "Running" and job.started else 0.0


def _known(status: Status) -> Failure | None:
    """The recorded cause of an ended attempt; troubles of the platform and refusals pass and are not remembered."""
    return None if status.failure is None or status.failure.reason in TRANSIENT else status.failure


def _from_record(resource: AnyResource, last: Attempt) -> Failure:
    reason = Reason(last.reason) if last.reason in set(Reason) else Reason.CRASHED
    return Failure(
        reason=reason,
        message=f"Attempt {last.number} of {_name(resource)} ended: {reason}.",
        hint=hint_for(reason),
        exit_code=last.exit_code,
    )


def _final(
    max_restarts: int, attempts: Sequence[Attempt], world: World, end: Ending | None, cause: Failure
) -> Failure | None:
    """Return the failure that ends the run, or None where another attempt follows."""
    if attempts[-1].exit_code in PERMANENT or (end is not None and end.permanent):
        return cause
    if _starved_again(attempts, world):
        message = f"{cause.message} It is the second time in a row at the same step; a third would end the same way."
        return cause.model_copy(update={"message": shortened(message, 2048)})
    allowed = min(max_restarts, MAX_KEPT - 1)
    if sum(attempt.counted for attempt in attempts) <= allowed:
        return None
    message = f"Restarted {allowed} times, as often as spec.maxRestarts allows. The last cause ({cause.reason}): "
    return cause.model_copy(
        update={
            "reason": Reason.MAX_RESTARTS_EXCEEDED.value,
            "message": shortened(message + cause.message, 2048),
        }
    )


def _starved_again(attempts: Sequence[Attempt], world: World) -> bool:
    """Whether the last two attempts were both killed for want of memory on the way from the same checkpoint.

    The order of the data is fixed, so they came to the same step, unless their Jobs are known to have ended apart.
    """
    if len(attempts) < 2 or any(attempt.reason != Reason.OUT_OF_MEMORY for attempt in attempts[-2:]):
        return False
    before, last = attempts[-2:]
    reached = {job.attempt: job.progress.step for job in world.jobs.values() if job.progress is not None}
    apart = reached.get(before.number) != reached.get(last.number) if last.number in reached else False
    return before.resumed_from_step == last.resumed_from_step and not (apart and before.number in reached)
