"""TensorBoard: event files in the workspace, one for each attempt."""

import time
from collections.abc import Mapping

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.summary import scalar, text

from herdsman_trainer.trackers import TrackedRun

DIRECTORY = "tensorboard"


class TensorBoardTracker:
    """Writes events itself, without SummaryWriter's queue, whose end would wait for ever where the disk is full."""

    def __init__(self, run: TrackedRun) -> None:
        directory = run.workspace / DIRECTORY
        directory.mkdir(exist_ok=True)
        self._writer = EventsWriter(str(directory / "events"), f".attempt-{run.attempt}")
        if run.resumed_from_step is not None:
            # What an earlier attempt wrote of the steps that are done again is hidden.
            start = SessionLog(status=SessionLog.START)
            self._write(Event(step=run.resumed_from_step + 1, session_log=start))
        self.say(run.resumed_from_step or 0, "settings", _table(run.settings))

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        """Write scalars, grouped by what they are about."""
        for name, value in figures.items():
            self._write(Event(step=step, summary=scalar(tag_of(name), value)))
        self._writer.flush()

    def say(self, step: int, name: str, text_: str) -> None:
        """Write a text."""
        self._write(Event(step=step, summary=text(name, text_)))
        self._writer.flush()

    def close(self, *, done: bool) -> None:  # noqa: ARG002 - files have no state of their own
        """Close the file."""
        self._writer.close()

    def _write(self, event: Event) -> None:
        event.wall_time = time.time()
        self._writer.write_event(event)


def open_tracker(_settings: bool, run: TrackedRun) -> TensorBoardTracker:
    """Open the event file."""
    return TensorBoardTracker(run)


def tag_of(name: str) -> str:
    """Return the tag of a figure, whose first part is the section it is shown in."""
    if name.startswith("heldout_"):
        return f"heldout/{name.removeprefix('heldout_')}"
    speed = name in ("tokens_per_second", "mfu", "gpu_memory_bytes", "seconds")
    return f"{'speed' if speed else 'train'}/{name}"


def _table(settings: Mapping[str, object]) -> str:
    rows = "".join(f"| {name} | {value} |\n" for name, value in settings.items())
    return f"| setting | value |\n| --- | --- |\n{rows}"
