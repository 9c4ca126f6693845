"""The token cache of a corpus: 2 or 4 bytes a token on disk, memory-mapped, addressed by what it was made from."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from herdsman_trainer.content_cache import CacheEntry, build_or_open_entry, content_key, file_sha256, open_entry
from herdsman_trainer.corpora import ReadCounts, find_text_files, read_documents
from herdsman_trainer.errors import BadInput, Temporary
from herdsman_trainer.held_out import settle_threshold, split_hash, split_threshold
from herdsman_trainer.text_files import file_stamps, relative_name
from herdsman_trainer.token_writer import (
    START_DTYPE,
    CorpusOptions,
    DocumentStarts,
    SplitCounts,
    TokenArray,
    TokenWriter,
    bos_to_add,
    token_dtype,
)
from herdsman_trainer.tokenizers import TextTokenizer

FORMAT = 2
"""Raised whenever the same inputs would give other tokens; part of the key."""

TRAIN, HELD_OUT = "train.bin", "heldout.bin"
STARTS = ".starts"
"""Behind the name of a side: where its documents start, 8 bytes each."""

Progress = Callable[[int, int], None]
"""Called with (bytes of text done, bytes of all files) after every batch; it may raise to stop the building."""


@dataclass(frozen=True, slots=True)
class TokenCache:
    """An opened cache: both sides as one-dimensional read-only arrays, documents one after the other."""

    key: str
    train: TokenArray
    held_out: TokenArray
    train_counts: SplitCounts
    held_out_counts: SplitCounts
    read_counts: ReadCounts
    control_ids: frozenset[int]
    """The BOS and EOS ids that were added; every other id comes from text."""
    document_starts: DocumentStarts
    """Where the documents of `train` start, rising from 0; mapped like the tokens."""
    held_out_starts: DocumentStarts
    """The same of `held_out`."""


def token_cache_key(source: Path, files: Sequence[Path], tokenizer: TextTokenizer, options: CorpusOptions) -> str:
    """Return the key: a digest over names and contents of the files, the tokenizer and the options.

    The order of `files` has no influence, and neither has anything that is applied to the tokens later (block size).
    """
    contents = sorted((relative_name(path, source), file_sha256(path)) for path in files)
    return content_key(
        {
            "format": FORMAT,
            "files": contents,
            "tokenizer": tokenizer.digest,
            "vocabSize": tokenizer.vocab_size,
            "separator": options.separator,
            "bos": bos_to_add(tokenizer, options),
            "eos": tokenizer.eos_id if options.add_eos else None,
            "heldOutFraction": float(options.held_out_fraction),
        }
    )


def build_or_open(
    root: Path, source: Path, tokenizer: TextTokenizer, options: CorpusOptions, progress: Progress | None = None
) -> TokenCache:
    """Return the tokens of the corpus under `source`, from `root`/<key> if a sound cache is there, else built.

    For one process; the others call `open_tokens` with its key behind a barrier. Memory is bounded by the longest
    document. BadInput: nothing to read, not UTF-8, malformed JSON, an id beyond the vocabulary; file and line named.
    """
    split_threshold(options.held_out_fraction)  # refused before hours of reading
    files = find_text_files(source)
    before = file_stamps(files)
    key = token_cache_key(source, files, tokenizer, options)

    def build(directory: Path) -> dict[str, Any]:
        facts = _tokenise(directory, source, files, tokenizer, options, progress)
        if file_stamps(files) != before:
            raise Temporary("A dataset file changed while it was read.", file=str(source), hint="Write datasets once.")
        return facts

    return _opened(build_or_open_entry(root, key, build))


def open_tokens(root: Path, key: str) -> TokenCache:
    """Open the cache that another process has built and checked; sizes are checked again, contents are not."""
    entry = open_entry(root, key, check_content=False)
    if entry is None:
        raise Temporary(f"There is no token cache {key[:16]}.", file=str(root), hint="One process builds it first.")
    return _opened(entry)


def _opened(entry: CacheEntry) -> TokenCache:
    facts = entry.facts
    dtype = token_dtype(facts["vocabSize"])
    return TokenCache(
        key=entry.key,
        train=_map(entry.directory / TRAIN, dtype),
        held_out=_map(entry.directory / HELD_OUT, dtype),
        train_counts=SplitCounts(**facts["train"]),
        held_out_counts=SplitCounts(**facts["heldOut"]),
        read_counts=ReadCounts(**facts["read"]),
        control_ids=frozenset(facts["controlIds"]),
        document_starts=_map(entry.directory / f"{TRAIN}{STARTS}", START_DTYPE),
        held_out_starts=_map(entry.directory / f"{HELD_OUT}{STARTS}", START_DTYPE),
    )


def _map(path: Path, dtype: np.dtype[Any]) -> TokenArray:
    if path.stat().st_size == 0:  # an empty file cannot be mapped
        return np.empty(0, dtype)
    return np.memmap(path, dtype, mode="r")


def _tokenise(
    directory: Path,
    source: Path,
    files: Sequence[Path],
    tokenizer: TextTokenizer,
    options: CorpusOptions,
    progress: Progress | None,
) -> dict[str, Any]:
    """Write both sides and return the facts; again with a moved threshold if one side of a tiny corpus is empty."""
    total = sum(path.stat().st_size for path in files)
    threshold = split_threshold(options.held_out_fraction)
    while True:
        counts = ReadCounts()
        lowest, highest, done = 2**64, -1, 0
        with ExitStack() as stack:

            def writer(name: str) -> TokenWriter:
                tokens, starts = (directory / name, directory / f"{name}{STARTS}")
                opened = stack.enter_context(tokens.open("wb")), stack.enter_context(starts.open("wb"))
                return TokenWriter(*opened, tokenizer, options)

            train, held_out = writer(TRAIN), writer(HELD_OUT)
            for document in read_documents(files, options.separator, counts):
                number = split_hash(document.text)
                lowest, highest = min(lowest, number), max(highest, number)
                written = (held_out if number < threshold else train).add(document)
                if written and progress:
                    done += written
                    progress(min(done, total), total)
            train.flush()
            held_out.flush()
        if not counts.documents:
            raise BadInput(
                f"The dataset has no text: {len(files)} file(s) hold blank lines or empty texts only.",
                file=str(source),
                hint="Put UTF-8 text into the files, one document a line.",
            )
        settled = settle_threshold(threshold, lowest, highest)
        if settled == threshold:
            break
        threshold = settled
    return {
        "train": asdict(train.counts()),
        "heldOut": asdict(held_out.counts()),
        "read": asdict(counts),
        "files": [relative_name(path, source) for path in files],
        "tokenizerDigest": tokenizer.digest,
        "vocabSize": tokenizer.vocab_size,
        "controlIds": [index for index in (train.bos, train.eos) if index is not None],
        "options": asdict(options),
    }
