"""The history of a run's attempts, kept in status.attempts so that it survives the removal of the Jobs.

An attempt once recorded as ended stays as it was recorded. One that is recorded as living and has no Job is still the
living one: it is made again under the same number and name, so that a stale view never makes two.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta

from herdsman.api.v1alpha1.status import Attempt, Reason, Status
from herdsman.core.endings import Ending
from herdsman.core.world import JobFacts, World

MAX_KEPT = 100
"""status.attempts holds at most this many."""
FIRST_DELAY = 10.0
LONGEST_DELAY = 300.0
QUICK = timedelta(seconds=60)
"""Interruptions this soon after the start, three in a row, are slowed down like faults."""


def history(status: Status, world: World, endings: Mapping[int, Ending]) -> tuple[Attempt, ...]:
    """Return all attempts that are remembered or have a Job, oldest first; only the last one may be without an end."""
    known = {attempt.number: attempt for attempt in status.attempts}
    for job in sorted(world.jobs.values(), key=lambda job: job.attempt):
        old = known.get(job.attempt)
        if old is None or old.ended is None:
            known[job.attempt] = _record(job, old, endings.get(job.attempt), status, world.now)
    ordered = [known[number] for number in sorted(known)]
    for place, attempt in enumerate(ordered[:-1]):
        if attempt.ended is None:  # a later one exists, so this one cannot live any more
            ordered[place] = close(attempt, Reason.LOST, world.now)
    return _kept(ordered)


def close(attempt: Attempt, reason: Reason, now: datetime) -> Attempt:
    """Return the attempt as ended now, uncounted."""
    return attempt.model_copy(update={"ended": now.replace(microsecond=0), "reason": reason.value})


def seconds_worked(attempts: Sequence[Attempt]) -> float:
    """Return how long the ended attempts worked together."""
    spans = (attempt.ended - attempt.started for attempt in attempts if attempt.started and attempt.ended)
    return max(0.0, sum(span.total_seconds() for span in spans))


def delay(attempts: Sequence[Attempt], *, local: bool) -> float:
    """Return the seconds between the last attempt's end and the next one: 10, 20, 40, ... 300 by the count of faults.

    Interruptions from outside are followed at once, unless they come in quick succession. On one machine neither the
    first fault nor an interruption waits.
    """
    if not attempts:
        return 0.0
    if attempts[-1].reason == Reason.SUCCEEDED:  # a preflight, which the training follows
        return 0.0
    if attempts[-1].counted:
        exponent = sum(attempt.counted for attempt in attempts) - (2 if local else 1)
    else:
        exponent = -1 if local else _quick_interruptions(attempts) - 3
    return min(LONGEST_DELAY, FIRST_DELAY * 2 ** min(exponent, 10)) if exponent >= 0 else 0.0


def _record(job: JobFacts, old: Attempt | None, end: Ending | None, status: Status, now: datetime) -> Attempt:
    started = (old.started if old else None) or job.started
    resumed = old.resumed_from_step if old else (status.checkpoint.step if status.checkpoint else None)
    said = next((pod.termination for pod in job.pods if pod.termination), None)
    if said is not None and said.resumed_from_step is not None:
        resumed = said.resumed_from_step
    if job.preflight:  # it goes on from nothing
        resumed = None
    if end is None:
        return Attempt(
            number=job.attempt, started=started, counted=False, preflight=job.preflight, resumed_from_step=resumed
        )
    times = [pod.ended for pod in job.pods if pod.ended is not None]
    return Attempt(
        number=job.attempt,
        started=started,
        ended=job.ended or (max(times) if times else now.replace(microsecond=0)),
        exit_code=end.exit_code,
        reason=end.reason.value,
        counted=end.counted,
        preflight=job.preflight,
        resumed_from_step=resumed,
    )


def _kept(attempts: list[Attempt]) -> tuple[Attempt, ...]:
    """Drop the oldest uncounted attempts, then the oldest ones, beyond what the status holds.

    Never the last one, and never the preflight that succeeded.
    """
    surplus = max(0, len(attempts) - MAX_KEPT)
    loose = [attempt for attempt in attempts[:-1] if attempt.reason != Reason.SUCCEEDED]
    droppable = sorted(loose, key=lambda attempt: (attempt.counted, attempt.number))
    dropped = {attempt.number for attempt in droppable[:surplus]}
    return tuple(attempt for attempt in attempts if attempt.number not in dropped)


def _quick_interruptions(attempts: Sequence[Attempt]) -> int:
    """Return how many attempts in a row, up to the last one, were interrupted within a minute of their start."""
    count = 0
    for attempt in reversed(attempts):
        short = attempt.ended and attempt.started and attempt.ended - attempt.started < QUICK
        if attempt.counted or attempt.reason == Reason.SUCCEEDED or not short:
            break
        count += 1
    return count
