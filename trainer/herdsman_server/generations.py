"""Answers in the making: computed in workers' threads, told to the event loop of whoever asked."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

from herdsman_server.answer_text import AnswerText, Finished, Piece
from herdsman_server.engine import Engine, Logprobs, Sampling
from herdsman_server.metrics import ServerMetrics
from herdsman_trainer.tokenizers import TextTokenizer


class GenerationFailedError(Exception):
    """The engine raised; its message is for the log, not for clients."""


Event = Piece | Finished | GenerationFailedError


@dataclass(frozen=True)
class Wanted:
    """What is to be generated."""

    prompt: Sequence[int]
    sampling: Sampling
    stop_ids: frozenset[int]
    stop_strings: Sequence[str] = ()


class Generation:
    """One answer of a request, a job for the work queue."""

    def __init__(self, wanted: Wanted, answers: "Answers", index: int) -> None:
        self.wanted = wanted
        self.cancelled = threading.Event()
        self._answers = answers
        self._index = index
        self._asked = time.monotonic()

    def compute(self, engine: Engine, tokenizer: TextTokenizer, metrics: ServerMetrics) -> None:
        """Generate the answer and tell it piece by piece."""
        wanted = self.wanted
        text = AnswerText(tokenizer, wanted.stop_ids, wanted.stop_strings)

        def on_token(token: int, logprobs: Logprobs | None = None, /) -> bool:
            if text.count == 0:
                metrics.first_token_seconds.observe(time.monotonic() - self._asked)
            if piece := text.push(token, logprobs):
                self._tell(piece)
            return not (text.ended or self.cancelled.is_set())

        if not self.cancelled.is_set():
            engine.generate(wanted.prompt, wanted.sampling, wanted.stop_ids, on_token)
        rest, finished = text.finish()
        if rest:
            self._tell(rest)
        metrics.prompt_tokens.inc(len(wanted.prompt))
        metrics.completion_tokens.inc(text.count)
        self._tell(finished)

    def fail(self, error: Exception) -> None:
        """Tell that there is no answer."""
        self._tell(GenerationFailedError(str(error)))

    def _tell(self, event: Event) -> None:
        if not self._answers.tell(self._index, event):
            self.cancelled.set()


class Answers:
    """The answers that one request wants, asked for in the running event loop; their events come as they are made."""

    def __init__(self, wanted: Sequence[Wanted]) -> None:
        self.generations = [Generation(each, self, index) for index, each in enumerate(wanted)]
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[tuple[int, Event]] = asyncio.Queue()

    def tell(self, index: int, event: Event) -> bool:
        """Hand an event to the event loop, from any thread; False where the loop is gone."""
        try:
            self._loop.call_soon_threadsafe(self._events.put_nowait, (index, event))
        except RuntimeError:
            return False
        return True

    async def events(self) -> AsyncIterator[tuple[int, Piece | Finished]]:
        """Yield the pieces of each answer, by its index, and its end; raises GenerationFailedError where one failed."""
        left = len(self.generations)
        while left:
            index, event = await self._events.get()
            if isinstance(event, GenerationFailedError):
                raise event
            yield index, event
            left -= isinstance(event, Finished)
