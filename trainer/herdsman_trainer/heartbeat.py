"""Signs of progress, and the watch that ends a process which shows none.

Whatever moves the work beats: an activity, a micro-batch, an evaluated batch, a piece of a file, a finished collective.
A thread of its own counts how long no beat came. It needs the interpreter, which a thread that hangs inside of a call
may hold (reading a mapped file of a volume that went away does), so behind it stands faulthandler's watchdog, which
needs nothing: it writes the stacks and ends the process with exit code 1.

A thread that works beside the training, such as the one that writes a checkpoint, is told apart: its beats say nothing
of the training, until the training waits for it.
"""

import faulthandler
import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

SLOWEST_BYTES_PER_SECOND = 20e6
"""What a volume must at least manage while a library reads or flushes a file in one piece."""
STDERR = 2
"""The file descriptor; sys.stderr may be locked by the thread that hangs, or replaced."""
_FEWEST_POLLS, _LONGEST_POLL = 20, 5.0
_MOST_PATIENCE = 60.0
_JOIN_SECONDS = 0.5


class Heart:
    """When this process last moved and what it was doing; beats come from the threads that work."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self.last = clock()
        """The time of the last beat."""
        self.activity = "starting"
        self.step: int | None = None
        self.limit: float | None = None
        """Seconds without a beat after which the process ends; None where nobody watches."""
        self.waits = False
        """Whether it waits for other processes."""
        self._extra = 0.0
        self._beside = threading.local()
        self._beats_beside = 0

    def beat(self, *, activity: str | None = None, step: int | None = None) -> None:
        """Say that the work has moved, and with the arguments where it stands now."""
        if self._is_beside():
            self._beats_beside += 1
            return
        self.last = self._clock()
        if activity is not None:
            self.activity = activity
        if step is not None:
            self.step = step

    def idle_seconds(self) -> float:
        """Return the time since the last beat."""
        return max(0.0, self._clock() - self.last)

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Wait for other processes: a little longer than they may stand still, so that the one that hangs tells why."""
        with self._given(min(_MOST_PATIENCE, (self.limit or 0.0) / 10), waits=True):
            yield

    @contextmanager
    def trusting(self) -> Iterator[None]:
        """Wait without a limit of our own: what is waited for has one, such as the watch of the process that works."""
        with self._given(math.inf, waits=True):
            yield

    @contextmanager
    def handling(self, size: int) -> Iterator[None]:
        """Read or flush `size` bytes in one call that cannot beat: a slow volume gets the time it needs for them."""
        with self._given(size / SLOWEST_BYTES_PER_SECOND, waits=self.waits):
            yield

    @contextmanager
    def beside(self) -> Iterator[None]:
        """Work in this thread beside what is watched: that it moves does not hide that the training stands still."""
        self._beside.on = True
        try:
            yield
        finally:
            self._beside.on = False

    def wait_for(self, thread: threading.Thread, size: int) -> None:
        """Wait for a thread that works beside and may flush `size` bytes in one call; here its beats count."""
        seen = self._beats_beside
        with self.handling(size):
            while thread.is_alive():
                thread.join(_JOIN_SECONDS)
                if self._beats_beside != seen:
                    seen = self._beats_beside
                    self.beat()

    def _is_beside(self) -> bool:
        return getattr(self._beside, "on", False)

    def patience(self) -> float:
        """Return the seconds without a beat that are too long now; infinite where nobody watches."""
        return math.inf if self.limit is None else self.limit + self._extra

    @contextmanager
    def _given(self, extra: float, *, waits: bool) -> Iterator[None]:
        if self._is_beside():
            yield
            self.beat()
            return
        before = self._extra, self.waits
        self._extra, self.waits = max(self._extra, extra), waits
        try:
            yield
        finally:
            self._extra, self.waits = before
            self.beat()


HEART = Heart()
"""The heart of this process."""


@dataclass(frozen=True)
class Stall:
    """What is known when nothing has moved for too long."""

    seconds: float
    activity: str
    step: int | None
    waited: bool
    """Whether this process waited for others."""


class Watch:
    """Calls `on_stall` from a thread of its own when the heart stands still for `limit` seconds.

    The time is counted as the thread lives through it, so that a process that is frozen as a whole and goes on later
    is not taken for one that hangs.
    """

    def __init__(
        self,
        heart: Heart,
        limit: float,
        on_stall: Callable[[Stall], None],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        heart.limit = limit
        self.poll_seconds = min(_LONGEST_POLL, limit / _FEWEST_POLLS)
        self._heart = heart
        self._on_stall = on_stall
        self._clock = clock
        self._seen, self._looked, self._quiet = heart.last, clock(), 0.0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="herdsman-watch", daemon=True)

    def start(self) -> None:
        """Start watching; the time counts from now."""
        self._heart.beat()
        self._thread.start()

    def stop(self) -> None:
        """Stop watching."""
        self._ended.set()
        self._thread.join()
        self._heart.limit = None

    def look(self) -> Stall | None:
        """Take note of the heart; returns the stall if it has stood still for too long."""
        now, heart = self._clock(), self._heart
        passed = min(now - self._looked, 2 * self.poll_seconds)
        self._looked = now
        if heart.last != self._seen:
            self._seen, self._quiet = heart.last, 0.0
            return None
        self._quiet += passed
        if self._quiet < heart.patience():
            return None
        return Stall(self._quiet, heart.activity, heart.step, heart.waits)

    def _run(self) -> None:
        self._arm()
        while not self._ended.wait(self.poll_seconds):
            if (stall := self.look()) is not None:
                self._on_stall(stall)
                return
            self._arm()
        faulthandler.cancel_dump_traceback_later()

    def _arm(self) -> None:
        """Set the watchdog that needs no interpreter to the time after which this thread itself must be stuck."""
        patience = self._heart.patience()
        if math.isfinite(patience):
            faulthandler.dump_traceback_later(patience + self.poll_seconds, exit=True, file=STDERR)
        else:
            faulthandler.cancel_dump_traceback_later()
