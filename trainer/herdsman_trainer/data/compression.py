"""Files as the bytes they hold: plain, or packed with gzip, bzip2, xz or Zstandard; always as a stream."""

import bz2
import gzip
import lzma
import sys
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, cast

from herdsman_trainer.errors import BadInput
from herdsman_trainer.heartbeat import HEART

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

COMPRESSIONS = (".gz", ".bz2", ".xz", ".zst")
CHUNK_BYTES = 2**20
_DAMAGED = (EOFError, gzip.BadGzipFile, zlib.error, lzma.LZMAError, zstd.ZstdError)
"""What the four say of bytes that are no archive of theirs, or end too early; bzip2 says OSError without a number."""


def unpacked_name(name: str) -> str:
    """Return the name without the suffix of a compression: zh.txt for zh.txt.gz."""
    packed = next((suffix for suffix in COMPRESSIONS if name.lower().endswith(suffix)), "")
    return name[: len(name) - len(packed)]


def is_packed(path: Path) -> bool:
    """Whether the name says that the file is compressed."""
    return path.suffix.lower() in COMPRESSIONS


def _unheard(_position: int) -> None:
    """Take no notice."""


def read_chunks(path: Path, start: int = 0, on_read: Callable[[int], None] = _unheard) -> Iterator[bytes]:
    """Yield what the file holds, unpacked, from the byte `start` on, in chunks of about a mebibyte.

    However much a small archive holds, memory is a few chunks. `on_read` hears how much of the file itself is read.
    BadInput where the file may not be read, or is no archive of the kind that its name says, or is cut.
    """
    with _raw(path) as raw, _unpacking(path, raw) as file:
        skipped = 0
        if not is_packed(path):
            file.seek(start)
            skipped = start
        while True:
            try:
                chunk = file.read(CHUNK_BYTES)
            except _DAMAGED as error:
                raise _damaged(path, error) from error
            except OSError as error:
                if error.errno is not None:
                    raise
                raise _damaged(path, error) from error
            HEART.beat()
            on_read(raw.tell())
            if not chunk:
                return
            wanted = chunk[max(0, start - skipped) :]
            skipped += len(chunk)
            if wanted:
                yield wanted


def _raw(path: Path) -> BinaryIO:
    try:
        return path.open("rb", buffering=0)
    except PermissionError as error:
        raise BadInput(
            "The file may not be read.",
            file=str(path),
            hint="Give the user of the job read permission; on a volume, check the owner and the group.",
        ) from error


def _unpacking(path: Path, raw: BinaryIO) -> BinaryIO:
    match path.suffix.lower():
        case ".gz":
            return cast("BinaryIO", gzip.open(raw, "rb"))
        case ".bz2":
            return cast("BinaryIO", bz2.open(raw, "rb"))
        case ".xz":
            return cast("BinaryIO", lzma.open(raw, "rb"))
        case ".zst":
            return cast("BinaryIO", zstd.open(raw, "rb"))
    return raw


def _damaged(path: Path, error: Exception) -> BadInput:
    kinds = {".gz": "gzip", ".bz2": "bzip2", ".xz": "xz", ".zst": "zstd"}
    kind = kinds[path.suffix.lower()]
    if "too much memory" in str(error):
        hint = f"Pack it again with a window of 128 MiB at most: {kind} -d, and then without --long or --ultra."
        return BadInput("Unpacking the file takes too much memory.", file=str(path), hint=hint)
    cut = isinstance(error, EOFError) or "end-of-stream" in str(error)
    what = f"{kind} archive is cut: it ends too early" if cut else f"file is no sound {kind} archive ({error})"
    return BadInput(f"The {what}.", file=str(path), hint=f"Copy the file again; `{kind} -t` tells whether it is sound.")
