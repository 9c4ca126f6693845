"""Answers in the making: a bounded queue, one worker thread, and events on the event loop of whoever asked."""

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Literal

from herdsman_server.engine import Engine, Sampling
from herdsman_server.metrics import ServerMetrics
from herdsman_server.text_stream import IncrementalDecoder, StopStrings
from herdsman_trainer.tokenizers import TextTokenizer

log = logging.getLogger(__name__)

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True)
class Finished:
    """The end of an answer."""

    reason: FinishReason
    completion_tokens: int
    """Generated tokens, the one that ended the answer included."""


class QueueFullError(Exception):
    """As many requests wait as are allowed; `retry_after` is in seconds."""

    def __init__(self, waiting: int, retry_after: int) -> None:
        super().__init__(f"{waiting} requests are waiting")
        self.waiting = waiting
        self.retry_after = retry_after


class QueueClosedError(Exception):
    """The server is shutting down."""


class GenerationFailedError(Exception):
    """The engine raised; its message is for the log, not for clients."""


Event = str | Finished | GenerationFailedError


@dataclass(frozen=True)
class Wanted:
    """What is to be generated."""

    prompt: Sequence[int]
    sampling: Sampling
    stop_ids: frozenset[int]
    stop_strings: Sequence[str] = ()


class Generation:
    """One answer: asked for in the running event loop, computed in the worker's thread."""

    def __init__(self, wanted: Wanted) -> None:
        self.wanted = wanted
        self.asked = time.monotonic()
        self.cancelled = threading.Event()
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[Event] = asyncio.Queue()

    def tell(self, event: Event) -> None:
        """Hand an event to the event loop, from any thread; a loop that is gone cancels the generation."""
        try:
            self._loop.call_soon_threadsafe(self._events.put_nowait, event)
        except RuntimeError:
            self.cancelled.set()

    async def events(self) -> AsyncIterator[str | Finished]:
        """Yield pieces of text and at last Finished; raises GenerationFailedError where the engine failed."""
        while True:
            event = await self._events.get()
            if isinstance(event, GenerationFailedError):
                raise event
            yield event
            if isinstance(event, Finished):
                return


class GenerationQueue:
    """Runs generations one after the other; at most `length` wait, the one that is computed not counted."""

    def __init__(self, engine: Engine, tokenizer: TextTokenizer, length: int, metrics: ServerMetrics) -> None:
        self._engine = engine
        self._tokenizer = tokenizer
        self._length = length
        self._metrics = metrics
        self._waiting: deque[Generation] = deque()
        self._changed = threading.Condition()
        self._busy = False
        self._closed = False
        self._seconds = 1.0
        """A running mean of how long an answer takes."""
        self._worker = threading.Thread(target=self._work, name="generations", daemon=True)
        self._worker.start()

    def submit(self, generation: Generation) -> None:
        """Queue a generation; raises QueueFullError where too many wait, QueueClosedError after `close`."""
        with self._changed:
            if self._closed:
                raise QueueClosedError
            waiting = len(self._waiting) + self._busy
            if waiting > self._length:
                raise QueueFullError(len(self._waiting), max(1, round(self._seconds)))
            self._waiting.append(generation)
            self._metrics.waiting.set(len(self._waiting))
            self._changed.notify()

    def cancel(self, generation: Generation) -> None:
        """Stop a generation, which leaves the queue at once or ends with its next token; harmless after its end."""
        generation.cancelled.set()
        with self._changed:
            if generation in self._waiting:
                self._waiting.remove(generation)
                self._metrics.waiting.set(len(self._waiting))

    def close(self) -> None:
        """Finish what is queued and end the worker."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._worker.join()

    def _work(self) -> None:
        while (generation := self._next()) is not None:
            started = time.monotonic()
            try:
                self._generate(generation)
            except Exception as error:
                log.exception("The engine failed on a prompt of %d tokens.", len(generation.wanted.prompt))
                generation.tell(GenerationFailedError(str(error)))
            self._seconds = 0.7 * self._seconds + 0.3 * (time.monotonic() - started)

    def _next(self) -> Generation | None:
        with self._changed:
            self._busy = False
            while not self._waiting and not self._closed:
                self._changed.wait()
            if not self._waiting:
                return None
            self._busy = True
            generation = self._waiting.popleft()
            self._metrics.waiting.set(len(self._waiting))
            return generation

    def _generate(self, generation: Generation) -> None:
        wanted = generation.wanted
        decoder = IncrementalDecoder(self._tokenizer.decode)
        stops = StopStrings(wanted.stop_strings)
        count = 0
        ended = False

        def on_token(token: int) -> bool:
            nonlocal count, ended
            if count == 0:
                self._metrics.first_token_seconds.observe(time.monotonic() - generation.asked)
            count += 1
            ended = token in wanted.stop_ids
            if not ended and (text := stops.push(decoder.push(token))):
                generation.tell(text)
            return not (ended or stops.found or generation.cancelled.is_set())

        if not generation.cancelled.is_set():
            self._engine.generate(wanted.prompt, wanted.sampling, wanted.stop_ids, on_token)
        rest = stops.push(decoder.finish()) + stops.finish()
        if rest:
            generation.tell(rest)
        self._metrics.prompt_tokens.inc(len(wanted.prompt))
        self._metrics.completion_tokens.inc(count)
        generation.tell(Finished("stop" if ended or stops.found else "length", count))
