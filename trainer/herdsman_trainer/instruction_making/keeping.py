"""The records that stay: clean, and unlike all that came before them."""

import json
from array import array
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from herdsman.api.v1alpha1.instruction_set import Cleaning
from herdsman_trainer.heartbeat import HEART
from herdsman_trainer.instruction_making.cleaning import Cleaner
from herdsman_trainer.instruction_making.near_duplicates import NearDuplicates
from herdsman_trainer.instruction_making.records import AlpacaRecord, Dropped
from herdsman_trainer.instruction_making.rouge import InstructionPool

GIVEN_ROUGE, GENERATED_ROUGE = 100, 70
"""clean.rougePercent, unless it is set."""


class Keeper:
    """Takes records one after the other and keeps the good ones in a file; memory is 2.5 kB a record.

    What becomes of a record depends on it and on those that were taken before, in their order, and on nothing else.
    """

    def __init__(self, path: Path, rules: Cleaning, language: str, *, generates: bool) -> None:
        self._file = path.open("w+b")
        self._cleaner = Cleaner(rules, language)
        given = rules.rouge_percent
        self._rouge = {False: given or GIVEN_ROUGE, True: given or GENERATED_ROUGE}
        needs_pool = generates or self._rouge[False] < 100
        self._pool = InstructionPool() if needs_pool else None
        self._near = NearDuplicates(rules.minhash_percent, self.record)
        self._offsets = array("Q")
        self._end = 0
        self.read = 0
        """Records that were taken."""
        self.dropped: Counter[Dropped] = Counter()
        """How many were dropped, by reason."""
        self.parts = array("H")
        """Of each record that stays, the part that it comes from."""
        self.kinds: list[str] = []
        """Of each record that stays, the kind of task that was said of it."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def __len__(self) -> int:
        return len(self._offsets)

    def show(self, instructions: Iterable[str]) -> None:
        """Take note of instructions that are in no record, such as examples: what resembles them is dropped."""
        for instruction in instructions:
            if self._pool is not None:
                self._pool.add(instruction)

    def take(self, record: AlpacaRecord | Dropped, part: int, *, generated: bool = False) -> bool:
        """Keep a record of a part, or count why not; a record that was dropped already is only counted."""
        HEART.beat()
        self.read += 1
        found = record if isinstance(record, Dropped) else self._judged(record, generated=generated)
        if isinstance(found, Dropped):
            self.dropped[found] += 1
            return False
        self._keep(found, part)
        return True

    def record(self, index: int) -> AlpacaRecord:
        """Return a record that was kept."""
        members = json.loads(self.line(index))
        return AlpacaRecord(members["instruction"], members["input"], members["output"])

    def line(self, index: int) -> bytes:
        """Return a record that was kept as its line of JSON."""
        self._file.seek(self._offsets[index])
        return self._file.readline()

    def _judged(self, record: AlpacaRecord, *, generated: bool) -> AlpacaRecord | Dropped:
        clean = self._cleaner.clean(record)
        if isinstance(clean, Dropped):
            return clean
        if (known := self._near.find(clean)) is not None:
            return known
        if self._pool is not None and self._pool.resembles(clean.instruction, self._rouge[generated]):
            return Dropped.SIMILAR_INSTRUCTION
        return clean

    def _keep(self, record: AlpacaRecord, part: int) -> None:
        line = record.to_line()
        self._file.seek(self._end)
        self._file.write(line)
        self._offsets.append(self._end)
        self._end += len(line)
        self.parts.append(part)
        self.kinds.append(record.kind)
        self._near.add(len(self._offsets) - 1, record)
        if self._pool is not None:
            self._pool.add(record.instruction)


def counted(dropped: Counter[Dropped]) -> str:
    """Return what was dropped in words, the most frequent reason first."""
    named = [f"{number} {reason.value.replace('_', ' ')}" for reason, number in dropped.most_common() if number]
    return ", ".join(named) or "none dropped"


def kinds_of(kinds: Sequence[str], chosen: Iterable[int]) -> Counter[str]:
    """Return how many of the chosen records are of each kind of task, as far as it was said."""
    return Counter(kinds[index] for index in chosen if kinds[index])
