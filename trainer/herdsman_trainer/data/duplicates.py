"""Exact duplicates, found by 64-bit hashes in a table that takes 16 to 32 bytes a distinct text."""

from typing import Any

import numpy as np
import numpy.typing as npt

Hashes = npt.NDArray[np.uint64]

_SMALLEST = 1 << 12
_EMPTY = np.uint64(0)
_INSTEAD_OF_EMPTY = np.uint64(0x9E3779B97F4A7C15)
"""What a hash of zero, which marks an empty place, is taken for."""
_SPREAD = np.uint64(0x9E3779B97F4A7C15)
"""An odd factor, so that hashes of any distribution are spread over the table."""


class SeenHashes:
    """The hashes that have been met: a table with open addressing, filled at most by half.

    Two texts with the same hash count as the same: among a thousand million texts, a false duplicate is met once in
    forty corpora.
    """

    def __init__(self) -> None:
        self._table: Hashes = np.zeros(_SMALLEST, np.uint64)
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def add(self, hashes: Hashes) -> npt.NDArray[np.bool_]:
        """Take note of hashes and return which of them were met before, here or earlier in `hashes`."""
        hashes = np.where(hashes == _EMPTY, _INSTEAD_OF_EMPTY, hashes)
        distinct, first = np.unique(hashes, return_index=True)
        known = np.ones(len(hashes), np.bool_)
        known[first] = False
        self._make_room(len(distinct))
        known[first] = self._insert(distinct)
        return known

    def _make_room(self, more: int) -> None:
        size = len(self._table)
        if 2 * (self._count + more) <= size:
            return
        while 2 * (self._count + more) > size:
            size *= 2
        old = self._table[self._table != _EMPTY]
        self._table = np.zeros(size, np.uint64)
        self._count = 0
        for begin in range(0, len(old), _SMALLEST << 8):
            self._insert(old[begin : begin + (_SMALLEST << 8)])

    def _insert(self, hashes: Hashes) -> npt.NDArray[np.bool_]:
        """Put distinct hashes into the table and return which of them were there."""
        known = np.zeros(len(hashes), np.bool_)
        table, mask = self._table, np.uint64(len(self._table) - 1)
        shift = np.uint64(64 - (len(table) - 1).bit_length())
        places = (hashes * _SPREAD) >> shift
        open_: npt.NDArray[Any] = np.arange(len(hashes))
        while len(open_):
            at, wanted = places[open_], hashes[open_]
            free = open_[table[at] == _EMPTY]
            table[places[free]] = hashes[free]  # of several at one place, one is written
            found = table[at]
            settled = found == wanted
            written = np.zeros(len(hashes), np.bool_)
            written[free] = True
            known[open_[settled]] = ~written[open_[settled]]
            open_ = open_[~settled]
            places[open_] = (places[open_] + np.uint64(1)) & mask
        self._count += int(len(hashes) - known.sum())
        return known
