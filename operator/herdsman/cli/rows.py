"""One line per resource, in columns that fit the terminal."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from rich.console import Console, ConsoleOptions
from rich.text import Text

from herdsman.api.v1alpha1.registry import KINDS
from herdsman.api.v1alpha1.status import Phase, Progress, Status
from herdsman.cli.figures import bar, duration, metric, shorter, speed, took
from herdsman.core.world import Key
from herdsman.local.history import headline

MARKS: dict[Phase, tuple[str, str]] = {
    Phase.PENDING: ("○", "dim"),
    Phase.WAITING: ("○", "dim"),
    Phase.QUEUED: ("○", "cyan"),
    Phase.RUNNING: ("●", "bold cyan"),
    Phase.SUSPENDED: ("‖", "yellow"),
    Phase.SUCCEEDED: ("✔", "green"),
    Phase.FAILED: ("✘", "bold red"),
    Phase.PROGRESSING: ("●", "bold cyan"),
    Phase.READY: ("✔", "green"),
    Phase.DEGRADED: ("✘", "bold red"),
}
"""The sign and the style of a phase."""
PHASE_WIDTH = max(len(phase) for phase in Phase)
WIDE = 100
"""From this width on, kinds are written out and bars are longer."""


@dataclass(frozen=True)
class Column:
    """A right-aligned figure of a running resource."""

    heading: str
    width: int
    text: str = ""


def figures(progress: Progress | None) -> tuple[Column, ...]:
    """Return the figures of a running resource, empty where it has none."""
    step = loss = tokens = remaining = ""
    if progress is not None:
        step = f"{progress.step}/{progress.total_steps}" if progress.total_steps else ""
        loss = metric(progress, "loss") or ""
        tokens = speed(progress.tokens_per_second)
        seconds = progress.estimated_remaining_seconds
        remaining = duration(seconds) if seconds is not None else ""
    return Column("STEP", 9, step), Column("LOSS", 6, loss), Column("TOK/S", 6, tokens), Column("ETA", 6, remaining)


class Board:
    """All resources and their progress, one line each; renders to the width it is given."""

    def __init__(self, statuses: Mapping[Key, Status]) -> None:
        self._statuses = statuses

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Text]:
        wide = options.max_width >= WIDE
        labels = {key: f"{key.kind if wide else KINDS[key.kind].short}/{key.name}" for key in self._statuses}
        name_width = min(max([len("RESOURCE"), *map(len, labels.values())]), options.max_width // 3)
        bar_width = 20 if wide else 10
        yield _heading(name_width, bar_width, options.max_width)
        for key, status in self._statuses.items():
            line = Text(no_wrap=True, overflow="ellipsis")
            sign, style = MARKS[status.phase]
            line.append(f" {sign} ", style)
            line.append(f"{_fit(labels[key], name_width)}  ")
            line.append(f"{status.phase:<{PHASE_WIDTH}}  ", style)
            line.append_text(_rest(status, bar_width))
            line.truncate(options.max_width, overflow="ellipsis")
            yield line


def _heading(name_width: int, bar_width: int, width: int) -> Text:
    titles = "  ".join(f"{column.heading:>{column.width}}" for column in figures(None))
    progress = "PROGRESS".ljust(bar_width + 5)
    line = Text(f"   {'RESOURCE':<{name_width}}  {'PHASE':<{PHASE_WIDTH}}  {progress}  {titles}", "dim", no_wrap=True)
    line.truncate(width)
    return line


def _rest(status: Status, bar_width: int) -> Text:
    """Return what follows the phase: the bar and figures of a running resource, or a sentence."""
    progress = status.progress
    if status.phase == Phase.RUNNING and progress is not None and progress.total_steps:
        done, left = bar(progress.percent, bar_width)
        text = Text(done, "cyan").append(left, "dim").append(f" {progress.percent:>3}%")
        for column in figures(progress):
            text.append(f"  {column.text:>{column.width}}")
        return text.append(f"  {progress.activity or ''}", "dim")
    return Text(sentence(status), "red" if status.phase in (Phase.FAILED, Phase.DEGRADED) else "dim")


def sentence(status: Status) -> str:
    """Return in one sentence what a resource does, waits for, or ended with."""
    if status.phase == Phase.SUCCEEDED:
        seconds = took(status)
        return f"in {duration(seconds)}" if seconds is not None else ""
    if status.phase == Phase.READY and status.url:
        return status.url
    if status.phase == Phase.RUNNING and status.progress is not None and status.progress.activity:
        return status.progress.activity
    return headline(status).message


def report_line(status: Status) -> str:
    """Return the figures of a finished run."""
    return " · ".join(f"{item.name.replace('_', ' ')} {shorter(item.value)}" for item in status.report)


def _fit(text: str, width: int) -> str:
    return f"{text[: width - 1]}…" if len(text) > width else text.ljust(width)
