"""Room on a volume, asked for before anything large is written to it."""

import os
from pathlib import Path

from herdsman_trainer.errors import Temporary

ARTIFACT_MARGIN = 1.05
"""What an artifact is given, as a multiple of its weights: configuration, tokenizer and manifest come to them."""
ENLARGE = "Make the workspace's volume larger, or delete what is not needed from it."


def free_bytes(directory: Path) -> int | None:
    """Return what this user may still write on the volume of a directory; None where the file system does not tell."""
    space = os.statvfs(directory)
    return space.f_bavail * space.f_frsize if space.f_blocks else None


def require_space(
    directory: Path, size: int, what: str, *, margin: float = ARTIFACT_MARGIN, hint: str = ENLARGE
) -> None:
    """Raise Temporary (DiskFull) with both figures unless `margin` times `size` bytes are free for `what`."""
    free = free_bytes(directory)
    if free is not None and free < margin * size:
        raise disk_full(directory, what, size=size, needed=round(margin * size), free=free, hint=hint)


def disk_full(
    directory: Path,
    what: str,
    *,
    size: int | None = None,
    needed: int | None = None,
    free: int | None = None,
    hint: str = ENLARGE,
) -> Temporary:
    """Return the error of a volume without room for `what`, with the figures that are known."""
    message = f"The volume has no space left for {what}"
    if size is not None and needed is not None and free is not None:
        message += (
            f" of {size_text(size)}: {size_text(needed)} are needed with a margin, and {size_text(free)} are free"
        )
    return Temporary(f"{message}.", reason="DiskFull", file=str(directory), hint=hint)


def size_text(size: float) -> str:
    """Return a size for people, in units of 1,024."""
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.0f} bytes" if unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"
