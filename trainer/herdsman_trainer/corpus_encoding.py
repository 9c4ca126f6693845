"""Pieces of a corpus become tokens; what a worker does with each of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from herdsman_trainer.corpora import texts_of
from herdsman_trainer.data.duplicates import Hashes
from herdsman_trainer.data.pieces import Piece
from herdsman_trainer.errors import BadInput
from herdsman_trainer.held_out import split_hashes
from herdsman_trainer.token_streams import CorpusOptions, TokenArray, bos_to_add, eos_to_add, token_dtype
from herdsman_trainer.tokenizers import TextTokenizer

_TEXTS_AT_ONCE = 4096
"""Documents encoded in one call: lines of one letter take much more memory as arrays than as text."""

Lengths = npt.NDArray[np.uint32]


@dataclass(frozen=True, slots=True)
class EncodedTexts:
    """The documents of a piece; every array but `tokens` has one element a document."""

    tokens: TokenArray
    """All tokens, with BOS and EOS as asked."""
    lengths: Lengths
    """Tokens of each document."""
    characters: Lengths
    """Unicode code points of each document."""
    hashes: Hashes
    """The hash of each text, which decides the side and finds duplicates."""
    blank_lines: int
    empty_texts: int


class CorpusEncoder:
    """Encodes pieces; it is sent to every worker as a whole."""

    def __init__(self, tokenizer: TextTokenizer, options: CorpusOptions) -> None:
        self._tokenizer = tokenizer
        self._separator = options.separator
        self._bos = bos_to_add(tokenizer, options)
        self._eos = eos_to_add(tokenizer, options)
        self._dtype = token_dtype(tokenizer.vocab_size)

    def __call__(self, piece: Piece) -> EncodedTexts:
        """Return the tokens of a piece; BadInput for an id beyond the vocabulary, with file and line."""
        found = texts_of(piece, self._separator)
        parts, lengths = [], []
        for begin in range(0, len(found.texts), _TEXTS_AT_ONCE):
            ids, sizes = self._tokenizer.encode_flat(found.utf8[begin : begin + _TEXTS_AT_ONCE])
            self._check_range(piece, found.lines[begin : begin + _TEXTS_AT_ONCE], ids, sizes)
            parts.append(self._with_controls(ids, sizes))
            lengths.append(sizes)
        controls = (self._bos is not None) + (self._eos is not None)
        count = len(found.texts)
        return EncodedTexts(
            tokens=np.concatenate(parts) if parts else np.empty(0, self._dtype),
            lengths=(np.concatenate(lengths) + controls).astype(np.uint32) if lengths else np.empty(0, np.uint32),
            characters=np.fromiter(map(len, found.texts), np.uint32, count),
            hashes=split_hashes(found.texts, found.utf8),
            blank_lines=found.blank_lines,
            empty_texts=found.empty_texts,
        )

    def _with_controls(self, ids: npt.NDArray[np.int32], sizes: npt.NDArray[np.int64]) -> TokenArray:
        if self._bos is None and self._eos is None:
            return ids.astype(self._dtype)
        ends = np.cumsum(sizes + (self._bos is not None) + (self._eos is not None))
        tokens = np.empty(int(ends[-1]), self._dtype)
        is_text = np.ones(len(tokens), np.bool_)
        if self._bos is not None:
            starts = np.concatenate(([0], ends[:-1]))
            tokens[starts], is_text[starts] = self._bos, False
        if self._eos is not None:
            tokens[ends - 1], is_text[ends - 1] = self._eos, False
        tokens[is_text] = ids
        return tokens

    def _check_range(
        self, piece: Piece, lines: Sequence[int], ids: npt.NDArray[np.int32], sizes: npt.NDArray[Any]
    ) -> None:
        size = self._tokenizer.vocab_size
        if not len(ids) or (int(ids.max()) < size and int(ids.min()) >= 0):
            return
        at = int(np.flatnonzero((ids >= size) | (ids < 0))[0])
        raise BadInput(
            f"The tokenizer made the id {ids[at]} of this text, but it has only {size} ids.",
            file=str(piece.file),
            line=lines[int(np.searchsorted(np.cumsum(sizes), at, side="right"))],
            hint="The tokenizer's files contradict each other; make the tokenizer again.",
        )
