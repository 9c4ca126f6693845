"""One line per resource, in columns that fit the terminal."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from rich.console import Console, ConsoleOptions
from rich.text import Text

from herdsman.api.durations import duration
from herdsman.api.v1alpha1.registry import KINDS
from herdsman.api.v1alpha1.status import Phase, Progress, Reason, Status
from herdsman.cli.figures import bar, loss, speed, took
from herdsman.cli.names import title
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
    Phase.IDLE: ("‖", "green"),
    Phase.DEGRADED: ("✘", "bold red"),
}
"""The sign and the style of a phase."""
PHASE_WIDTH = max(len(phase) for phase in Phase)
Inputs = Mapping[Key, Sequence[Key]]
"""The resources that each one refers to."""


class Figures(NamedTuple):
    """The figures of a running resource as text, empty where it has none."""

    step: str = ""
    loss: str = ""
    speed: str = ""
    remaining: str = ""


WIDE = 100
"""From this width on, kinds are written out and there is room for what a run does."""
_USUAL = Figures("100/200", "5.312", "12.3k", "1m20s")
"""So wide are the figures at least, so that the columns stay where they are."""
_BAR = range(4, 24)
_ACTIVITY = 16
TRAINING = "training"
"""The activity of a run that does nothing but its steps."""
_HEADINGS = Figures("STEP", "LOSS", "TOK/S", "ETA")


def figures(progress: Progress | None) -> Figures:
    """Return the figures of a running resource."""
    if progress is None:
        return Figures()
    seconds = progress.estimated_remaining_seconds
    return Figures(
        step=f"{progress.step}/{progress.total_steps}" if progress.total_steps else "",
        loss=loss(progress),
        speed=speed(progress.tokens_per_second),
        remaining=duration(seconds) if seconds is not None else "",
    )


class Board:
    """All resources and their progress, one line each; renders to the width it is given."""

    def __init__(self, statuses: Mapping[Key, Status], inputs: Inputs) -> None:
        self._statuses = statuses
        self._inputs = inputs

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Text]:
        form = _Form.of(self._statuses, options.max_width)
        yield form.heading()
        for key, status in self._statuses.items():
            sign, style = MARKS[status.phase]
            line = Text(no_wrap=True).append(f" {sign} ", style).append(f"{_fit(form.labels[key], form.name)}  ")
            line.append(f"{status.phase:<{form.phase}}  ", style)
            line.append_text(form.figures(status) or self._sentence(key))
            line.truncate(form.total, overflow="ellipsis")
            yield line

    def _sentence(self, key: Key) -> Text:
        failed = self._statuses[key].phase in (Phase.FAILED, Phase.DEGRADED)
        return Text(stands(key, self._statuses, self._inputs), "red" if failed else "dim")


@dataclass(frozen=True)
class _Form:
    """The widths of the columns on one terminal."""

    labels: Mapping[Key, str]
    total: int
    name: int
    phase: int
    columns: tuple[int, ...]
    bar: int

    @classmethod
    def of(cls, statuses: Mapping[Key, Status], total: int) -> "_Form":
        """Fit names, phases and figures; the bar takes what is left."""
        labels = {key: f"{key.kind if total >= WIDE else KINDS[key.kind].short}/{key.name}" for key in statuses}
        name = min(max([len("RESOURCE"), *map(len, labels.values())]), total // 3)
        phase = max([len("PHASE"), *(len(status.phase) for status in statuses.values())])
        shown = [_HEADINGS, _USUAL, *(figures(status.progress) for status in statuses.values() if _trains(status))]
        columns = tuple(max(len(row[place]) for row in shown) for place in range(len(_HEADINGS)))
        left = total - (3 + name + 2 + phase + 2) - len(" 100%") - sum(2 + width for width in columns)
        activity = _ACTIVITY if total >= WIDE else 0
        return cls(labels, total, name, phase, columns, max(_BAR.start, min(_BAR.stop, left - activity)))

    def heading(self) -> Text:
        """Return the line of headings."""
        titles = "".join(f"  {title:>{width}}" for title, width in zip(_HEADINGS, self.columns, strict=True))
        start = f"   {'RESOURCE':<{self.name}}  {'PHASE':<{self.phase}}  {'PROGRESS':<{self.bar + len(' 100%')}}"
        line = Text(f"{start}{titles}", "dim", no_wrap=True)
        line.truncate(self.total)
        return line

    def figures(self, status: Status) -> Text | None:
        """Return the bar and the figures of a run that counts steps."""
        progress = status.progress
        if progress is None or not _trains(status):
            return None
        done, left = bar(progress.percent, self.bar)
        text = Text(done, "cyan").append(left, "dim").append(f" {progress.percent:>3}%")
        for figure, width in zip(figures(progress), self.columns, strict=True):
            text.append(f"  {figure:>{width}}")
        told = _doing(progress)
        return text.append(f"  {told}", "dim") if told and self.total >= WIDE else text


def _doing(progress: Progress) -> str:
    """Return what a run does beside counting steps; while it trains that is no news, and its loss curve is."""
    return (progress.loss_curve if progress.activity == TRAINING else None) or progress.activity or ""


def _trains(status: Status) -> bool:
    return status.phase == Phase.RUNNING and status.progress is not None and bool(status.progress.total_steps)


def stands(key: Key, statuses: Mapping[Key, Status], inputs: Inputs) -> str:
    """Return in one sentence how a resource stands; for one that only waits for others, which."""
    status = statuses[key]
    if status.phase == Phase.WAITING and headline(status).reason == Reason.REFERENCE_NOT_READY:
        before = [other for other in inputs.get(key, ()) if not _succeeded(statuses.get(other))]
        if before:
            plain = len({other.name for other in before}) == len(before)
            return f"after {', '.join(other.name if plain else title(other) for other in before)}"
    return sentence(status)


def _succeeded(status: Status | None) -> bool:
    return status is not None and status.phase == Phase.SUCCEEDED


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


def _fit(text: str, width: int) -> str:
    return f"{text[: width - 1]}…" if len(text) > width else text.ljust(width)
