"""A de-duplicating, delayed, fair work queue: one run per key at a time, retries with growing delays.

The semantics are those of client-go's rate-limiting work queue: a key that is added while it is being worked on is
worked on once more afterwards, however often it was added. Namespaces take turns, so that a thousand broken resources
of one tenant do not delay another's, and urgent keys (a run has ended) go before the others of their namespace.
"""

import asyncio
import heapq
import itertools
import random
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)

FIRST_DELAY = 0.5
LONGEST_DELAY = 300.0
CROWD, CROWDED_RATE = 64, 40
"""With more keys than these waiting, or worked on in a second, what is not pressing waits until more of it is known."""
CROWDED_SECONDS = 5.0
"""And that long: a status is within ten seconds of the truth."""


def backoff(failures: int, jitter: float) -> float:
    """Return the seconds to wait after this many failures in a row: 0.5, 1, 2, ... 300, up to a fifth more by jitter.

    `jitter` is a number in [0, 1).
    """
    exponent = min(max(failures, 1) - 1, 20)
    delay: float = min(FIRST_DELAY * 2**exponent, LONGEST_DELAY)
    return delay * (1 + jitter / 5)


@dataclass
class _Lane(Generic[K]):
    """What one namespace has waiting, oldest first."""

    urgent: OrderedDict[K, float] = field(default_factory=OrderedDict)
    ordinary: OrderedDict[K, float] = field(default_factory=OrderedDict)

    def __len__(self) -> int:
        return len(self.urgent) + len(self.ordinary)

    def put(self, key: K, since: float, *, urgent: bool) -> None:
        if key in self.urgent:
            return
        if urgent:
            self.urgent[key] = self.ordinary.pop(key, since)
        else:
            self.ordinary.setdefault(key, since)

    def pop(self) -> tuple[K, float]:
        return (self.urgent or self.ordinary).popitem(last=False)


class WorkQueue(Generic[K]):
    """Keys to reconcile. All methods belong to one event loop."""

    def __init__(
        self,
        namespace_of: Callable[[K], Hashable] = lambda _: None,
        clock: Callable[[], float] | None = None,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._namespace_of = namespace_of
        self._clock = clock or (lambda: asyncio.get_running_loop().time())
        self._jitter = jitter
        self._lanes: OrderedDict[Hashable, _Lane[K]] = OrderedDict()
        self._idle: OrderedDict[K, None] = OrderedDict()
        self._working: set[K] = set()
        self._again: dict[K, bool] = {}
        self._delayed: list[tuple[float, int, K]] = []
        self._due: dict[K, float] = {}
        self._order = itertools.count()
        self._failures: dict[K, int] = {}
        self._changed = asyncio.Event()
        self._taken: dict[int, int] = {}
        """Keys that were worked on in this second and in the one before."""

    def add(self, key: K, *, urgent: bool = False) -> None:
        """Ask for the key to be worked on soon; asking twice before that is asking once."""
        self._due.pop(key, None)
        self._add(key, urgent=urgent)

    def add_after(self, key: K, seconds: float) -> None:
        """Ask for the key to be worked on after a delay; of several delays the shortest counts."""
        if seconds <= 0:
            return self.add(key)
        due = self._clock() + seconds
        if due < self._due.get(key, float("inf")):
            self._due[key] = due
            heapq.heappush(self._delayed, (due, next(self._order), key))
            self._changed.set()
        return None

    def add_idle(self, key: K) -> None:
        """Ask for the key to be worked on when there is nothing else to do."""
        self._idle[key] = None
        self._changed.set()

    @property
    def crowded(self) -> bool:
        """Whether there is so much to do that one look at a key should do where two might be taken."""
        second = int(self._clock())
        rate = max((self._taken.get(second, 0), self._taken.get(second - 1, 0)))
        return self._pressing > CROWD or rate > CROWDED_RATE

    def add_unhurried(self, key: K) -> None:
        """Ask for the key to be worked on soon or, in a crowd, in a while: what else happens to it by then is seen in
        the same look.
        """
        if self.crowded:
            self.add_after(key, CROWDED_SECONDS)
        else:
            self.add(key)

    def retry(self, key: K, *, longest: float | None = None, at_least: float = 0.0) -> float:
        """Ask for the key to be worked on after a delay that grows with its failures; returns the delay in seconds.

        It is never more than `longest` and never less than `at_least`, which the other side may have asked for.
        """
        self._failures[key] = self._failures.get(key, 0) + 1
        delay = max(at_least, min(backoff(self._failures[key], self._jitter()), longest or LONGEST_DELAY * 2))
        self.add_after(key, delay)
        return delay

    def forget(self, key: K) -> None:
        """The key went well: its next failure starts from the shortest delay."""
        self._failures.pop(key, None)

    async def get(self) -> K:
        """Wait for a key and mark it as being worked on; `done` must follow."""
        while True:
            self._release_due()
            if (key := self._pop()) is not None:
                self._working.add(key)
                return key
            self._changed.clear()
            timeout = max(0.0, self._delayed[0][0] - self._clock()) if self._delayed else None
            try:
                await asyncio.wait_for(self._changed.wait(), timeout)
            except TimeoutError:
                continue

    def done(self, key: K) -> None:
        """The work on the key has ended; it is queued again if it was added meanwhile."""
        self._working.discard(key)
        if (urgent := self._again.pop(key, None)) is not None:
            self._add(key, urgent=urgent)

    @property
    def depth(self) -> int:
        """Keys that could be worked on now."""
        return self._pressing + len(self._idle)

    @property
    def _pressing(self) -> int:
        return sum(map(len, self._lanes.values()))

    @property
    def delayed(self) -> int:
        """Keys that wait for their time."""
        return len(self._due)

    def oldest_wait(self) -> float:
        """Return the seconds that the longest-waiting key has waited; 0 for none."""
        waits = (
            since for lane in self._lanes.values() for line in (lane.urgent, lane.ordinary) for since in line.values()
        )
        return max(0.0, self._clock() - min(waits, default=self._clock()))

    def _count(self) -> None:
        second = int(self._clock())
        self._taken = {when: self._taken.get(when, 0) for when in (second - 1, second)}
        self._taken[second] += 1

    def _add(self, key: K, *, urgent: bool) -> None:
        self._idle.pop(key, None)
        if key in self._working:
            self._again[key] = self._again.get(key, False) or urgent
            return
        lane = self._lanes.setdefault(self._namespace_of(key), _Lane())
        lane.put(key, self._clock(), urgent=urgent)
        self._changed.set()

    def _pop(self) -> K | None:
        if not self._lanes:
            return self._idle.popitem(last=False)[0] if self._idle else None
        self._count()
        namespace, lane = self._lanes.popitem(last=False)
        key, _ = lane.pop()
        if len(lane):
            self._lanes[namespace] = lane
        return key

    def _release_due(self) -> None:
        now = self._clock()
        while self._delayed and self._delayed[0][0] <= now:
            due, _, key = heapq.heappop(self._delayed)
            if self._due.get(key) == due:
                del self._due[key]
                self._add(key, urgent=False)
