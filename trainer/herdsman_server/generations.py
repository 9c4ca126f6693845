"""Answers in the making: computed in workers' threads, told to the event loop of whoever asked."""

import asyncio
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

from herdsman_server.answer_text import AnswerText, Finished, Piece
from herdsman_server.connection import ClientLeftError
from herdsman_server.engine import Engine, Logprobs, Sampling
from herdsman_server.metrics import ServerMetrics
from herdsman_trainer.tokenizers import TextTokenizer


class GenerationFailedError(Exception):
    """The engine raised; its message is for the log, not for clients."""


Event = Piece | Finished | GenerationFailedError | ClientLeftError


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
    """The answers that one request wants, asked for in the running event loop; their events come as they are made.

    Where the event loop is behind, pieces of an answer that wait for it become one: it has less to do then.
    """

    def __init__(self, wanted: Sequence[Wanted]) -> None:
        self.generations = [Generation(each, self, index) for index, each in enumerate(wanted)]
        self._loop = asyncio.get_running_loop()
        self._told: deque[tuple[int, Event]] = deque()
        self._woken = asyncio.Event()
        self._waking = False

    def tell(self, index: int, event: Event) -> bool:
        """Hand an event to the event loop, from any thread; False where the loop is gone."""
        self._told.append((index, event))
        if self._waking:
            return True
        self._waking = True
        try:
            self._loop.call_soon_threadsafe(self._woken.set)
        except RuntimeError:
            self._waking = False
            return False
        return True

    def leave(self) -> None:
        """Say that the client has left."""
        self.tell(0, ClientLeftError())

    async def events(self) -> AsyncIterator[tuple[int, Piece | Finished]]:
        """Yield the pieces of each answer, by its index, and its end.

        Raises GenerationFailedError where one failed, ClientLeftError where nobody listens any more.
        """
        left = len(self.generations)
        while left:
            await self._woken.wait()
            self._woken.clear()
            # Before anything is taken: what is told from now on wakes this up again.
            self._waking = False
            while self._told:
                index, event = self._told.popleft()
                if isinstance(event, Exception):
                    raise event
                if isinstance(event, Piece):
                    event = self._with_the_next(index, event)
                yield index, event
                left -= isinstance(event, Finished)

    def _with_the_next(self, index: int, piece: Piece) -> Piece:
        while self._told:
            other, following = self._told[0]
            if other != index or not isinstance(following, Piece):
                break
            self._told.popleft()
            piece = Piece(piece.text + following.text, piece.tokens + following.tokens)
        return piece
