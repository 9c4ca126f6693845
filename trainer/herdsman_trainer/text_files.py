"""Text files of a dataset directory: found in a fixed order, read as UTF-8 with bounded memory."""

import codecs
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from herdsman.api.job_config import MANIFEST_NAME
from herdsman_trainer.data.compression import COMPRESSIONS, read_chunks, unpacked_name
from herdsman_trainer.errors import BadInput

MAX_RECORD_BYTES = 16 * 2**20
"""The longest line, document or record that is read; it bounds the memory of everything that reads text."""

BYTE_ORDER_MARK = codecs.BOM_UTF8
_UTF16_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_CONVERT = "Convert the file to UTF-8, for example: iconv -f GB18030 -t UTF-8 OLD > NEW."


def find_files(source: Path, suffixes: tuple[str, ...]) -> list[Path]:
    """Return the files under `source` that end in one of `suffixes`, sorted by their name relative to it.

    A suffix of a compression may follow. Sub-directories are searched; hidden files and directories (a leading dot) and
    an artifact's manifest are not. A symbolic link may point anywhere inside `source`, so that a mounted ConfigMap
    works, and is refused where it leads out. `source` may also be one file. Raises BadInput when there is nothing to
    read.
    """
    wanted = wanted_files(suffixes)
    if source.is_file():
        if not ends_in(source.name, suffixes):
            raise BadInput(f"The dataset is not a {wanted} file.", file=str(source), hint=f"Name a {wanted} file.")
        _refuse_packed_parquet(source)
        return [source]
    if not source.is_dir():
        raise BadInput(
            "The dataset directory does not exist.",
            file=str(source),
            hint="Check the dataset's claim and path, and that the files were copied to the volume.",
        )
    found: list[Path] = []
    _search(source, source.resolve(), suffixes, set(), found)
    if not found:
        there = sorted(entry.name for entry in source.iterdir() if not entry.name.startswith("."))
        holds = f"it holds {', '.join(there[:5])}{' and more' if len(there) > 5 else ''}" if there else "it is empty"
        raise BadInput(
            f"The dataset directory has no {wanted} file; {holds}.",
            file=str(source),
            hint=f"Put {wanted} files there (text may be packed: {', '.join(COMPRESSIONS)}), or correct the path.",
        )
    return sorted(found, key=lambda path: relative_name(path, source))


def relative_name(path: Path, source: Path) -> str:
    """Return the POSIX name of `path` relative to the dataset `source`, which may be the file itself."""
    return path.name if path == source else path.relative_to(source).as_posix()


def file_stamps(files: Sequence[Path]) -> list[tuple[int, int, int]]:
    """Return (size, time of modification in nanoseconds, inode) of each file, to notice a change while reading."""
    return [(stat.st_size, stat.st_mtime_ns, stat.st_ino) for stat in (path.stat() for path in files)]


def wanted_files(suffixes: tuple[str, ...]) -> str:
    """Return the suffixes as a sentence names them: *.txt, *.jsonl or *.parquet."""
    *first, last = [f"*{suffix}" for suffix in suffixes]
    return f"{', '.join(first)} or {last}" if first else last


def ends_in(name: str, suffixes: tuple[str, ...]) -> bool:
    """Whether a file's name, without the suffix of a compression, ends in one of `suffixes`."""
    return unpacked_name(name).lower().endswith(suffixes)


def _refuse_packed_parquet(path: Path) -> None:
    if path.suffix.lower() in COMPRESSIONS and unpacked_name(path.name).lower().endswith(".parquet"):
        hint = "Unpack it; Parquet files are compressed on the inside."
        raise BadInput("A Parquet file cannot be read inside of an archive.", file=str(path), hint=hint)


def _search(directory: Path, root: Path, suffixes: tuple[str, ...], visited: set[Path], found: list[Path]) -> None:
    real = directory.resolve()
    if real in visited:  # a linked directory that was read under another name, or a loop
        return
    visited.add(real)
    for name in sorted(entry.name for entry in os.scandir(directory)):
        path = directory / name
        wanted = ends_in(name, suffixes)
        if name.startswith(".") or name == MANIFEST_NAME or not (wanted or path.is_dir()):
            continue
        if path.is_symlink():
            _refuse_bad_link(path, root)
        if path.is_dir():
            _search(path, root, suffixes, visited, found)
        else:
            _refuse_packed_parquet(path)
            found.append(path)


def _refuse_bad_link(path: Path, root: Path) -> None:
    try:
        target = path.resolve(strict=True)
    except (OSError, RuntimeError) as error:
        raise BadInput(
            "The symbolic link points to nothing.",
            file=str(path),
            hint="Remove the link, or copy the file in its place.",
        ) from error
    if not target.is_relative_to(root):
        raise BadInput(
            "The symbolic link leads out of the dataset directory.",
            file=str(path),
            hint="Copy the file in its place; only files inside the dataset directory are read.",
        )


def read_characters(path: Path) -> Iterator[str]:
    """Yield the text of a UTF-8 file in pieces of about a mebibyte, without a byte order mark."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    offset, line, start = 0, 1, True
    chunks = read_chunks(path)
    while True:
        chunk = next(chunks, b"")
        if offset == 0:
            refuse_utf_16(path, chunk)
        offset += len(chunk)
        try:
            text = decoder.decode(chunk, final=not chunk)
        except UnicodeDecodeError as error:  # error.object starts with what was left of the chunk before
            at = offset - len(error.object) + error.start
            raise not_utf8(path, at, line + error.object[: error.start].count(b"\n")) from error
        line += text.count("\n")
        if text and start:
            text, start = text.removeprefix("\ufeff"), False
        if text:
            yield text
        if not chunk:
            return


def refuse_utf_16(path: Path, beginning: bytes) -> None:
    """Raise BadInput where the file begins like one of UTF-16."""
    if beginning.startswith(_UTF16_MARKS):
        raise BadInput(
            "The file is UTF-16, not UTF-8.",
            file=str(path),
            line=1,
            hint="Convert the file to UTF-8, for example: iconv -f UTF-16 -t UTF-8 OLD > NEW.",
        )


def too_long(path: Path, line: int) -> BadInput:
    """Return the error of a line, document or record above MAX_RECORD_BYTES."""
    return BadInput(
        f"The text starting here is longer than {MAX_RECORD_BYTES // 2**20} MiB.",
        file=str(path),
        line=line,
        hint="Split the file into documents: one a line, or separated by blank lines (the dataset's separator).",
    )


def not_text(path: Path, line: int, where: str) -> BadInput:
    """Return the error of a JSON string with a lone surrogate, which no tokenizer and no UTF-8 file can hold."""
    return BadInput(
        f"{where} holds half of a surrogate pair (an escape between \\ud800 and \\udfff), which is not text.",
        file=str(path),
        line=line,
        hint="Remove the escape, or write the file again as UTF-8.",
    )


def not_utf8(path: Path, offset: int, line: int) -> BadInput:
    """Return the error of a byte that is not UTF-8, at this offset of the (unpacked) file."""
    return BadInput(
        f"The file is not UTF-8: byte {offset} cannot be decoded.", file=str(path), line=line, hint=_CONVERT
    )
