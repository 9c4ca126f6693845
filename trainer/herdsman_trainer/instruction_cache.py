"""The cache of encoded instructions, addressed by the files and by everything that decides their ids."""

from collections.abc import Sequence
from dataclasses import asdict
from functools import reduce
from operator import add
from pathlib import Path
from typing import Any

import numpy as np

from herdsman_trainer.content_cache import CacheEntry, build_or_open_entry, content_key, open_entry
from herdsman_trainer.data.assembly import Progress, Reader
from herdsman_trainer.data.datasets import Dataset
from herdsman_trainer.data.growing import GrowingFiles
from herdsman_trainer.errors import Temporary
from herdsman_trainer.instruction_assembly import COLUMNS, GROWING, IDS, SampleAssembly
from herdsman_trainer.instruction_files import read_pieces
from herdsman_trainer.instruction_set import InstructionCounts, InstructionSet
from herdsman_trainer.instructions import InstructionEncoder, InstructionOptions, nothing_left, pad_id
from herdsman_trainer.token_streams import token_dtype
from herdsman_trainer.tokenizers import TextTokenizer

FORMAT = 2
"""Raised whenever the same inputs would give other samples; part of the key."""


def instruction_cache_key(datasets: Sequence[Dataset], tokenizer: TextTokenizer, options: InstructionOptions) -> str:
    """Return the key: a digest over names and contents of the files, the tokenizer, the template and the options.

    The ids that the template makes of a fixed record are part of it, so a template that changes changes the key.
    """
    template = options.template
    return content_key(
        {
            "format": FORMAT,
            "datasets": [dataset.contents for dataset in datasets],
            "tokenizer": tokenizer.digest,
            "vocabSize": tokenizer.vocab_size,
            "padId": tokenizer.pad_id,
            "template": template.name,
            "source": template.source_ids(tokenizer, "a", options.system),
            "target": template.target_ids(tokenizer, "b"),
            "system": options.system,
            "maxLength": options.max_length,
            "overlong": options.overlong,
            "duplicates": options.duplicates,
        }
    )


def build_or_open_instructions(
    root: Path,
    datasets: Sequence[Dataset],
    tokenizer: TextTokenizer,
    options: InstructionOptions,
    progress: Progress | None = None,
    workers: int | None = None,
) -> InstructionSet:
    """Return the samples of the datasets' records, from `root`/<key> if a sound cache is there, else encoded.

    For one process; the others call `open_instructions` with its key behind a barrier. Workers, a kill and memory are
    as for `token_cache.build_or_open`. The held-out split is not part of the cache: `InstructionSet.split` makes it.
    """
    reader = Reader(datasets, read_pieces, InstructionEncoder(tokenizer, options), workers)

    def build(directory: Path) -> dict[str, Any]:
        with GrowingFiles(directory, GROWING, reader.header) as files:
            made = SampleAssembly(directory, files, len(datasets), options.duplicates)
            reader.read_into(made, files, progress)
        if not any(counts.kept for counts in made.counts):
            error = nothing_left(reduce(add, made.counts), options.max_length)
            error.file = str(datasets[0].source)
            raise error
        return {
            "padId": pad_id(tokenizer),
            "controlIds": sorted(options.template.stop_ids(tokenizer)),
            "vocabSize": tokenizer.vocab_size,
            "datasets": [asdict(counts) for counts in made.counts],
        }

    key = instruction_cache_key(datasets, tokenizer, options)
    return _opened(build_or_open_entry(root, key, build, resumable=True))


def open_instructions(root: Path, key: str) -> InstructionSet:
    """Open the cache that another process has built and checked; sizes are checked again, contents are not."""
    entry = open_entry(root, key, check_content=False)
    if entry is None:
        raise Temporary(
            f"There is no instruction cache {key[:16]}.", file=str(root), hint="One process builds it first."
        )
    return _opened(entry)


def _opened(entry: CacheEntry) -> InstructionSet:
    facts = entry.facts
    columns = {name: np.fromfile(entry.directory / name, dtype) for name, dtype in COLUMNS.items()}
    lengths = columns["lengths"].astype(np.int64)
    counts = tuple(InstructionCounts(**each) for each in facts["datasets"])
    return InstructionSet(
        ids=np.memmap(entry.directory / IDS, token_dtype(facts["vocabSize"]), mode="r"),
        starts=np.cumsum(lengths) - lengths,
        lengths=lengths,
        source_lengths=columns["source_lengths"].astype(np.int64),
        characters=columns["characters"].astype(np.int64),
        hashes=columns["hashes"],
        datasets=np.repeat(np.arange(len(counts), dtype=np.uint16), [each.kept for each in counts]),
        pad_id=facts["padId"],
        control_ids=frozenset(facts["controlIds"]),
        counts_of=counts,
        key=entry.key,
    )
