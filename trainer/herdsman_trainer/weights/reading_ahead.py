"""Lets the system read what is needed next while what is there is computed.

A mapped file is else read where its values are used: whoever computes waits for the disk, for a little at a time, and
takes a page fault for every few pages that were not there (docs/decisions/0025).
"""

import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

WINDOW_BYTES = 64 << 20
"""How far is read ahead of what is used."""
CHUNK_BYTES = 8 << 20
"""What is asked for at once."""


@dataclass(frozen=True)
class Place:
    """Where the values of a tensor lie."""

    path: Path
    start: int
    nbytes: int


class ReadingAhead:
    """Walks over places, in order, ahead of whoever uses them. Close it after use."""

    def __init__(self, places: Iterable[Place]) -> None:
        self._chunks = _chunks(places)
        self._asked = self._used = 0
        self._path: Path | None = None
        self._descriptor = -1

    def wanted(self, used: int) -> bool:
        """Take note that so many more bytes were used, and return whether `read` has something to do."""
        self._used += used
        return self._asked < self._used + WINDOW_BYTES

    def read(self) -> None:
        """Ask for what lies in the window; returns when most of it is on its way."""
        while self._asked < self._used + WINDOW_BYTES and (chunk := next(self._chunks, None)):
            self._asked += chunk.nbytes
            with suppress(OSError):  # whoever reads the values says what is wrong
                if chunk.path != self._path:
                    self.close()
                    self._descriptor = os.open(chunk.path, os.O_RDONLY | os.O_CLOEXEC)
                    self._path = chunk.path
                os.posix_fadvise(self._descriptor, chunk.start, chunk.nbytes, os.POSIX_FADV_WILLNEED)

    def close(self) -> None:
        """Close the file that was read last."""
        if self._path is not None:
            os.close(self._descriptor)
        self._path = None


def _chunks(places: Iterable[Place]) -> Iterator[Place]:
    if not hasattr(os, "posix_fadvise"):
        return
    for place in places:
        for offset in range(0, place.nbytes, CHUNK_BYTES):
            yield Place(place.path, place.start + offset, min(CHUNK_BYTES, place.nbytes - offset))
