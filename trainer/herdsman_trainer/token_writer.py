"""Tokens of documents, appended to a file batch by batch with BOS and EOS as asked."""

from dataclasses import dataclass
from itertools import chain
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from herdsman_trainer.corpora import Document, Separator
from herdsman_trainer.errors import BadInput
from herdsman_trainer.heartbeat import HEART
from herdsman_trainer.tokenizers import TextTokenizer

TokenArray = npt.NDArray[np.unsignedinteger[Any]]
DocumentStarts = npt.NDArray[np.uint64]
"""Where each document of a token array starts; it ends where the next one starts, the last at the end of the array."""
START_DTYPE: np.dtype[Any] = np.dtype("<u8")

_BATCH_BYTES = 2**18


@dataclass(frozen=True, slots=True)
class CorpusOptions:
    """What decides the tokens of a corpus beside its files and the tokenizer."""

    separator: Separator = "Line"
    add_bos: bool = True
    add_eos: bool = False
    held_out_fraction: float = 0.0


@dataclass(frozen=True, slots=True)
class SplitCounts:
    """The size of one side: tokens include BOS and EOS, characters are Unicode code points of the documents."""

    documents: int = 0
    tokens: int = 0
    characters: int = 0


def token_dtype(vocab_size: int) -> np.dtype[Any]:
    """Return the smallest type that holds every id: uint16 up to 65,536 ids, else uint32 (little-endian)."""
    return np.dtype("<u2") if vocab_size <= 2**16 else np.dtype("<u4")


def starts_between(starts: DocumentStarts, begin: int, end: int) -> npt.NDArray[np.int64]:
    """Return where documents start in tokens[begin:end], counted from `begin`; reads what is needed of a mapped array.

    A document that began before goes on from 0, which is in the result only where one starts there.
    """
    first, last = np.searchsorted(starts, np.array([begin, end], starts.dtype))
    return starts[first:last].astype(np.int64) - begin


def bos_to_add(tokenizer: TextTokenizer, options: CorpusOptions) -> int | None:
    """Return the BOS id, None where none is wanted; BadInput where one is wanted and the tokenizer has none."""
    if options.add_bos and tokenizer.bos_id is None:
        raise BadInput("addBos is set, but the tokenizer has no BOS token.", hint="Set addBos to false.")
    return tokenizer.bos_id if options.add_bos else None


class TokenWriter:
    """Tokenises the documents of one side in batches and appends them to a file, and where they start to another."""

    def __init__(self, file: BinaryIO, starts: BinaryIO, tokenizer: TextTokenizer, options: CorpusOptions) -> None:
        self.bos = bos_to_add(tokenizer, options)
        self.eos = tokenizer.eos_id if options.add_eos else None
        self._file = file
        self._starts = starts
        self._tokenizer = tokenizer
        self._dtype = token_dtype(tokenizer.vocab_size)
        self._batch: list[Document] = []
        self._batch_bytes = 0
        self._documents = self._tokens = self._characters = 0

    def counts(self) -> SplitCounts:
        """Return the size of what was written."""
        return SplitCounts(self._documents, self._tokens, self._characters)

    def add(self, document: Document) -> int:
        """Take one document; the return value is the number of bytes of text written, 0 while the batch grows."""
        self._batch.append(document)
        self._batch_bytes += len(document.text) if document.text.isascii() else 3 * len(document.text)
        return self.flush() if self._batch_bytes >= _BATCH_BYTES else 0

    def flush(self) -> int:
        """Write the batch and return its bytes of text."""
        HEART.beat()
        batch, self._batch = self._batch, []
        size, self._batch_bytes = self._batch_bytes, 0
        if batch:
            tokens = self._tokens_of(batch)
            self._file.write(tokens.tobytes())
            self._documents += len(batch)
            self._tokens += len(tokens)
            self._characters += sum(len(document.text) for document in batch)
        return size

    def _tokens_of(self, batch: list[Document]) -> TokenArray:
        encoded = self._tokenizer.encode_batch([document.text for document in batch])
        lengths = np.fromiter(map(len, encoded), np.int64, len(encoded))
        text = np.fromiter(chain.from_iterable(encoded), np.int64, int(lengths.sum()))
        self._check_range(batch, lengths, text)
        ends = np.cumsum(lengths + (self.bos is not None) + (self.eos is not None))
        starts = np.concatenate(([0], ends[:-1]))
        self._starts.write((starts + self._tokens).astype(START_DTYPE).tobytes())
        tokens = np.empty(int(ends[-1]), self._dtype)
        is_text = np.ones(len(tokens), np.bool_)
        if self.bos is not None:
            tokens[starts], is_text[starts] = self.bos, False
        if self.eos is not None:
            tokens[ends - 1], is_text[ends - 1] = self.eos, False
        tokens[is_text] = text
        return tokens

    def _check_range(self, batch: list[Document], lengths: npt.NDArray[np.int64], text: npt.NDArray[np.int64]) -> None:
        if not len(text) or (int(text.max()) < self._tokenizer.vocab_size and int(text.min()) >= 0):
            return
        at = int(np.flatnonzero((text >= self._tokenizer.vocab_size) | (text < 0))[0])
        document = batch[int(np.searchsorted(np.cumsum(lengths), at, side="right"))]
        raise BadInput(
            f"The tokenizer made the id {text[at]} of this text, but it has only {self._tokenizer.vocab_size} ids.",
            file=str(document.file),
            line=document.line,
            hint="The tokenizer's files contradict each other; make the tokenizer again.",
        )
