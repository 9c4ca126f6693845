"""Duplicates and near duplicates of whole records, found by MinHash and confirmed by counting."""

from collections.abc import Callable
from hashlib import blake2b

from rensa import RMinHash, RMinHashLSH

from herdsman_trainer.instruction_making.records import AlpacaRecord, Dropped

PERMUTATIONS = 128
SHINGLE = 3
"""Characters of a piece."""
_MANY_ROWS, _FEW_ROWS, _CLOSE = 8, 4, 80
"""Rows of a band. With 16 bands of 8 rows a pair of Jaccard similarity 0.85 is found with 99.4 % probability,
1 - (1 - 0.85^8)^16; below 80 % 32 bands of 4 rows are needed for that."""
_SEED = 1


class NearDuplicates:
    """The records that are kept so far, by their MinHash.

    Which candidates MinHash finds depends on its permutations, and they are the same everywhere; whether a candidate is
    a near duplicate is decided by the Jaccard similarity of the pieces themselves.
    """

    def __init__(self, percent: int, record_at: Callable[[int], AlpacaRecord]) -> None:
        self._percent = percent
        self._record_at = record_at
        self._exact: set[bytes] = set()
        rows = _MANY_ROWS if percent >= _CLOSE else _FEW_ROWS
        self._index = RMinHashLSH(percent / 100, PERMUTATIONS, PERMUTATIONS // rows) if percent < 100 else None

    def find(self, record: AlpacaRecord) -> Dropped | None:
        """Return what it is a duplicate of, in a word; None where it is new."""
        letters = _letters(record)
        if _digest(letters) in self._exact:
            return Dropped.DUPLICATE
        pieces = _pieces(letters)
        if self._index is None or not pieces:
            return None
        for index in sorted(self._index.query(_minhash(pieces))):
            others = _pieces(_letters(self._record_at(index)))
            if 100 * len(pieces & others) >= self._percent * len(pieces | others):
                return Dropped.NEAR_DUPLICATE
        return None

    def add(self, index: int, record: AlpacaRecord) -> None:
        """Take note of a record that is kept, under its number."""
        letters = _letters(record)
        self._exact.add(_digest(letters))
        if self._index is not None and (pieces := _pieces(letters)):
            self._index.insert(index, _minhash(pieces))


def similarity(one: AlpacaRecord, other: AlpacaRecord) -> float:
    """Return the Jaccard similarity of the three-character pieces of two records."""
    mine, theirs = _pieces(_letters(one)), _pieces(_letters(other))
    return len(mine & theirs) / len(mine | theirs) if mine | theirs else 1.0


def _letters(record: AlpacaRecord) -> str:
    """Return the letters and digits of a record; its parts stay apart, which are questions and answers."""
    parts = (record.instruction, record.input, record.output)
    return "\n".join("".join(filter(str.isalnum, part.casefold())) for part in parts)


def _pieces(letters: str) -> set[str]:
    return {letters[at : at + SHINGLE] for at in range(max(1, len(letters) - SHINGLE + 1))}


def _digest(letters: str) -> bytes:
    return blake2b(letters.encode(), digest_size=12).digest()


def _minhash(pieces: set[str]) -> RMinHash:
    found = RMinHash(PERMUTATIONS, _SEED)
    found.update(sorted(pieces))
    return found
