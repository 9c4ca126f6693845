"""A run as plain lines, for files and pipes."""

import time
from datetime import datetime
from typing import Self

from rich.console import Console
from rich.text import Text

from herdsman.api.v1alpha1.status import Phase, Status
from herdsman.cli.names import title
from herdsman.cli.reports import report_line
from herdsman.cli.rows import PHASE_WIDTH, Inputs, figures, stands
from herdsman.core.world import Key

PLAIN_SECONDS = 10.0
"""Progress without any other change is printed this often."""


class PlainView:
    """One timestamped line for each change; what changes several times between two looks is told once."""

    def __init__(self, console: Console, statuses: dict[Key, Status], inputs: Inputs) -> None:
        self._console = console
        self._width = max((len(title(key)) for key in statuses), default=0)
        self._statuses = statuses
        self._inputs = inputs
        self._told = {key: self._gist(key) for key, status in statuses.items() if status.conditions}
        self._at: dict[Key, float] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.looked()

    def changed(self, key: Key, status: Status) -> None:
        """Note the status; it is printed at the next look."""
        self._statuses[key] = status

    def said(self, sentence: str) -> None:
        """Print the sentence."""
        self.looked()
        self._line(sentence)

    def looked(self) -> None:
        """Print every new phase, reason or activity, and progress every ten seconds."""
        now = time.monotonic()
        for key, status in self._statuses.items():
            gist = self._gist(key)
            if not status.conditions or (self._told.get(key) == gist and not self._due(key, status, now)):
                continue
            new_success = status.phase == Phase.SUCCEEDED and self._told.get(key, gist)[0] != Phase.SUCCEEDED
            self._told[key], self._at[key] = gist, now
            self._line(f"{title(key):<{self._width}}  {status.phase:<{PHASE_WIDTH}}  {self._sentence(key)}")
            if new_success and status.report:
                self._line(f"{title(key):<{self._width}}  {'':<{PHASE_WIDTH}}  {report_line(status)}")

    def _due(self, key: Key, status: Status, now: float) -> bool:
        return _progress(status) is not None and now - self._at.get(key, now) >= PLAIN_SECONDS

    def _gist(self, key: Key) -> tuple[object, ...]:
        status = self._statuses[key]
        progress = status.progress
        training = status.phase == Phase.RUNNING and progress is not None and progress.total_steps
        activity = progress.activity if progress is not None else None
        return status.phase, activity, None if training else stands(key, self._statuses, self._inputs)

    def _sentence(self, key: Key) -> str:
        return _progress(self._statuses[key]) or stands(key, self._statuses, self._inputs)

    def _line(self, text: str) -> None:
        stamp = datetime.now().astimezone().strftime("%H:%M:%S")
        self._console.print(Text(f"{stamp}  {text}".rstrip()), soft_wrap=True)


def _progress(status: Status) -> str | None:
    """Return the figures of a run that counts steps."""
    progress = status.progress
    if status.phase != Phase.RUNNING or progress is None or not progress.total_steps:
        return None
    shown = figures(progress)
    parts = [f"{progress.percent:>3}%", f"step {shown.step}"]
    parts += [f"loss {shown.loss}"] if shown.loss else []
    parts += [f"{shown.speed} tokens/s"] if shown.speed else []
    parts += [f"{shown.remaining} to go"] if shown.remaining else []
    return "  ".join(parts + ([progress.activity] if progress.activity else []))
