"""Encoded instruction samples, what became of the records, and their held-out split."""

from dataclasses import asdict, dataclass, fields, replace
from functools import reduce
from operator import add
from typing import Any

import numpy as np
import numpy.typing as npt

from herdsman_trainer.batches import Batch, Ids, collate_rows
from herdsman_trainer.held_out import settle_threshold, split_threshold
from herdsman_trainer.sequence_order import NO_SEQUENCE, Indices

_MANY = 0.2
_NO_LOSSES = ("read", "kept", "duplicates", "tokens", "text_characters")


@dataclass(slots=True)
class InstructionCounts:
    """What became of the records that were read."""

    read: int = 0
    kept: int = 0
    truncated: int = 0
    """Kept, with the answer cut and without the id that ends a turn."""
    dropped_empty_instruction: int = 0
    dropped_empty_output: int = 0
    dropped_prompt_too_long: int = 0
    """The prompt alone filled the length, so that nothing of the answer was left."""
    dropped_overlong: int = 0
    """Dropped by the policy Drop."""
    dropped_duplicate: int = 0
    """The same prompt with the same answer again, where duplicates are dropped."""
    duplicates: int = 0
    """Samples that were met before, dropped or not."""
    tokens: int = 0
    """Of the samples that were kept, prompts and answers."""
    text_characters: int = 0
    """Characters of their prompts and answers, as far as they were kept and without what the template adds."""

    def __add__(self, other: "InstructionCounts") -> "InstructionCounts":
        """Return what became of the records of both."""
        return InstructionCounts(*(getattr(self, item.name) + getattr(other, item.name) for item in fields(self)))

    @property
    def dropped_no_target(self) -> int:
        """Samples that had nothing to learn from."""
        return self.dropped_empty_output + self.dropped_prompt_too_long

    @property
    def dropped(self) -> int:
        """All records that are not in the set."""
        return self.read - self.kept

    @property
    def reasons(self) -> dict[str, int]:
        """How many were dropped, by reason."""
        return {
            "empty instruction": self.dropped_empty_instruction,
            "empty output": self.dropped_empty_output,
            "prompt too long": self.dropped_prompt_too_long,
            "too long": self.dropped_overlong,
            "duplicate": self.dropped_duplicate,
        }

    @property
    def warning(self) -> str | None:
        """A sentence where more than a fifth of the records was dropped or cut, else None."""
        if self.dropped + self.truncated <= _MANY * self.read:
            return None
        return f"{self.dropped + self.truncated} of {self.read} records were dropped or cut: {self}."

    def __str__(self) -> str:
        figures = {name.replace("_", " "): number for name, number in asdict(self).items() if name not in _NO_LOSSES}
        return ", ".join(f"{number} {name}" for name, number in figures.items() if number) or "none dropped or cut"


@dataclass(frozen=True, slots=True)
class InstructionSet:
    """Samples as slices of one array of ids; every array but `ids` has one element a sample."""

    ids: Ids
    starts: npt.NDArray[np.int64]
    lengths: npt.NDArray[np.int64]
    source_lengths: npt.NDArray[np.int64]
    """The ids of the prompt, which are no targets; always fewer than `lengths`."""
    characters: npt.NDArray[np.int64]
    """Characters of the answer, as far as it was kept."""
    hashes: npt.NDArray[np.uint64]
    """The split hash of the prompt: the same question is never on both sides."""
    datasets: npt.NDArray[np.uint16]
    """The dataset of each sample, in rising order."""
    pad_id: int
    control_ids: frozenset[int]
    counts_of: tuple[InstructionCounts, ...]
    """What became of the records of each dataset."""
    key: str = ""
    """The key in the cache, where it comes from there."""

    def __len__(self) -> int:
        return len(self.starts)

    @property
    def counts(self) -> InstructionCounts:
        """What became of all records."""
        return reduce(add, self.counts_of)

    @property
    def bounds(self) -> tuple[int, ...]:
        """Where the samples of each dataset begin, and where the last ones end."""
        return tuple(int(place) for place in np.searchsorted(self.datasets, range(len(self.counts_of) + 1)))

    def sample(self, index: int) -> tuple[Ids, int]:
        """Return the ids of a sample and how many of them are the prompt."""
        start = int(self.starts[index])
        return self.ids[start : start + int(self.lengths[index])], int(self.source_lengths[index])

    def subset(self, indices: npt.NDArray[Any]) -> "InstructionSet":
        """Return the samples at `indices` (numbers or a mask), over the same ids."""
        per_sample = ("starts", "lengths", "source_lengths", "characters", "hashes", "datasets")
        return replace(self, **{name: getattr(self, name)[indices] for name in per_sample})

    def split(self, fraction: float) -> tuple["InstructionSet", "InstructionSet"]:
        """Return (training, held-out) samples by the hash of the prompt; a fraction from 0 to 0.5."""
        lowest, highest = int(self.hashes.min()), int(self.hashes.max())
        threshold = settle_threshold(split_threshold(fraction), lowest, highest)
        held_out = self.hashes < np.uint64(threshold)
        return self.subset(~held_out), self.subset(held_out)

    def collate(self, indices: Indices) -> Batch:
        """Return the samples right-padded to the longest; NO_SEQUENCE becomes a row without targets."""
        empty = self.ids[:0], 0
        rows = [empty if index == NO_SEQUENCE else self.sample(int(index)) for index in indices]
        return collate_rows(rows, self.pad_id, self.control_ids)

    def targets(self, indices: Indices) -> int:
        """Return the number of targets in these samples."""
        real = indices[indices != NO_SEQUENCE]
        return int((self.lengths[real] - self.source_lengths[real]).sum())

    def lengths_of(self, indices: Indices) -> npt.NDArray[np.int64]:
        """Return the tokens of each of these samples."""
        return self.lengths[indices]
