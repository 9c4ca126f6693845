"""A run on a terminal: a board that is redrawn in place."""

import time
from typing import Self

from rich.console import Console
from rich.live import Live
from rich.text import Text

from herdsman.api.v1alpha1.status import Phase, Status
from herdsman.cli.names import title
from herdsman.cli.reports import report_line
from herdsman.cli.rows import MARKS, Board, Inputs, sentence
from herdsman.core.world import Key

_FRAMES_PER_SECOND = 8


class LiveView:
    """A board that is redrawn in place, with what is worth keeping printed above it."""

    def __init__(self, console: Console, statuses: dict[Key, Status], inputs: Inputs) -> None:
        self._statuses = statuses
        self._finished = {key for key, status in statuses.items() if status.phase == Phase.SUCCEEDED}
        self._live = Live(Board(statuses, inputs), console=console, auto_refresh=False, transient=True)
        self._drawn = 0.0

    def __enter__(self) -> Self:
        self._live.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._live.stop()

    def changed(self, key: Key, status: Status) -> None:
        """Show the status; print the figures of what has just finished."""
        self._statuses[key] = status
        if status.phase == Phase.SUCCEEDED and key not in self._finished:
            self._finished.add(key)
            self._live.console.print(finished(key, status))

    def said(self, sentence: str) -> None:
        """Print the sentence above the board."""
        self._live.console.print(Text(f" ! {sentence}", "yellow"))

    def looked(self) -> None:
        """Redraw, a few times a second at most."""
        if time.monotonic() - self._drawn > 1 / _FRAMES_PER_SECOND:
            self._drawn = time.monotonic()
            self._live.refresh()


def finished(key: Key, status: Status) -> Text:
    """Return the line or two for a resource that has just succeeded."""
    sign, style = MARKS[Phase.SUCCEEDED]
    text = Text(f" {sign} ", style).append(f"{title(key)} {sentence(status)}".rstrip(), "bold")
    return text.append(f"\n   {report_line(status)}") if status.report else text
