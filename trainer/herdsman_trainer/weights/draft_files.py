"""Files of a draft that only grow, so that a later attempt can go on where a killed one was known to be.

Every file has the digest of what it holds so far: it is the file's own digest at the end, and on the way it tells
whether the bytes that lie on the disk are those that were written.
"""

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from herdsman.api.job_config import FileDigest
from herdsman_trainer.heartbeat import HEART
from herdsman_trainer.weights.appending import Appender, Writer

CHUNK_BYTES = 8 << 20
Marks = Mapping[str, FileDigest]
"""How far files have come: by name relative to the draft, the bytes written and their SHA-256."""
OnBytes = Callable[[int], None]


class DraftFile:
    """One file; made by DraftFiles.open."""

    def __init__(self, path: Path, writer: Writer, position: int = 0, digest: Any = None) -> None:
        self.path = path
        self.position = position
        """Bytes written so far, in this attempt or before."""
        self._digest = digest or hashlib.sha256()
        path.parent.mkdir(parents=True, exist_ok=True)
        if not position:
            path.unlink(missing_ok=True)
        self._end = Appender(path, position, writer)

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Append bytes; raises Temporary (DiskFull) where the volume has no room for these or earlier ones."""
        values = memoryview(data).cast("B")
        self._digest.update(values)
        self.position += len(values)
        self._end.write(values)

    def flush(self) -> None:
        """Wait until whoever reads the file finds all of it there."""
        self._end.flush()

    def mark(self) -> FileDigest:
        """Return how far the file has come."""
        return FileDigest(bytes=self.position, sha256=self._digest.hexdigest())

    def sync(self) -> None:
        """Wait until what was flushed is on the disk; another thread may go on writing."""
        with HEART.handling(self.position):
            self._end.sync()

    def close(self) -> None:
        """Close it; it must not be used afterwards."""
        self._end.close()


class DraftFiles:
    """The files one sink writes, below the draft of the artifact."""

    def __init__(self, root: Path, marks: Marks | None = None, on_bytes: OnBytes = lambda _: None) -> None:
        """Take up the files that an earlier attempt left, as far as `marks` say; others begin anew.

        Reads every marked byte once; `on_bytes` hears how many. Raises ChangedDraftError where a file does not hold
        what its mark says.
        """
        self.root = root
        self._writer = Writer()
        taken = {name: _checked_digest(root / name, mark, on_bytes) for name, mark in (marks or {}).items()}
        self._open = {
            name: DraftFile(root / name, self._writer, marks[name].bytes, digest)
            for name, digest in taken.items()
            if marks
        }

    def open(self, name: str) -> DraftFile:
        """Return the file of this name relative to the artifact: the same one every time, a new one the first time.

        Its `position` is not 0 where an earlier attempt has already written to it.
        """
        if name not in self._open:
            self._open[name] = DraftFile(self.root / name, self._writer)
        return self._open[name]

    def marks(self) -> dict[str, FileDigest]:
        """Flush the files and return how far each has come; after the last byte these are the digests of the files."""
        for file in self._open.values():
            file.flush()
        return {name: file.mark() for name, file in self._open.items()}

    def sync(self) -> None:
        """Wait until all that the last marks speak of is on the disk."""
        for file in list(self._open.values()):
            file.sync()

    def close(self) -> None:
        """Close all files; what was written since the last marks may be missing from them."""
        self._writer.close()
        for file in self._open.values():
            file.close()
        self._open.clear()


class ChangedDraftError(Exception):
    """A file of the draft does not hold what was written to it."""


def _checked_digest(path: Path, mark: FileDigest, on_bytes: OnBytes) -> Any:
    """Return the running digest of a file's marked part."""
    digest = hashlib.sha256()
    left = mark.bytes
    try:
        with path.open("rb", buffering=0) as stream:
            while left and (chunk := stream.read(min(left, CHUNK_BYTES))):
                digest.update(chunk)
                left -= len(chunk)
                HEART.beat()
                on_bytes(len(chunk))
    except FileNotFoundError:
        raise ChangedDraftError(f"{path} is gone") from None
    if left or digest.hexdigest() != mark.sha256:
        raise ChangedDraftError(f"{path} does not hold the {mark.bytes} bytes that were written to it")
    return digest
