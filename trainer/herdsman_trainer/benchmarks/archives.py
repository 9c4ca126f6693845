"""The archives that benchmarks are published in: their files of questions are unpacked, and nothing else of them."""

import shutil
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO

from herdsman_trainer.errors import BadInput
from herdsman_trainer.heartbeat import HEART

ARCHIVES = (".zip", ".tar", ".tgz", ".gz")
MOST_BYTES = 1 << 30
"""What is unpacked at most; the largest of the three benchmarks has 170 MB."""
DEEPEST = 3
"""Folders around the questions' own, such as `data` in MMLU's archive."""


def opened_questions(source: Path, folder: str, suffixes: tuple[str, ...], scratch: Path) -> Path:
    """Return the directory that has the folder `folder` (val or test): in the source, or unpacked from an archive.

    The source is a directory, or an archive, or a directory with one archive; files are unpacked into `scratch`. Where
    there is none, the source is returned as it is, for others to say what is missing.
    """
    archive = _archive(source)
    if archive is None or (source.is_dir() and _inside(source, folder) is not None):
        return _inside(source, folder) or source
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    _unpack(archive, suffixes, scratch)
    return _inside(scratch, folder) or scratch


def _archive(source: Path) -> Path | None:
    found = [source] if source.is_file() else sorted(path for path in source.iterdir() if path.is_file())
    archives = [path for path in found if path.suffix.lower() in ARCHIVES]
    return archives[0] if len(archives) == 1 else None


def _inside(directory: Path, folder: str) -> Path | None:
    """Return the outermost directory that has the folder, at most DEEPEST below."""
    level = [directory] if directory.is_dir() else []
    for _ in range(DEEPEST + 1):
        for each in level:
            if (each / folder).is_dir():
                return each
        below = (entry for each in level for entry in sorted(each.iterdir()) if entry.is_dir())
        level = [entry for entry in below if not entry.is_symlink() and not entry.name.startswith((".", "__"))]
    return None


def _unpack(archive: Path, suffixes: tuple[str, ...], target: Path) -> None:
    left = MOST_BYTES
    try:
        for name, stream in _members(archive):
            HEART.beat()
            parts = PurePosixPath(name).parts
            if not name.lower().endswith(suffixes) or any(part in ("..", "/") or part[0] in "._" for part in parts):
                continue
            path = target.joinpath(*parts)
            path.parent.mkdir(parents=True, exist_ok=True)
            data = stream.read(left + 1)
            left -= len(data)
            if left < 0:
                hint = "It is no benchmark, or it was made to fill the disk: unpack what is needed of it yourself."
                raise BadInput(
                    f"The archive unpacks to more than {MOST_BYTES >> 20} MiB.", file=str(archive), hint=hint
                )
            path.write_bytes(data)
    except (zipfile.BadZipFile, tarfile.TarError, EOFError, RuntimeError, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        hint = "Download it again, or unpack it yourself; archives with a password are not read."
        raise BadInput(f"The archive cannot be read: {error}.", file=str(archive), hint=hint) from error


def _members(archive: Path) -> Iterator[tuple[str, IO[bytes]]]:
    """Yield the plain files of an archive, with their names."""
    if archive.suffix.lower() == ".zip":
        with zipfile.ZipFile(archive) as opened:
            for member in opened.infolist():
                if not member.is_dir():
                    with opened.open(member) as stream:
                        yield member.filename, stream
        return
    with tarfile.open(archive) as packed:
        for entry in packed:
            stream_of = packed.extractfile(entry) if entry.isreg() else None
            if stream_of is not None:
                with stream_of:
                    yield entry.name, stream_of
