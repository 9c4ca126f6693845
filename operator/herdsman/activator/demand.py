"""How much is asked for: requests under way, and how long ago the last one ended."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

WAIT_BUCKETS = (0.5, 1, 2.5, 5, 10, 20, 30, 60, 120, 300, 600)


class Demand:
    """Counts requests. A process that has just started has been idle since then."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._requests = 0
        self._last = clock()
        self.registry = CollectorRegistry()
        self._gauge = Gauge(
            "herdsman_activator_requests", "Requests under way, those held included.", registry=self.registry
        )
        self.held = Gauge(
            "herdsman_activator_held_requests", "Requests that wait for a replica.", registry=self.registry
        )
        self.hold_seconds = Histogram(
            "herdsman_activator_hold_seconds",
            "Seconds that requests waited for a replica.",
            buckets=WAIT_BUCKETS,
            registry=self.registry,
        )
        self.refused = Counter(
            "herdsman_activator_refused_requests",
            "Requests that the activator refused itself, by the status of the answer.",
            ["status"],
            registry=self.registry,
        )

    @contextmanager
    def one(self) -> Iterator[None]:
        """Count a request as long as it is under way."""
        self._requests += 1
        self._gauge.set(self._requests)
        try:
            yield
        finally:
            self._requests -= 1
            self._gauge.set(self._requests)
            self._last = self._clock()

    def report(self) -> dict[str, float]:
        """Return what the operator is told: requests under way, and the seconds since the last one."""
        idle = 0.0 if self._requests else self._clock() - self._last
        return {"requests": self._requests, "idleSeconds": round(idle, 3)}
