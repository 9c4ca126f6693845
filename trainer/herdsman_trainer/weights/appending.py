"""Appends to files past the page cache, in large pieces, from a thread of its own.

Through the page cache every byte is copied into pages that have to be found first and given back later, which costs a
core about as much as the arithmetic of a merge, and counts against the memory limit of a container. Where a file
system cannot do without the page cache, the same pieces go through it.
"""

import errno
import os
from collections import deque
from collections.abc import Callable
from mmap import mmap
from pathlib import Path

import numpy

from herdsman_trainer.free_space import disk_full
from herdsman_trainer.heartbeat import HEART
from herdsman_trainer.weights.lanes import Lane

PIECE_BYTES = 4 << 20
"""What is written in one call; a multiple of ALIGNMENT."""
ALIGNMENT = 4096
"""Of places and lengths in a file that are written past the page cache."""
AHEAD = 2
"""Full pieces that wait for the disk or are on their way to it."""


class Writer:
    """The thread that writes the pieces of several files, and the memory of the pieces. Close it after use."""

    def __init__(self) -> None:
        self._lane = Lane("write", AHEAD)
        self._free: deque[mmap] = deque()

    def piece(self) -> mmap:
        """Return memory for a piece, aligned as the disk wants it."""
        try:
            return self._free.pop()
        except IndexError:
            return mmap(-1, PIECE_BYTES)

    def submit(self, write: Callable[[memoryview], None], piece: mmap, size: int) -> None:
        """Let the first bytes of a piece be written, in order, and its memory be used again.

        Waits while too much is on its way; raises what an earlier write failed with.
        """
        self._lane.submit(self._write, write, piece, size)

    def wait(self) -> None:
        """Wait until all of it is written; raises what that failed with."""
        self._lane.drain()

    def close(self) -> None:
        """End the thread."""
        self._lane.close()

    def _write(self, write: Callable[[memoryview], None], piece: mmap, size: int) -> None:
        with memoryview(piece) as whole, whole[:size] as part:
            write(part)
        self._free.append(piece)
        HEART.beat()


class Appender:
    """The end of one file. All of it is called by one thread, but for `sync`."""

    def __init__(self, path: Path, position: int, writer: Writer) -> None:
        """Cut the file at a position, which its end must have reached, and go on from there."""
        self._path, self._writer = path, writer
        self._cached = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        self._direct = _past_the_cache(path)
        os.ftruncate(self._cached, position)
        self._start = position - position % ALIGNMENT
        """Where in the file the piece begins."""
        self._filled = position - self._start
        self._rest = os.pread(self._cached, self._filled, self._start)
        """What stands before the position in its block on the disk, while there is no piece."""
        self._piece: mmap | None = None

    def write(self, data: memoryview) -> None:
        """Append bytes, some of which reach the file later; raises Temporary (DiskFull) where there is no room."""
        values = numpy.frombuffer(data, numpy.uint8)
        while len(values):
            if self._piece is None:
                self._piece = self._writer.piece()
                self._piece[: self._filled] = self._rest
            count = min(len(values), PIECE_BYTES - self._filled)
            target = numpy.frombuffer(self._piece, numpy.uint8, count, self._filled)
            numpy.copyto(target, values[:count])  # leaves the interpreter alone, which assigning to a slice does not
            values = values[count:]
            self._filled += count
            if self._filled == PIECE_BYTES:
                self._hand_over(self._piece, PIECE_BYTES)

    def flush(self) -> None:
        """Wait until the file has all that was appended, as far as others that read it can tell."""
        if self._piece is not None:
            whole = self._filled - self._filled % ALIGNMENT
            rest = self._piece[whole : self._filled]
            self._hand_over(self._piece, whole)
            self._rest, self._filled = rest, len(rest)
        self._writer.wait()
        self._put(self._cached, memoryview(self._rest), self._start)

    def sync(self) -> None:
        """Wait until what was flushed is on the disk."""
        os.fsync(self._cached)

    def close(self) -> None:
        """Close the file; what was not flushed may be missing from it."""
        os.close(self._cached)
        if self._direct is not None:
            os.close(self._direct)

    def _hand_over(self, piece: mmap, size: int) -> None:
        start = self._start
        self._writer.submit(lambda data: self._put_piece(data, start), piece, size)
        self._start, self._filled, self._rest, self._piece = start + size, 0, b"", None

    def _put_piece(self, data: memoryview, place: int) -> None:
        if self._direct is not None:
            try:
                self._put(self._direct, data, place)
            except OSError as error:
                if error.errno != errno.EINVAL:  # it was opened, and yet this file system wants it otherwise
                    raise
            else:
                return
        self._put(self._cached, data, place)

    def _put(self, descriptor: int, data: memoryview, place: int) -> None:
        try:
            while data:
                count = os.pwrite(descriptor, data, place)
                data, place = data[count:], place + count
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise disk_full(self._path, "what is written") from error


def _past_the_cache(path: Path) -> int | None:
    """Open a file for writing past the page cache; None where the file system cannot."""
    flag = getattr(os, "O_DIRECT", None)
    try:
        return None if flag is None else os.open(path, os.O_WRONLY | os.O_CLOEXEC | flag)
    except OSError:
        return None
