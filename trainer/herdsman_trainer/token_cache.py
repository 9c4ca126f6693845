"""The token cache of a corpus: 2 or 4 bytes a token on disk, memory-mapped, addressed by what it was made from."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np

from herdsman_trainer.content_cache import CacheEntry, build_or_open_entry, content_key, open_entry
from herdsman_trainer.corpora import read_pieces
from herdsman_trainer.corpus_encoding import CorpusEncoder, EncodedTexts
from herdsman_trainer.data.assembly import Progress, Reader
from herdsman_trainer.data.datasets import Dataset
from herdsman_trainer.data.growing import GrowingFiles
from herdsman_trainer.errors import BadInput, Temporary
from herdsman_trainer.held_out import settle_threshold, split_threshold
from herdsman_trainer.token_assembly import (
    GROWING,
    HELD_OUT,
    STARTS,
    TRAIN,
    CorpusCounts,
    SideCounts,
    TokenAssembly,
    write_starts,
)
from herdsman_trainer.token_streams import (
    CorpusOptions,
    DocumentStarts,
    TokenArray,
    bos_to_add,
    eos_to_add,
    start_dtype,
    token_dtype,
)
from herdsman_trainer.tokenizers import TextTokenizer

FORMAT = 3
"""Raised whenever the same inputs would give other tokens; part of the key."""


@dataclass(frozen=True, slots=True)
class TokenCache:
    """An opened cache: both sides as one-dimensional read-only arrays, documents one after the other."""

    key: str
    train: TokenArray
    held_out: TokenArray
    document_starts: DocumentStarts
    """Where the documents of `train` start, rising from 0; mapped like the tokens."""
    held_out_starts: DocumentStarts
    """The same of `held_out`."""
    counts: tuple[CorpusCounts, ...]
    """Of each dataset, in order."""
    control_ids: frozenset[int]
    """The BOS and EOS ids that were added; every other id comes from text."""

    @property
    def bounds(self) -> tuple[int, ...]:
        """Where the tokens of each dataset begin in `train`, and where the last ones end."""
        return (0, *accumulate(counts.train.tokens for counts in self.counts))

    @property
    def train_counts(self) -> SideCounts:
        """The size of `train`."""
        return _sum([counts.train for counts in self.counts])

    @property
    def held_out_counts(self) -> SideCounts:
        """The size of `held_out`."""
        return _sum([counts.held_out for counts in self.counts])


def _sum(sides: Sequence[SideCounts]) -> SideCounts:
    return SideCounts(*(sum(getattr(side, item.name) for side in sides) for item in fields(SideCounts)))


def token_cache_key(datasets: Sequence[Dataset], tokenizer: TextTokenizer, options: CorpusOptions) -> str:
    """Return the key: a digest over names and contents of the files, the tokenizer and the options.

    The order of files has no influence, that of datasets has; nothing that is applied to the tokens later has any
    (block size, weights).
    """
    return content_key(
        {
            "format": FORMAT,
            "datasets": [dataset.contents for dataset in datasets],
            "tokenizer": tokenizer.digest,
            "vocabSize": tokenizer.vocab_size,
            "separator": options.separator,
            "bos": bos_to_add(tokenizer, options),
            "eos": eos_to_add(tokenizer, options),
            "heldOutFraction": float(options.held_out_fraction),
            "duplicates": options.duplicates,
        }
    )


def build_or_open(
    root: Path,
    datasets: Sequence[Dataset],
    tokenizer: TextTokenizer,
    options: CorpusOptions,
    progress: Progress | None = None,
    workers: int | None = None,
) -> TokenCache:
    """Return the tokens of the datasets, one after the other, from `root`/<key> if a sound cache is there, else built.

    For one process; the others call `open_tokens` with its key behind a barrier. The tokens are the same whatever the
    number of workers; a build that was stopped or killed is gone on with. Memory is bounded by the workers' pieces of
    text and 16 to 32 bytes a document. BadInput: nothing to read, not UTF-8, malformed JSON, an id beyond the
    vocabulary; file and line named.
    """
    split_threshold(options.held_out_fraction)  # refused before hours of reading
    pieces = partial(read_pieces, separator=options.separator)
    reader = Reader(datasets, pieces, CorpusEncoder(tokenizer, options), workers)

    def build(directory: Path) -> dict[str, Any]:
        threshold = split_threshold(options.held_out_fraction)
        made = _tokenise(directory, reader, datasets, options, threshold, progress)
        if not made.documents:
            raise _no_text(datasets)
        settled = settle_threshold(threshold, made.lowest, made.highest)
        if settled != threshold:  # a side of a tiny corpus would be empty
            made = _tokenise(directory, reader, datasets, options, settled, progress)
        write_starts(directory, made)
        controls = bos_to_add(tokenizer, options), eos_to_add(tokenizer, options)
        return {
            "datasets": [asdict(counts) for counts in made.counts],
            "tokenizerDigest": tokenizer.digest,
            "vocabSize": tokenizer.vocab_size,
            "controlIds": [index for index in controls if index is not None],
            "options": asdict(options),
        }

    key = token_cache_key(datasets, tokenizer, options)
    return _opened(build_or_open_entry(root, key, build, resumable=True))


def open_tokens(root: Path, key: str) -> TokenCache:
    """Open the cache that another process has built and checked; sizes are checked again, contents are not."""
    entry = open_entry(root, key, check_content=False)
    if entry is None:
        raise Temporary(f"There is no token cache {key[:16]}.", file=str(root), hint="One process builds it first.")
    return _opened(entry)


def _tokenise(
    directory: Path,
    reader: Reader[EncodedTexts],
    datasets: Sequence[Dataset],
    options: CorpusOptions,
    threshold: int,
    progress: Progress | None,
) -> TokenAssembly:
    header = {**reader.header, "threshold": threshold}
    with GrowingFiles(directory, GROWING, header) as files:
        made = TokenAssembly(directory, files, len(datasets), threshold, options.duplicates)
        reader.read_into(made, files, progress)
    return made


def _no_text(datasets: Sequence[Dataset]) -> BadInput:
    count = sum(len(dataset.files) for dataset in datasets)
    return BadInput(
        f"The dataset has no text: {count} file(s) hold blank lines or empty texts only.",
        file=str(datasets[0].source),
        hint="Put UTF-8 text into the files, one document a line.",
    )


def _opened(entry: CacheEntry) -> TokenCache:
    facts = entry.facts
    counts = tuple(CorpusCounts.from_json(each) for each in facts["datasets"])
    dtype = token_dtype(facts["vocabSize"])
    train, held_out = (_map(entry.directory / name, dtype) for name in (TRAIN, HELD_OUT))
    return TokenCache(
        key=entry.key,
        train=train,
        held_out=held_out,
        document_starts=_map(entry.directory / f"{TRAIN}{STARTS}", start_dtype(len(train))),
        held_out_starts=_map(entry.directory / f"{HELD_OUT}{STARTS}", start_dtype(len(held_out))),
        counts=counts,
        control_ids=frozenset(facts["controlIds"]),
    )


def _map(path: Path, dtype: np.dtype[Any]) -> TokenArray:
    if path.stat().st_size == 0:  # an empty file cannot be mapped
        return np.empty(0, dtype)
    return np.memmap(path, dtype, mode="r")
