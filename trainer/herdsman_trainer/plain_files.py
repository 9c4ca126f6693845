"""Small files written through to the disk, and digests of files of any size; nothing here knows of tensors."""

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

from herdsman.api.job_config import FileDigest
from herdsman_trainer.heartbeat import HEART

CHUNK_BYTES = 8 * 1024**2


def digest_file(path: Path, on_bytes: Callable[[int], None] = lambda _: None) -> FileDigest:
    """Read a file once and return its size and SHA-256; `on_bytes` hears how much was read since the last call."""
    digest = hashlib.sha256()
    size = 0
    with path.open("rb") as stream:
        while chunk := stream.read(CHUNK_BYTES):
            digest.update(chunk)
            size += len(chunk)
            HEART.beat()
            on_bytes(len(chunk))
    return FileDigest(bytes=size, sha256=digest.hexdigest())


def write_file(path: Path, data: bytes) -> FileDigest:
    """Write and fsync a small file; returns its size and digest."""
    with path.open("wb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())
    return FileDigest(bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
