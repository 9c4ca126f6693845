"""The progress as lines of the log, for whoever follows it: every few seconds, and whenever something else is begun."""

import logging
import re
from collections.abc import Callable

from herdsman.api.durations import duration
from herdsman.api.v1alpha1.status import CheckpointStatus, Progress

LOG_SECONDS = 10.0
"""Time between two lines of the same activity."""

_log = logging.getLogger("herdsman_trainer")


class ProgressLog:
    """Writes a line where there is news, and not more often than anybody reads."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._written = -float("inf")
        self._said: tuple[str, str] = ("", "")

    def tell(self, progress: Progress) -> None:
        """Write the progress, unless the last line of this activity said the same or is a few seconds old."""
        activity, line = _kind(progress.activity or ""), sentence(progress)
        due = self._clock() - self._written >= LOG_SECONDS
        if activity == self._said[0] and (line == self._said[1] or not due):
            return
        self._written, self._said = self._clock(), (activity, line)
        if line:
            _log.info("%s", line)

    def tell_checkpoint(self, status: CheckpointStatus) -> None:
        """Write which checkpoint there is."""
        _log.info("checkpoint of step %d is verified (%s)", status.step, status.latest)


def sentence(progress: Progress) -> str:
    """Return the progress in one line, as far as it is known."""
    figures = {item.name: item.value for item in progress.metrics}
    loss, mfu = figures.get("loss"), figures.get("mfu")
    step = f"step {progress.step}/{progress.total_steps}" if progress.total_steps else ""
    seconds = progress.estimated_remaining_seconds
    parts = [
        progress.activity or "",
        f"{step} ({progress.percent} %)" if step else f"{progress.percent} %" if progress.percent else "",
        f"loss {loss}" if loss is not None else "",
        f"{progress.tokens_per_second} tokens/s" if progress.tokens_per_second else "",
        f"MFU {float(mfu):.2f}" if mfu is not None else "",
        f"{duration(seconds)} to go" if seconds else "",
    ]
    return ", ".join(part for part in parts if part)


def _kind(activity: str) -> str:
    """Return an activity without its figures: `tokenising, 38 %` goes on with `tokenising, 39 %`."""
    return re.sub(r"\d+", "", activity)
