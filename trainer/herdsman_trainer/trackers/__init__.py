"""Trackers of experiments, which hear of a run as it goes; none of them can hold it up.

They are opened, fed and closed in a thread of their own. One that fails is told once in the log and then left alone.
"""

import importlib
import importlib.util
import logging
import queue
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from herdsman.api.v1alpha1.report_to import ReportTo
from herdsman_trainer.errors import BadInput
from herdsman_trainer.heartbeat import HEART

MOST_WAITING = 10_000
"""Records that may wait for a slow tracker; further ones are dropped."""
CLOSE_SECONDS = 20.0
"""What the end of a run waits for them at most."""
LIBRARIES = {"wandb": "wandb", "mlflow": "mlflow"}
"""The module that each tracker needs; TensorBoard's comes with the trainer."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrackedRun:
    """What a tracker is told of the run at the start."""

    uid: str
    """The resource's, so it is the same for all attempts: they continue one run."""
    kind: str
    name: str
    attempt: int
    workspace: Path
    resumed_from_step: int | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    """The recipe and what else decides the run, flat."""


class Tracker(Protocol):
    """One tracker; called from one thread, and free to raise."""

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        """Take the figures of a step."""
        ...

    def say(self, step: int, name: str, text: str) -> None:
        """Take a text, in Markdown; a tracker without a place for it leaves it."""
        ...

    def close(self, *, done: bool) -> None:
        """End; `done` is False for a run that failed or will be continued."""
        ...


Open = Callable[[], Tracker]


class Trackers:
    """All trackers of a run, behind a queue."""

    def __init__(self, openers: Mapping[str, Open]) -> None:
        self._openers = dict(openers)
        self._queue: queue.Queue[Callable[[Tracker], None] | None] = queue.Queue(MOST_WAITING)
        self._thread = threading.Thread(target=self._run, name="herdsman-trackers", daemon=True)
        self._dropped = 0
        self._done = False
        if openers:
            self._thread.start()

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        """Pass the figures of a step on; returns at once."""
        self._put(lambda tracker: tracker.log(step, figures))

    def say(self, step: int, name: str, text: str) -> None:
        """Pass a text on; returns at once."""
        self._put(lambda tracker: tracker.say(step, name, text))

    def close(self, *, done: bool, seconds: float = CLOSE_SECONDS) -> None:
        """Let them finish, and wait for that, but not longer than `seconds`."""
        if not self._openers:
            return
        self._done = done
        while True:
            try:
                self._queue.put_nowait(None)
                break
            except queue.Full:  # the end has to fit in
                self._dropped += self._drop_one()
        self._thread.join(seconds)
        HEART.beat()
        if self._thread.is_alive() or self._dropped:
            left = self._queue.qsize() + self._dropped
            _log.warning("The trackers were too slow: %d records have not reached all of them.", left)

    def _drop_one(self) -> int:
        try:
            self._queue.get_nowait()
        except queue.Empty:
            return 0
        return 1

    def _put(self, record: Callable[[Tracker], None]) -> None:
        if not self._openers:
            return
        try:
            self._queue.put_nowait(record)
        except queue.Full:
            self._dropped += 1

    def _run(self) -> None:
        with HEART.beside():
            trackers: dict[str, Tracker] = {}
            for name, make in self._openers.items():
                with _guarded(name):
                    trackers[name] = make()
            while (record := self._queue.get()) is not None:
                for name in list(trackers):
                    tracker = trackers.pop(name)
                    with _guarded(name):
                        record(tracker)
                        trackers[name] = tracker
            for name, tracker in trackers.items():
                with _guarded(name):
                    tracker.close(done=self._done)


@contextmanager
def _guarded(name: str) -> Iterator[None]:
    """Let an error of a tracker end here; it is told once, for the tracker is not called again."""
    try:
        yield
    except Exception as error:  # noqa: BLE001 - whatever a tracker does, the training goes on
        _log.warning("reportTo.%s: %s: %s. The run goes on without it.", name, type(error).__name__, error)


def check_libraries(report_to: ReportTo) -> None:
    """Raise BadInput where a tracker is asked for whose library is not installed."""
    for name, module in LIBRARIES.items():
        if getattr(report_to, name) is not None and importlib.util.find_spec(module) is None:
            raise BadInput(
                f"spec.reportTo.{name} is set, and the Python module {module} is not installed here.",
                hint=f"Use an image that has it (pip install herdsman[trackers]), or leave reportTo.{name} out.",
            )


def open_trackers(report_to: ReportTo, run: TrackedRun) -> Trackers:
    """Return the trackers that are asked for; their libraries are imported in their thread."""
    asked = {name: getattr(report_to, name) for name in ("tensorboard", "wandb", "mlflow")}
    openers: dict[str, Open] = {}
    for name, settings in asked.items():
        if settings:
            openers[name] = _opener(name, settings, run)
    return Trackers(openers)


def _opener(name: str, settings: Any, run: TrackedRun) -> Open:
    def make() -> Tracker:
        module = importlib.import_module(f"herdsman_trainer.trackers.{name}_tracker")
        tracker: Tracker = module.open_tracker(settings, run)
        return tracker

    return make


def flat(value: Any, path: str = "") -> dict[str, Any]:
    """Return nested settings as one level, such as lora.rank; lists become text."""
    if isinstance(value, Mapping):
        return {key: item for name, member in value.items() for key, item in flat(member, _joined(path, name)).items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return {path: ", ".join(map(str, value))}
    return {} if value is None else {path: value}


def _joined(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name
