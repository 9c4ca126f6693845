"""The cache of encoded instructions, addressed by the files and by everything that decides their ids."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from herdsman_trainer.content_cache import CacheEntry, build_or_open_entry, content_key, file_sha256, open_entry
from herdsman_trainer.errors import BadInput, Temporary
from herdsman_trainer.instruction_files import find_instruction_files, read_instructions
from herdsman_trainer.instruction_set import InstructionCounts, InstructionSet
from herdsman_trainer.instructions import Overlong, encode_records
from herdsman_trainer.prompts import PromptTemplate
from herdsman_trainer.text_files import file_stamps, relative_name
from herdsman_trainer.tokenizers import TextTokenizer

FORMAT = 1
"""Raised whenever the same inputs would give other samples; part of the key."""

_ARRAYS = ("ids", "starts", "lengths", "source_lengths", "characters", "hashes")


def instruction_cache_key(
    source: Path,
    files: Sequence[Path],
    tokenizer: TextTokenizer,
    template: PromptTemplate,
    max_length: int,
    overlong: Overlong,
    system: str | None = None,
) -> str:
    """Return the key: a digest over names and contents of the files, the tokenizer, the template and the options.

    The ids that the template makes of a fixed record are part of it, so a template that changes changes the key.
    """
    contents = sorted((relative_name(path, source), file_sha256(path)) for path in files)
    return content_key(
        {
            "format": FORMAT,
            "files": contents,
            "tokenizer": tokenizer.digest,
            "vocabSize": tokenizer.vocab_size,
            "padId": tokenizer.pad_id,
            "template": template.name,
            "source": template.source_ids(tokenizer, "a", system),
            "target": template.target_ids(tokenizer, "b"),
            "system": system,
            "maxLength": max_length,
            "overlong": overlong,
        }
    )


def build_or_open_instructions(
    root: Path,
    source: Path,
    tokenizer: TextTokenizer,
    template: PromptTemplate,
    max_length: int,
    overlong: Overlong,
    system: str | None = None,
) -> InstructionSet:
    """Return the samples of the records under `source`, from `root`/<key> if a sound cache is there, else encoded.

    For one process; the others call `open_instructions` with its key behind a barrier. The held-out split is not part
    of the cache: `InstructionSet.split` makes it.
    """
    files = find_instruction_files(source)
    before = file_stamps(files)
    key = instruction_cache_key(source, files, tokenizer, template, max_length, overlong, system)

    def build(directory: Path) -> dict[str, Any]:
        try:
            samples = encode_records(read_instructions(files), tokenizer, template, max_length, overlong, system)
        except BadInput as error:
            error.file = error.file or str(source)
            raise
        if file_stamps(files) != before:
            raise Temporary("A dataset file changed while it was read.", file=str(source), hint="Write datasets once.")
        for name in _ARRAYS:
            np.save(directory / f"{name}.npy", getattr(samples, name), allow_pickle=False)
        return {
            "padId": samples.pad_id,
            "controlIds": sorted(samples.control_ids),
            "counts": asdict(samples.counts),
            "files": [relative_name(path, source) for path in files],
        }

    return _opened(build_or_open_entry(root, key, build))


def open_instructions(root: Path, key: str) -> InstructionSet:
    """Open the cache that another process has built and checked; sizes are checked again, contents are not."""
    entry = open_entry(root, key, check_content=False)
    if entry is None:
        raise Temporary(
            f"There is no instruction cache {key[:16]}.", file=str(root), hint="One process builds it first."
        )
    return _opened(entry)


def _opened(entry: CacheEntry) -> InstructionSet:
    arrays = {
        name: np.load(entry.directory / f"{name}.npy", mmap_mode="r" if name == "ids" else None, allow_pickle=False)
        for name in _ARRAYS
    }
    return InstructionSet(
        **arrays,
        pad_id=entry.facts["padId"],
        control_ids=frozenset(entry.facts["controlIds"]),
        counts=InstructionCounts(**entry.facts["counts"]),
        key=entry.key,
    )
