"""JSON that an answer has to be, kept to token by token; llguidance knows which tokens a schema allows."""

import json
from collections.abc import Mapping
from typing import Any

import llguidance
import numpy as np
from numpy.typing import NDArray

from herdsman_server.engine import Constraint
from herdsman_trainer.tokenizers import TextTokenizer

ANY_OBJECT: Mapping[str, Any] = {"type": "object"}
"""The schema of `response_format: {"type": "json_object"}`."""
COMPACT: Any = {"whitespace_flexible": False}
"""No white space but one blank behind commas and colons, which a model cannot go on with for ever."""


FAILED = "llguidance does not go on with this answer"
"""Its own words would have the client's schema in them, and end up in the log."""


class JsonGrammars:
    """Turns schemas into grammars over the ids of one tokenizer."""

    def __init__(self, tokenizer: TextTokenizer, stop_ids: frozenset[int]) -> None:
        """Read the bytes of all ids, which takes about a second for a hundred thousand."""
        self._vocabulary = llguidance.LLTokenizer(
            llguidance.TokenizerWrapper(_Vocabulary(tokenizer, stop_ids)), eos_token=sorted(stop_ids)
        )
        self._size = tokenizer.vocab_size

    def grammar(self, schema: Mapping[str, Any]) -> "JsonGrammar":
        """Return the grammar of a schema; raises ValueError, saying why, for one that cannot be kept to."""
        text = llguidance.LLMatcher.grammar_from_json_schema(json.dumps(schema), defaults=COMPACT)
        wrong, messages = llguidance.LLMatcher.validate_grammar_with_warnings(text, self._vocabulary)
        if wrong or messages:
            raise ValueError(messages[0].splitlines()[0])
        return JsonGrammar(self._vocabulary, text, self._size, schema)


class JsonGrammar:
    """The JSON texts of one schema."""

    def __init__(self, vocabulary: llguidance.LLTokenizer, text: str, size: int, schema: Mapping[str, Any]) -> None:
        self.schema = schema
        self._vocabulary = vocabulary
        self._text = text
        self._size = size

    def start(self) -> Constraint:
        """Return the constraint of a new answer."""
        return _JsonConstraint(llguidance.LLMatcher(self._vocabulary, self._text, log_level=0), self._size)


class _JsonConstraint:
    def __init__(self, matcher: llguidance.LLMatcher, size: int) -> None:
        self._matcher = matcher
        self._size = size
        self.ended = False

    def allowed(self) -> NDArray[np.bool_]:
        """Return for each id whether it may come next."""
        packed = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
        if self._matcher.is_error():
            raise RuntimeError(FAILED)
        return np.unpackbits(packed, bitorder="little")[: self._size].astype(np.bool_)

    def push(self, token: int) -> None:
        """Go on with a token."""
        if not self._matcher.consume_token(token):
            raise ValueError(FAILED)
        self.ended = self._matcher.is_stopped()


class _Vocabulary:
    """A tokenizer as llguidance wants to see it."""

    def __init__(self, tokenizer: TextTokenizer, stop_ids: frozenset[int]) -> None:
        self._tokenizer = tokenizer
        self.eos_token_id = tokenizer.eos_id
        self.bos_token_id = tokenizer.bos_id
        self.tokens = [tokenizer.bytes_of(index) or f"<{index}>".encode() for index in range(tokenizer.vocab_size)]
        self._single = {text[0]: [index] for index, text in enumerate(self.tokens) if len(text) == 1}
        silent = [index for index in range(tokenizer.vocab_size) if not tokenizer.bytes_of(index)]
        self.special_token_ids = sorted({*silent, *stop_ids})

    def __call__(self, text: str) -> list[int]:
        """Encode text that stands inside an answer: without the blank that SentencePiece puts before a text."""
        wanted = text.encode()
        for before in ("", "\n"):
            ids = self._tokenizer.encode(before + text)[len(self._tokenizer.encode(before)) :]
            if b"".join(map(self._tokenizer.bytes_of, ids)) == wanted:
                return ids
        return [index for byte in wanted for index in self._single.get(byte, ())]
