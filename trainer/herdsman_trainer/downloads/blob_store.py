"""Downloaded files by their content, on the volume that the import writes: fetched once, linked into every import.

    <claim>/.herdsman/downloads/sha256/<digest>   whole, checked files, read-only
                                partial/<key>     files that are still coming, each with one writer
                                known/<key>.json  what names without a SHA-256 stood for: listings, ETags, git blobs
                                imports/<uid>     the digests that an import uses

No path of a spec may begin with a dot, so nothing of a user's ever lies there. All of it may be deleted while no import
runs: it is then downloaded again.
"""

import errno
import fcntl
import json
import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from herdsman_trainer.content_cache import content_key, file_sha256
from herdsman_trainer.downloads.partial import Partial
from herdsman_trainer.errors import BadInput
from herdsman_trainer.heartbeat import HEART

STORE = ".herdsman/downloads"
STAMP = 1
"""The time of the last change, in seconds, that a blob is given: whoever changes its bytes changes that too."""
ABANDONED_SECONDS = 30 * 86400.0
"""A partial file that nobody has touched for so long is removed."""
_NO_LINKS = (errno.EXDEV, errno.EPERM, errno.EACCES, errno.EMLINK, errno.ENOSYS, errno.EOPNOTSUPP)
_CHUNK_BYTES = 8 * 2**20
_log = logging.getLogger(__name__)


class BlobStore:
    """The store of one claim; several imports may use it at once."""

    def __init__(self, claim_root: Path) -> None:
        self.root = claim_root / STORE
        self._blobs, self._partials = self.root / "sha256", self.root / "partial"
        self._known, self._imports = self.root / "known", self.root / "imports"
        for directory in (self._blobs, self._partials, self._known, self._imports):
            directory.mkdir(parents=True, exist_ok=True)
            if not directory.resolve().is_relative_to(claim_root.resolve()):
                hint = "Remove the link, so that downloads stay on their volume."
                raise BadInput("The directory of downloads leads outside its volume.", file=str(directory), hint=hint)
        self._sweep()

    def blob(self, sha256: str) -> Path:
        """Return where the file with this digest is, or would be."""
        return self._blobs / sha256

    def holds(self, sha256: str, size: int | None = None, *, read: bool = False) -> bool:
        """Whether the file is here and as it was checked; it is read again where asked, or where it looks changed.

        A file that is no longer what its name says is removed, so that it is downloaded again.
        """
        path = self.blob(sha256)
        try:
            found = path.stat()
        except FileNotFoundError:
            return False
        fits = size in (None, found.st_size)
        if fits and not read and int(found.st_mtime) == STAMP:
            return True
        if fits and file_sha256(path) == sha256:
            _seal(path)
            return True
        _log.warning("The download %s was changed since it was checked and is fetched again.", path)
        path.unlink(missing_ok=True)
        return False

    def recall(self, identity: Mapping[str, Any]) -> Any | None:
        """Return what was remembered under an identity, or None."""
        try:
            record = json.loads((self._known / f"{content_key(identity)}.json").read_bytes())
            return record["value"] if record["identity"] == dict(identity) else None
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def remember(self, identity: Mapping[str, Any], value: Any) -> None:
        """Put on record what an identity stands for."""
        record = {"identity": dict(identity), "value": value}
        _replace(self._known / f"{content_key(identity)}.json", json.dumps(record, indent=1).encode())

    @contextmanager
    def writing(self, key: str, wait: Callable[[], None]) -> Iterator[Partial]:
        """Open the partial file of this key as its only writer; calls `wait` again and again while another one is."""
        path = self._partials / key
        while True:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(descriptor)
                wait()
                continue
            except OSError as error:  # two writers write the same bytes to the same places
                _log.warning("The volume has no locks (%s): downloads of the same file may disturb each other.", error)
            if _is(path, descriptor):
                break
            os.close(descriptor)  # its writer has just finished it
        partial = Partial(path, descriptor)
        try:
            yield partial
        finally:
            partial.close()

    def partial_bytes(self, key: str) -> int:
        """Return how much of a file earlier attempts have left."""
        try:
            return (self._partials / key).stat().st_size
        except FileNotFoundError:
            return 0

    def add(self, partial: Partial) -> str:
        """Make a complete partial file durable, give it its name, and return its digest."""
        digest = partial.sha256
        partial.flush()
        _seal(partial.path)
        partial.path.replace(self.blob(digest))
        partial.forget_etag()
        _flush_directory(self._blobs)
        return digest

    def place(self, sha256: str, target: Path) -> None:
        """Hard-link a file to where an import reads it; it is copied where the file system has no links."""
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(self.blob(sha256), target)
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            _copy(self.blob(sha256), target)

    def use(self, uid: str, digests: set[str]) -> None:
        """Put on record which files an import uses."""
        _replace(self._imports / uid, "".join(f"{digest}\n" for digest in sorted(digests)).encode())

    def release(self, uid: str) -> int:
        """Remove the files that this import alone used; returns how many bytes they had."""
        used = self._used(self._imports / uid)
        (self._imports / uid).unlink(missing_ok=True)
        others = {digest for path in self._imports.iterdir() for digest in self._used(path)}
        freed = 0
        for path in map(self.blob, used - others):
            with suppress(FileNotFoundError):
                freed += path.stat().st_size
                path.unlink()
        return freed

    @staticmethod
    def _used(path: Path) -> set[str]:
        try:
            return set(path.read_text(encoding="ascii").split())
        except OSError:
            return set()

    def _sweep(self) -> None:
        """Remove what nobody has gone on with for long."""
        for path in self._partials.iterdir():
            with suppress(OSError):
                if time.time() - path.stat().st_mtime < ABANDONED_SECONDS:
                    continue
                with path.open("rb") as file:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    path.unlink()


def _is(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _seal(path: Path) -> None:
    path.chmod(0o444)
    os.utime(path, (STAMP, STAMP))


def _copy(source: Path, target: Path) -> None:
    with source.open("rb") as reader, target.open("wb") as writer:
        while chunk := reader.read(_CHUNK_BYTES):
            writer.write(chunk)
            HEART.beat()
    target.chmod(0o444)


def _replace(path: Path, content: bytes) -> None:
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.write_bytes(content)
    draft.replace(path)


def _flush_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
