"""Encoded pieces of a corpus put together: two sides of tokens, where their documents start, and what was counted."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from herdsman_trainer.corpus_encoding import EncodedTexts
from herdsman_trainer.data.duplicates import SeenHashes
from herdsman_trainer.data.growing import GrowingFiles
from herdsman_trainer.token_streams import Duplicates, start_dtype

TRAIN, HELD_OUT = "train.bin", "heldout.bin"
STARTS = ".starts"
"""Behind the name of a side: where its documents start."""
_LENGTHS = {TRAIN: ".train.lengths", HELD_OUT: ".heldout.lengths"}
_HASHES = ".hashes"
GROWING = (TRAIN, HELD_OUT, *_LENGTHS.values(), _HASHES)
"""The files while they are made: instead of starts how long documents are, and which texts were met."""
_CHUNK = 1 << 20
_LENGTH = np.dtype("<u4")
_HASH = np.dtype("<u8")


@dataclass(slots=True)
class SideCounts:
    """The size of one side: tokens include BOS and EOS, characters are Unicode code points of the documents."""

    documents: int = 0
    tokens: int = 0
    characters: int = 0


@dataclass(slots=True)
class CorpusCounts:
    """What became of the documents of one dataset."""

    train: SideCounts = field(default_factory=SideCounts)
    held_out: SideCounts = field(default_factory=SideCounts)
    blank_lines: int = 0
    empty_texts: int = 0
    """Texts of records that hold nothing, or nothing but white space."""
    duplicates: int = 0
    """Documents whose text was met before, in any of the datasets."""
    dropped_duplicates: int = 0

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "CorpusCounts":
        """Return the counts that `asdict` has written."""
        sides = {name: SideCounts(**data[name]) for name in ("train", "held_out")}
        return cls(**{**data, **sides})


class TokenAssembly:
    """Puts documents on their sides, in order; goes on where the files have been saved."""

    def __init__(
        self, directory: Path, files: GrowingFiles, datasets: int, threshold: int, duplicates: Duplicates
    ) -> None:
        self._files = files
        self._threshold = threshold
        self._drop = duplicates == "Drop"
        self._seen = SeenHashes()
        saved = files.state or {"counts": [asdict(CorpusCounts())] * datasets, "lowest": 2**64, "highest": -1}
        self.counts = [CorpusCounts.from_json(counts) for counts in saved["counts"]]
        self.lowest: int = saved["lowest"]
        """The lowest and the highest hash of all documents."""
        self.highest: int = saved["highest"]
        with (directory / _HASHES).open("rb") as stream:
            while len(hashes := np.fromfile(stream, _HASH, _CHUNK)):
                self._seen.add(hashes)

    @property
    def documents(self) -> int:
        """How many documents there are on both sides."""
        return sum(counts.train.documents + counts.held_out.documents for counts in self.counts)

    def state(self) -> Mapping[str, Any]:
        """Return the counts, as JSON values."""
        counts = [asdict(counts) for counts in self.counts]
        return {"counts": counts, "lowest": self.lowest, "highest": self.highest}

    def take(self, dataset: int, result: EncodedTexts) -> None:
        """Write the documents of a piece to their sides."""
        counts = self.counts[dataset]
        counts.blank_lines += result.blank_lines
        counts.empty_texts += result.empty_texts
        if not len(result.hashes):
            return
        known = self._seen.add(result.hashes)
        met = int(known.sum())
        counts.duplicates += met
        self._files.append(_HASHES, np.ascontiguousarray(result.hashes[~known] if met else result.hashes, _HASH))
        kept = np.ones(len(known), np.bool_)
        if self._drop:
            kept = ~known
            counts.dropped_duplicates += met
        if kept.any():
            hashes = result.hashes[kept]
            self.lowest = min(self.lowest, int(hashes.min()))
            self.highest = max(self.highest, int(hashes.max()))
        held_out = kept & (result.hashes < np.uint64(self._threshold))
        self._write(TRAIN, counts.train, result, kept & ~held_out)
        self._write(HELD_OUT, counts.held_out, result, held_out)

    def _write(self, name: str, side: SideCounts, result: EncodedTexts, chosen: npt.NDArray[np.bool_]) -> None:
        count = int(chosen.sum())
        if not count:
            return
        tokens, lengths, characters = result.tokens, result.lengths, result.characters
        if count < len(chosen):
            tokens, lengths = tokens[np.repeat(chosen, lengths)], lengths[chosen]
            characters = characters[chosen]
        self._files.append(name, tokens)
        self._files.append(_LENGTHS[name], np.ascontiguousarray(lengths, _LENGTH))
        side.documents += count
        side.tokens += len(tokens)
        side.characters += int(characters.sum())


def write_starts(directory: Path, made: TokenAssembly) -> None:
    """Write where documents start, which follows from their lengths."""
    sides = {TRAIN: [counts.train for counts in made.counts], HELD_OUT: [counts.held_out for counts in made.counts]}
    for name, counts in sides.items():
        dtype, begin = start_dtype(sum(side.tokens for side in counts)), 0
        with (directory / _LENGTHS[name]).open("rb") as lengths, (directory / f"{name}{STARTS}").open("wb") as starts:
            while len(some := np.fromfile(lengths, _LENGTH, _CHUNK)):
                ends = begin + np.cumsum(some, dtype=np.uint64)
                starts.write((ends - some).astype(dtype).data)
                begin = int(ends[-1])
