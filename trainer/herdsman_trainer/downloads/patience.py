"""Waiting for servers that do not answer: longer each time, as long as they ask for, and not forever."""

import logging
import random
import time
from collections.abc import Callable
from typing import Protocol, TypeVar

from herdsman_trainer.downloads.remote_files import Unavailable
from herdsman_trainer.errors import Temporary

TRIES = 8
"""Failures in a row, without one new byte in between, after which the attempt ends; about two minutes."""
FIRST_SECONDS = 1.0
LONGEST_SECONDS = 60.0
LONGEST_ASKED_SECONDS = 300.0
"""A server may ask for so much, and no more."""
_SLICE_SECONDS = 0.5
_log = logging.getLogger(__name__)
T = TypeVar("T")


class Run(Protocol):
    """What downloading needs of the run around it."""

    def report(self, *, activity: str | None = None, done: float | None = None) -> None:
        """Say how far the work is."""

    def raise_if_stopped(self) -> None:
        """Raise Interrupted if a stop was asked for."""


class Patience:
    """Counts failures in a row and waits between them."""

    def __init__(
        self,
        run: Run,
        *,
        first_seconds: float = FIRST_SECONDS,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._run = run
        self._first = first_seconds
        self._sleep = sleep
        self._failures = 0

    def worked(self) -> None:
        """Something came through: what failed before does not count any more."""
        self._failures = 0

    def wait(self, error: Unavailable) -> None:
        """Wait before the next try; raises Temporary after too many, Interrupted where a stop is asked for."""
        self._failures += 1
        if self._failures >= TRIES:
            hint = "What has come so far is kept, and the next attempt goes on from there."
            raise Temporary(f"{error} Tried {TRIES} times.", hint=hint)
        seconds = min(LONGEST_SECONDS, self._first * 2.0 ** (self._failures - 1)) * random.uniform(0.8, 1.2)
        if error.retry_after is not None:
            seconds = min(LONGEST_ASKED_SECONDS, max(seconds, error.retry_after))
        _log.warning("%s Trying again in %.1f s (%d of %d).", error, seconds, self._failures + 1, TRIES)
        self._run.report(activity=f"waiting {seconds:.0f} s: {error}")
        self.pause(seconds)

    def pause(self, seconds: float) -> None:
        """Sleep in slices, so that a stop is noticed."""
        while seconds > 0:
            self._run.raise_if_stopped()
            self._sleep(min(_SLICE_SECONDS, seconds))
            seconds -= _SLICE_SECONDS
        self._run.raise_if_stopped()

    def persist(self, call: Callable[[], T]) -> T:
        """Return what the call returns, calling it again while it raises Unavailable."""
        while True:
            try:
                found = call()
            except Unavailable as error:
                self.wait(error)
            else:
                self.worked()
                return found
