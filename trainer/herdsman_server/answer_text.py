"""From the ids of an answer to its text, with the tokens it is made of where their log-probabilities are wanted."""

import codecs
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from herdsman_server.engine import Logprobs
from herdsman_server.text_stream import IncrementalDecoder, StopStrings
from herdsman_trainer.tokenizers import TextTokenizer

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True)
class SaidToken:
    """A token of an answer."""

    text: bytes
    """What it adds to the answer's UTF-8; part of a character maybe."""
    offset: int
    """Characters of the answer before it."""
    logprob: float
    top: tuple[tuple[bytes, float], ...]
    """The most probable tokens in its place, by their bytes."""


@dataclass(frozen=True)
class Piece:
    """Some text of an answer, and the tokens that begin in it where log-probabilities were asked for."""

    text: str
    tokens: tuple[SaidToken, ...] = ()


@dataclass(frozen=True)
class Finished:
    """The end of an answer."""

    reason: FinishReason
    completion_tokens: int
    """Generated tokens, the one that ended the answer included."""


class AnswerText:
    """Takes the tokens of an answer and gives what may be shown: whole characters, up to a stop string."""

    def __init__(self, tokenizer: TextTokenizer, stop_ids: frozenset[int], stop_strings: Sequence[str]) -> None:
        self._tokenizer = tokenizer
        self._stop_ids = stop_ids
        self._decoder = IncrementalDecoder(tokenizer.decode)
        self._stops = StopStrings(stop_strings)
        self._characters = codecs.getincrementaldecoder("utf-8")("replace")
        self._held: list[SaidToken] = []
        self._offset = 0
        self._shown = 0
        self._by_id = False
        self.count = 0
        """Tokens so far."""

    @property
    def ended(self) -> bool:
        """Whether a stop id or a stop string came."""
        return self._by_id or self._stops.found

    def push(self, token: int, logprobs: Logprobs | None) -> Piece | None:
        """Take a token and return what can be shown now, if anything."""
        self.count += 1
        if token in self._stop_ids:
            self._by_id = True
            return None
        if logprobs is not None:
            self._hold(token, logprobs)
        return self._piece(self._stops.push(self._decoder.push(token)))

    def finish(self) -> tuple[Piece | None, Finished]:
        """Return what was held back, and how the answer ended."""
        piece = self._piece(self._stops.push(self._decoder.finish()) + self._stops.finish())
        if self._held and not self._stops.found:
            # Half a character, or tokens without text: they were said all the same.
            piece = Piece(piece.text if piece else "", (*(piece.tokens if piece else ()), *self._held))
            self._held = []
        return piece, Finished("stop" if self.ended else "length", self.count)

    def _hold(self, token: int, logprobs: Logprobs) -> None:
        text = self._tokenizer.bytes_of(token)
        if self._offset == 0 and self.count == 1 and text[:1] == b" " and self._tokenizer.decode([token])[:1] != " ":
            text = text[1:]  # the blank that SentencePiece puts before a text, and takes away from its beginning
        top = tuple((self._tokenizer.bytes_of(index), value) for index, value in logprobs.top)
        self._held.append(SaidToken(text, self._offset, logprobs.chosen, top))
        self._offset += len(self._characters.decode(text))

    def _piece(self, text: str) -> Piece | None:
        if not text:
            return None
        self._shown += len(text)
        tokens = tuple(token for token in self._held if token.offset < self._shown)
        self._held = self._held[len(tokens) :]
        return Piece(text, tokens)
