"""Tokens of documents, one after the other in an array, and where the documents start."""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from herdsman_trainer.corpora import Separator
from herdsman_trainer.errors import BadInput
from herdsman_trainer.tokenizers import TextTokenizer

TokenArray = npt.NDArray[np.unsignedinteger[Any]]
DocumentStarts = npt.NDArray[np.unsignedinteger[Any]]
"""Where each document of a token array starts; it ends where the next one starts, the last at the end of the array."""
Duplicates = Literal["Keep", "Drop"]
"""What happens to a document or record that was met before."""


@dataclass(frozen=True, slots=True)
class CorpusOptions:
    """What decides the tokens of a corpus beside its files and the tokenizer."""

    separator: Separator = "Line"
    add_bos: bool = True
    add_eos: bool = False
    held_out_fraction: float = 0.0
    duplicates: Duplicates = "Keep"


def token_dtype(vocab_size: int) -> np.dtype[Any]:
    """Return the smallest type that holds every id: uint16 up to 65,536 ids, else uint32 (little-endian)."""
    return np.dtype("<u2") if vocab_size <= 2**16 else np.dtype("<u4")


def start_dtype(tokens: int) -> np.dtype[Any]:
    """Return the smallest type that holds every place of so many tokens: uint32, or else uint64 (little-endian)."""
    return np.dtype("<u4") if tokens <= 2**32 else np.dtype("<u8")


def starts_between(starts: DocumentStarts, begin: int, end: int) -> npt.NDArray[np.int64]:
    """Return where documents start in tokens[begin:end], counted from `begin`; reads what is needed of a mapped array.

    A document that began before goes on from 0, which is in the result only where one starts there.
    """
    first, last = (np.searchsorted(starts, starts.dtype.type(place)) for place in (begin, end))
    return starts[first:last].astype(np.int64) - begin


def bos_to_add(tokenizer: TextTokenizer, options: CorpusOptions) -> int | None:
    """Return the BOS id, None where none is wanted; BadInput where one is wanted and the tokenizer has none."""
    if options.add_bos and tokenizer.bos_id is None:
        raise BadInput("addBos is set, but the tokenizer has no BOS token.", hint="Set addBos to false.")
    return tokenizer.bos_id if options.add_bos else None


def eos_to_add(tokenizer: TextTokenizer, options: CorpusOptions) -> int | None:
    """Return the EOS id, None where none is wanted."""
    return tokenizer.eos_id if options.add_eos else None
