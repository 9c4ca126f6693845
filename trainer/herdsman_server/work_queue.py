"""What the engine has to do: a bounded queue, and as many worker threads as the engine computes answers at once."""

import logging
import threading
import time
from collections import deque
from collections.abc import Sequence
from typing import Protocol

from herdsman_server.engine import Engine
from herdsman_server.metrics import ServerMetrics
from herdsman_trainer.tokenizers import TextTokenizer

log = logging.getLogger(__name__)


class QueueFullError(Exception):
    """As many requests wait as are allowed; `retry_after` is in seconds."""

    def __init__(self, waiting: int, retry_after: int) -> None:
        super().__init__(f"{waiting} requests are waiting")
        self.waiting = waiting
        self.retry_after = retry_after


class QueueClosedError(Exception):
    """The server is shutting down."""


class Job(Protocol):
    """Something for the engine to do."""

    cancelled: threading.Event

    def compute(self, engine: Engine, tokenizer: TextTokenizer, metrics: ServerMetrics) -> None:
        """Do it, in a worker's thread."""

    def fail(self, error: Exception) -> None:
        """Tell whoever asked that it was not done."""


class WorkQueue:
    """Runs jobs, the oldest first; `length` may wait besides those that are computed."""

    def __init__(self, engine: Engine, tokenizer: TextTokenizer, length: int, metrics: ServerMetrics) -> None:
        self._engine = engine
        self._tokenizer = tokenizer
        self._length = length
        self._metrics = metrics
        self._waiting: deque[Job] = deque()
        self._changed = threading.Condition()
        self._busy = 0
        self._closed = False
        self._seconds = 1.0
        """A running mean of how long an answer takes."""
        self._workers = [
            threading.Thread(target=self._work, name=f"worker-{number}", daemon=True)
            for number in range(engine.parallel)
        ]
        for worker in self._workers:
            worker.start()

    def submit(self, jobs: Sequence[Job]) -> None:
        """Queue the jobs of one request; raises QueueFullError where too many wait, QueueClosedError after `close`.

        A request is taken whole, however many answers it wants, and others are refused until these are computed.
        """
        with self._changed:
            if self._closed:
                raise QueueClosedError
            if len(self._waiting) + self._busy >= self._length + len(self._workers):
                raise QueueFullError(len(self._waiting), max(1, round(self._seconds)))
            self._waiting.extend(jobs)
            self._metrics.waiting.set(len(self._waiting))
            self._changed.notify(len(jobs))

    def cancel(self, jobs: Sequence[Job]) -> None:
        """Stop jobs, which leave the queue at once or end with their next token; harmless after their end."""
        for job in jobs:
            job.cancelled.set()
        with self._changed:
            for job in jobs:
                if job in self._waiting:
                    self._waiting.remove(job)
            self._metrics.waiting.set(len(self._waiting))

    def close(self) -> None:
        """Finish what is queued and end the workers."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        for worker in self._workers:
            worker.join()

    def _work(self) -> None:
        while (job := self._next()) is not None:
            started = time.monotonic()
            try:
                job.compute(self._engine, self._tokenizer, self._metrics)
            except Exception as error:
                log.exception("The engine failed.")
                job.fail(error)
            with self._changed:
                self._busy -= 1
                self._seconds = 0.7 * self._seconds + 0.3 * (time.monotonic() - started)

    def _next(self) -> Job | None:
        with self._changed:
            while not self._waiting and not self._closed:
                self._changed.wait()
            if not self._waiting:
                return None
            self._busy += 1
            job = self._waiting.popleft()
            self._metrics.waiting.set(len(self._waiting))
            return job
