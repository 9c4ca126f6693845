"""A file that is still coming: what has arrived of it, and its digest so far."""

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

from herdsman_trainer.heartbeat import HEART

_CHUNK_BYTES = 4 * 2**20
_FLUSH_BYTES = 2**29
"""So much is lost at most when a machine dies."""


class Partial:
    """The open partial file at `path`, whose lock its descriptor holds."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path = path
        self.written = os.fstat(descriptor).st_size
        self.furthest = self.written
        """The most that was ever there: only what goes beyond it is progress."""
        self.mixed = self.written > 0
        """Whether its bytes came with more than one answer, so that they may be of two versions."""
        self._file = os.fdopen(descriptor, "r+b", buffering=0)
        self._digest = hashlib.sha256()
        self._flushed = self.written

    @property
    def sha256(self) -> str:
        """The digest of what is there, in hexadecimal."""
        return self._digest.hexdigest()

    @property
    def etag(self) -> str | None:
        """What the server called the version that these bytes are of."""
        try:
            return self._etag_file.read_text(encoding="utf-8") if self.written else None
        except (OSError, UnicodeDecodeError):
            return None

    def note_etag(self, etag: str | None) -> None:
        """Keep the name of the version beside the bytes, for the attempt that goes on with them."""
        if etag is None:
            self.forget_etag()
        elif etag != self.etag or not self.written:
            self._etag_file.write_text(etag, encoding="utf-8")

    def forget_etag(self) -> None:
        """Remove the name of the version."""
        self._etag_file.unlink(missing_ok=True)

    def load(self, on_bytes: Callable[[int], None]) -> None:
        """Take the digest of what earlier attempts have left; `on_bytes` hears how far that is."""
        self._digest = hashlib.sha256()
        self._file.seek(0)
        read = 0
        while chunk := self._file.read(_CHUNK_BYTES):
            self._digest.update(chunk)
            read += len(chunk)
            on_bytes(read)
        self.written = read

    def append(self, chunk: bytes) -> None:
        """Write the next bytes."""
        view = memoryview(chunk)
        while view:
            count = self._file.write(view) or 0
            self._digest.update(view[:count])
            self.written += count
            view = view[count:]
        if self.written - self._flushed >= _FLUSH_BYTES:
            self.flush()

    def restart(self) -> None:
        """Throw away what is there."""
        self._file.seek(0)
        self._file.truncate()
        self._digest = hashlib.sha256()
        self.written = self._flushed = 0
        self.mixed = False

    def head(self, size: int) -> bytes:
        """Return its first bytes."""
        return os.pread(self._file.fileno(), size, 0)

    def git_oid(self) -> str:
        """Return the SHA-1 that git gives a file with these bytes."""
        digest = hashlib.sha1(f"blob {self.written}\0".encode(), usedforsecurity=False)
        self._file.seek(0)
        while chunk := self._file.read(_CHUNK_BYTES):
            digest.update(chunk)
            HEART.beat()
        return digest.hexdigest()

    def flush(self) -> None:
        """Make the bytes durable."""
        with HEART.handling(self.written - self._flushed):
            os.fsync(self._file.fileno())
        self._flushed = self.written

    def discard(self) -> None:
        """Remove the file: no bytes of it are of use."""
        self.path.unlink(missing_ok=True)
        self.forget_etag()

    def close(self) -> None:
        """Close the file; its lock goes with it. One without a byte is removed."""
        if (
            not self.written
            and self.path.exists()
            and os.path.samestat(os.fstat(self._file.fileno()), self.path.stat())
        ):
            self.discard()
        self._file.close()

    @property
    def _etag_file(self) -> Path:
        return self.path.with_name(f"{self.path.name}.etag")
