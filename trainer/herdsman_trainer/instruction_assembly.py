"""Encoded records put together: samples as slices of one array, and what was counted."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from herdsman_trainer.data.duplicates import SeenHashes
from herdsman_trainer.data.growing import GrowingFiles
from herdsman_trainer.instruction_set import InstructionCounts
from herdsman_trainer.instructions import EncodedSamples
from herdsman_trainer.token_streams import Duplicates

IDS = "ids"
COLUMNS: Mapping[str, np.dtype[Any]] = {
    "lengths": np.dtype("<u4"),
    "source_lengths": np.dtype("<u4"),
    "characters": np.dtype("<u4"),
    "hashes": np.dtype("<u8"),
}
"""Files with one element a sample, beside that of the ids."""
_WHOLE = ".whole"
GROWING = (IDS, *COLUMNS, _WHOLE)
_CHUNK = 1 << 20


class SampleAssembly:
    """Puts samples one behind the other; goes on where the files have been saved."""

    def __init__(self, directory: Path, files: GrowingFiles, datasets: int, duplicates: Duplicates) -> None:
        self._files = files
        self._drop = duplicates == "Drop"
        self._seen = SeenHashes()
        saved = files.state or {"counts": [asdict(InstructionCounts())] * datasets}
        self.counts = [InstructionCounts(**counts) for counts in saved["counts"]]
        with (directory / _WHOLE).open("rb") as stream:
            while len(hashes := np.fromfile(stream, COLUMNS["hashes"], _CHUNK)):
                self._seen.add(hashes)

    def state(self) -> Mapping[str, Any]:
        """Return the counts, as JSON values."""
        return {"counts": [asdict(counts) for counts in self.counts]}

    def take(self, dataset: int, result: EncodedSamples) -> None:
        """Write the samples of a piece."""
        counts = self.counts[dataset] = self.counts[dataset] + result.counts
        if not len(result.whole):
            return
        known = self._seen.add(result.whole)
        met = int(known.sum())
        counts.duplicates += met
        self._files.append(_WHOLE, np.ascontiguousarray(result.whole[~known], COLUMNS["hashes"]))
        kept = ~known if self._drop else np.ones(len(known), np.bool_)
        dropped = len(kept) - int(kept.sum())
        counts.kept -= dropped
        counts.dropped_duplicate += dropped
        counts.truncated -= int(result.truncated[~kept].sum())
        ids = result.ids[np.repeat(kept, result.lengths)] if dropped else result.ids
        self._files.append(IDS, ids)
        for name, dtype in COLUMNS.items():
            self._files.append(name, np.ascontiguousarray(getattr(result, name)[kept], dtype))
        counts.tokens += len(ids)
        counts.text_characters += int(result.characters[kept].sum() + result.prompt_characters[kept].sum())
