"""The rows of `kubectl herdsman top`: the figures of a run, the replicas of a server."""

from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import datetime

from rich.text import Text

from herdsman.api.durations import duration
from herdsman.api.v1alpha1.status import Phase, Status
from herdsman.cli.columns import column_lines
from herdsman.cli.figures import bar, loss, speed
from herdsman.cli.names import title
from herdsman.cli.observed import Observed
from herdsman.cli.rows import MARKS, sentence

HEADINGS = (
    "RESOURCE",
    "PHASE",
    "PROGRESS",
    ">STEP",
    ">LOSS",
    ">TOK/S",
    ">ETA",
    ">GPUS",
    ">CHECKPOINT",
    ">RESTARTS",
    "MESSAGE",
)
CHECKPOINT_TIME = "checkpoint_timestamp_seconds"
"""The figure of a trainer that says when it last wrote a checkpoint."""
SILENT_SECONDS = 120.0
"""The operator asks a trainer every few seconds; a report older than this is told to be old."""
_BAR = 10
_ORDER = (
    Phase.RUNNING,
    Phase.PROGRESSING,
    Phase.DEGRADED,
    Phase.QUEUED,
    Phase.PENDING,
    Phase.WAITING,
    Phase.SUSPENDED,
    Phase.READY,
    Phase.IDLE,
    Phase.FAILED,
    Phase.SUCCEEDED,
)


def urgency(found: Observed) -> tuple[int, str, str]:
    """Return the place of a resource: what works first, what is finished last."""
    return _ORDER.index(found.status.phase), found.namespace, title(found.key)


def headline(found: Sequence[Observed], now: datetime) -> Text:
    """Return the sums: resources by phase, and the GPUs of those that work."""
    counts = Counter(each.status.phase for each in found)
    parts = [f"{counts[phase]} {phase}" for phase in _ORDER if counts[phase]]
    working = (Phase.RUNNING, Phase.READY, Phase.PROGRESSING, Phase.DEGRADED)
    used = sum(gpus(each) for each in found if each.status.phase in working and not is_preflight(each.status))
    parts += [f"{used} GPUs at work"] if used else []
    line = Text(", ".join(parts) or "no resources of Herdsman", "bold")
    return line.append(f"   {now.astimezone():%H:%M:%S}", "not bold dim")


def table(found: Sequence[Observed], now: datetime, *, namespaces: bool) -> Iterator[Text]:
    """Yield the headings and a line for each resource."""
    if not found:
        return
    rows = [_cells(each, now) for each in found]
    headings: tuple[str, ...] = HEADINGS
    if namespaces:
        headings = ("NAMESPACE", *HEADINGS)
        rows = [[Text(each.namespace), *row] for each, row in zip(found, rows, strict=True)]
    yield from column_lines(headings, rows)


def gpus(found: Observed) -> int:
    """Return the GPUs that all pods of a resource ask for."""
    spec = found.manifest.get("spec") or {}
    compute = spec.get("compute") or {}
    pods = spec.get("replicas", 1) if found.key.kind == "ModelServer" else compute.get("nodes", 1)
    return int(pods * compute.get("gpusPerNode", 0))


def is_preflight(status: Status) -> bool:
    """Whether what works now is a preflight, which takes no GPUs."""
    return bool(status.attempts) and status.attempts[-1].ended is None and status.attempts[-1].preflight


def checkpoint_age(status: Status, now: datetime) -> str:
    """Return how old the newest checkpoint is; "~" marks an age reckoned from the speed, and "" one not known."""
    progress, checkpoint = status.progress, status.checkpoint
    if progress is None or checkpoint is None:
        return ""
    written = next((item.value for item in progress.metrics if item.name == CHECKPOINT_TIME), "")
    if written.replace(".", "", 1).isdigit():
        return duration(now.timestamp() - float(written))
    to_go, seconds = (progress.total_steps or 0) - progress.step, progress.estimated_remaining_seconds
    if to_go <= 0 or seconds is None or progress.step < checkpoint.step:
        return ""
    return f"~{duration((progress.step - checkpoint.step) * seconds / to_go)}"


def _cells(found: Observed, now: datetime) -> list[Text]:
    status = found.status
    progress = status.progress
    sign, style = MARKS[status.phase]
    running = status.phase == Phase.RUNNING and progress is not None
    remaining = progress.estimated_remaining_seconds if running and progress is not None else None
    asked = gpus(found)
    return [
        Text(title(found.key)),
        Text(f"{sign} {status.phase}", style),
        _progress(status),
        Text(f"{progress.step}/{progress.total_steps}" if progress is not None and progress.total_steps else ""),
        Text(loss(progress)),
        Text(speed(progress.tokens_per_second) if running and progress is not None else ""),
        Text(duration(remaining) if remaining is not None else ""),
        Text(str(asked) if asked else ""),
        Text(_checkpoint(status, now)),
        Text(str(status.restarts) if status.restarts else ""),
        _message(status, now),
    ]


def _progress(status: Status) -> Text:
    if status.replicas is not None:
        return Text(f"{status.ready_replicas or 0} of {status.replicas} ready")
    progress = status.progress
    if progress is None or not progress.total_steps:
        return Text()
    done, left = bar(progress.percent, _BAR)
    return Text(done, "cyan").append(left, "dim").append(f" {progress.percent:>3}%")


def _checkpoint(status: Status, now: datetime) -> str:
    """Return the newest checkpoint's step, and how old it is while the run works."""
    if status.checkpoint is None or not status.checkpoint.step:
        return ""
    age = checkpoint_age(status, now) if status.phase == Phase.RUNNING else ""
    return f"{status.checkpoint.step} ({age})" if age else str(status.checkpoint.step)


def _message(status: Status, now: datetime) -> Text:
    told = status.progress.last_updated_time if status.progress is not None else None
    if status.phase == Phase.RUNNING and told is not None and (now - told).total_seconds() > SILENT_SECONDS:
        return Text(f"silent for {duration((now - told).total_seconds())}", "yellow")
    bad = status.phase in (Phase.FAILED, Phase.DEGRADED)
    failure = status.failure.message if status.failure is not None and not bad else ""
    if failure and status.phase != Phase.SUCCEEDED:
        return Text(failure, "yellow")
    return Text(sentence(status), "red" if bad else "dim")
