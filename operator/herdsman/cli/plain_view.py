"""A run as plain lines, for files and pipes."""

import time
from collections.abc import Sequence
from datetime import datetime
from typing import Self

from rich.console import Console
from rich.text import Text

from herdsman.api.v1alpha1.status import Phase, Status
from herdsman.cli.figures import duration
from herdsman.cli.names import title
from herdsman.cli.rows import PHASE_WIDTH, figures, report_line, sentence
from herdsman.core.world import Key
from herdsman.local.history import headline

PLAIN_SECONDS = 10.0
"""Progress without any other change is printed this often."""


class PlainView:
    """One timestamped line for each change."""

    def __init__(self, console: Console, keys: Sequence[Key], known: dict[Key, Status]) -> None:
        self._console = console
        self._width = max((len(title(key)) for key in keys), default=0)
        self._told = {key: _gist(status) for key, status in known.items()}
        self._at: dict[Key, float] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        return None

    def changed(self, key: Key, status: Status) -> None:
        """Print a new phase, reason or activity at once, and progress every ten seconds."""
        gist, now = _gist(status), time.monotonic()
        if self._told.get(key) == gist and now - self._at.get(key, now) < PLAIN_SECONDS:
            self._at.setdefault(key, now)
            return
        if self._told.get(key) == gist and status.phase != Phase.RUNNING:
            return
        self._told[key], self._at[key] = gist, now
        self._line(f"{title(key):<{self._width}}  {status.phase:<{PHASE_WIDTH}}  {_told(status)}")
        if status.phase == Phase.SUCCEEDED and status.report:
            self._line(f"{title(key):<{self._width}}  {'':<{PHASE_WIDTH}}  {report_line(status)}")

    def said(self, sentence: str) -> None:
        """Print the sentence."""
        self._line(sentence)

    def looked(self) -> None:
        """Do nothing: time alone is no news."""

    def _line(self, text: str) -> None:
        stamp = datetime.now().astimezone().strftime("%H:%M:%S")
        self._console.print(Text(f"{stamp}  {text}".rstrip()), soft_wrap=True)


def _gist(status: Status) -> tuple[object, ...]:
    activity = status.progress.activity if status.progress else None
    return status.phase, headline(status), activity


def _told(status: Status) -> str:
    progress = status.progress
    if status.phase != Phase.RUNNING or progress is None or not progress.total_steps:
        return sentence(status)
    step, loss, tokens, _ = (column.text for column in figures(progress))
    parts = [f"{progress.percent:>3}%", f"step {step}"]
    parts += [f"loss {loss}"] if loss else []
    parts += [f"{tokens} tokens/s"] if tokens else []
    if progress.estimated_remaining_seconds is not None:
        parts.append(f"{duration(progress.estimated_remaining_seconds)} to go")
    return "  ".join(parts + ([progress.activity] if progress.activity else []))
