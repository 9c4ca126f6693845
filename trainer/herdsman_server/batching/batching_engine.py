"""The engine: one thread computes pass after pass, and whoever asked waits for the end of the own answer."""

import logging
import threading
import time
from collections.abc import Callable
from collections.abc import Sequence as Ids
from typing import Any

from herdsman_server.batching.adapters import Adapters
from herdsman_server.batching.passes import Flight, Passes
from herdsman_server.batching.requests import Sequence
from herdsman_server.batching.scheduler import Scheduler
from herdsman_server.engine import OnToken, Sampling

log = logging.getLogger(__name__)

ROUND_SECONDS = 0.1
"""How long a pass over prompts should take at most while answers go on."""
FAILURES = 3
"""Passes that may fail in a row."""
FEWEST = 32
"""Tokens such a pass has at least."""


class BatchingEngine:
    """Computes answers of a Llama, many at once."""

    def __init__(self, passes: Passes, *, parallel: int, context_length: int, budget: int) -> None:
        self.parallel = parallel
        self.context_length = context_length
        self.model = passes.model
        self._passes = passes
        self._scheduler = Scheduler(passes.memory.extents, parallel, context_length, budget)
        self.adapters = Adapters(passes, self._asked)
        """Adapters that requests may choose."""
        self._changed = threading.Condition()
        self._news: list[Sequence] = []
        self._calls: list[_Call] = []
        self._closed = False
        self._failures = 0
        self._rate = 0.0
        """Tokens of prompts a second, as measured."""
        self._thread = threading.Thread(target=self._work, name="batching", daemon=True)
        self._thread.start()

    @property
    def broken(self) -> str | None:
        """Why it will hardly answer again: a GPU that has failed stays so until the process ends."""
        return f"the last {self._failures} passes have failed" if self._failures >= FAILURES else None

    def generate(self, prompt: Ids[int], sampling: Sampling, stop_ids: frozenset[int], on_token: OnToken) -> None:
        """Compute an answer among others; `on_token` is called from the engine's thread."""
        most = min(sampling.max_tokens, self.context_length - len(prompt))
        if most < 1:
            raise ValueError(f"a prompt of {len(prompt)} tokens leaves no room in {self.context_length}")
        sequence = Sequence(prompt, sampling, stop_ids, on_token, most)
        with self.adapters.used(sampling.adapter) as number:
            sequence.adapter = number
            with self._changed:
                self._news.append(sequence)
                self._changed.notify_all()
            sequence.done.wait()
        if sequence.error is not None:
            raise sequence.error

    def embed(self, texts: Ids[Ids[int]]) -> list[list[float]]:
        """Return a vector for each text."""
        found: list[list[float]] = self._asked(lambda: self._passes.embed(texts))
        return found

    def record(self) -> None:
        """Record the passes on CUDA, before the first client comes."""
        self._asked(lambda: self._passes.record(self.parallel))

    def close(self) -> None:
        """End the thread once all answers are complete."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join()

    def _asked(self, work: Callable[[], Any]) -> Any:
        """Have the engine's thread do something between two passes."""
        call = _Call(work)
        with self._changed:
            self._calls.append(call)
            self._changed.notify_all()
        call.done.wait()
        if call.error is not None:
            raise call.error
        return call.result

    def _work(self) -> None:
        flight: Flight | None = None
        began = time.monotonic()
        while self._take_news(wait=flight is None):
            try:
                flight, began = self._step(flight, began)
                self._failures = 0
            except Exception as error:
                log.exception("A pass failed.")
                flight = None
                self._failures += 1
                self._fail_all(error)

    def _take_news(self, *, wait: bool) -> bool:
        """Hear what is asked; False where there is nothing more to come."""
        with self._changed:
            while wait and not (self._news or self._calls or self._closed) and self._scheduler.idle:
                self._changed.wait()
            news, self._news = self._news, []
            calls, self._calls = self._calls, []
            closed = self._closed
        for sequence in news:
            self._scheduler.add(sequence)
        for call in calls:
            call.carry_out()
        return not (closed and self._scheduler.idle and wait and not calls)

    def _step(self, flight: Flight | None, began: float) -> tuple[Flight | None, float]:
        """Launch the next pass, and hear what the one before it has brought while it is computed."""
        made = self._scheduler.next(flying=flight is not None, budget=self._bounded())
        for sequence in self._scheduler.taken_in():
            self._passes.enter(sequence)
        if flight is None:
            began = time.monotonic()
        launched = self._passes.carry_out(made) if made is not None else None
        if flight is not None:
            self._hear(flight)
        if launched is None or made is None:
            return None, began
        # A grammar has to know the token before it can say what may follow.
        if launched.event is None or made.parts or any(row.constraint is not None for row in launched.rows):
            self._hear(launched)
            launched = None
        now = time.monotonic()
        self._scheduler.spent(made, now - began)
        if made.parts:
            count = sum(part.count for part in made.parts)
            self._rate = count / max(now - began, 1e-6)
        return launched, now

    def _bounded(self) -> int | None:
        return max(FEWEST, int(self._rate * ROUND_SECONDS)) if self._rate else None

    def _hear(self, flight: Flight) -> None:
        """Tell tokens to those who wait for them."""
        for sequence, token, logprobs in flight.land():
            if sequence.ended:
                continue
            sequence.said.append(token)
            last = token in sequence.stop_ids
            try:
                if not last and sequence.constraint is not None:
                    sequence.constraint.push(token)
                said = (token,) if logprobs is None or last else (token, logprobs)
                wanted = sequence.on_token(*said)
            except Exception as error:  # noqa: BLE001 - it is the request's, and raised there
                sequence.end(error)
                continue
            if last or not wanted or len(sequence.said) >= sequence.max_tokens:
                sequence.end()

    def _fail_all(self, error: Exception) -> None:
        for sequence in self._scheduler.all():
            self._scheduler.finish(sequence)
            sequence.end(error)
        self._scheduler.waiting.clear()


class _Call:
    def __init__(self, work: Callable[[], Any]) -> None:
        self._work = work
        self.result: Any = None
        self.error: Exception | None = None
        self.done = threading.Event()

    def carry_out(self) -> None:
        try:
            self.result = self._work()
        except Exception as error:  # noqa: BLE001 - raised where it was asked for
            self.error = error
        self.done.set()
