"""Documents of a pre-training corpus: *.txt (one a line, or separated by blank lines), and *.jsonl and *.parquet with
a "text"; text files may be packed.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import compress, count
from pathlib import Path
from typing import Literal, NamedTuple

from herdsman_trainer.data.compression import unpacked_name
from herdsman_trainer.data.pieces import Piece, Place, TextPiece, pieces_of
from herdsman_trainer.errors import BadInput
from herdsman_trainer.json_records import Record, read_lines
from herdsman_trainer.text_files import MAX_RECORD_BYTES, find_files, not_text, not_utf8, too_long

Separator = Literal["Line", "BlankLine"]
"""What ends a document of a *.txt file."""

SUFFIXES = (".txt", ".jsonl", ".parquet")
COLUMNS = ("text",)


class Document(NamedTuple):
    """One document, never blank, and the file and line (from 1) where it starts."""

    text: str
    file: Path
    line: int


@dataclass(slots=True)
class ReadCounts:
    """What was met while reading; blank lines and empty texts are never documents."""

    documents: int = 0
    blank_lines: int = 0
    empty_texts: int = 0


@dataclass(slots=True)
class Texts:
    """The documents of a piece, and what else it held."""

    texts: list[str]
    lines: Sequence[int]
    """The line where each starts."""
    utf8: list[bytes]
    """The same texts as they are in the file."""
    blank_lines: int = 0
    empty_texts: int = 0


def find_text_files(source: Path) -> list[Path]:
    """Return the files of text under `source`, sorted by relative name (see `find_files`)."""
    return find_files(source, SUFFIXES)


def read_pieces(path: Path, start: Place, separator: Separator) -> Iterator[Piece]:
    """Yield the pieces of a file of text from a place on."""
    return pieces_of(path, COLUMNS, start, blank_lines=separator == "BlankLine")


def read_documents(files: Sequence[Path], separator: Separator, counts: ReadCounts | None = None) -> Iterator[Document]:
    """Yield the documents of `files` in order; memory is one piece of a file.

    `separator` applies to *.txt only: with "Line" every line that is not blank is a document, with "BlankLine" the
    lines between blank lines are joined by a line feed. A line of a *.jsonl file, or a row of a *.parquet file, is a
    document whatever its text holds. `counts` is brought up to date with every piece. BadInput names file and line.
    """
    counts = ReadCounts() if counts is None else counts
    for path in files:
        for piece in read_pieces(path, Place(), separator):
            found = texts_of(piece, separator)
            counts.documents += len(found.texts)
            counts.blank_lines += found.blank_lines
            counts.empty_texts += found.empty_texts
            for text, line in zip(found.texts, found.lines, strict=True):
                yield Document(text, path, line)


def texts_of(piece: Piece, separator: Separator) -> Texts:
    """Return the documents of a piece."""
    if not isinstance(piece, TextPiece):
        return _of_records(iter(piece.records))
    lines = lines_of(piece)
    if not unpacked_name(piece.file.name).lower().endswith(".txt"):
        return _of_records(read_lines(piece.file, enumerate(lines, piece.start.line)))
    return _lines(piece, lines) if separator == "Line" else _paragraphs(piece, lines)


def lines_of(piece: TextPiece) -> list[str]:
    """Return the lines of a piece without their ends; only the line feed ends a line. BadInput for what is not UTF-8,
    and for a line that is too long.
    """
    try:
        text = piece.data.decode()
    except UnicodeDecodeError as error:
        line = piece.start.line + piece.data.count(b"\n", 0, error.start)
        raise not_utf8(piece.file, piece.start.position + error.start, line) from error
    lines = text.split("\n")
    if not lines[-1]:
        lines.pop()
    if "\r" in text:
        lines = [line.rstrip("\r") for line in lines]
    if len(piece.data) > MAX_RECORD_BYTES:
        for number, data in enumerate(piece.data.split(b"\n"), piece.start.line):
            if len(data) > MAX_RECORD_BYTES:
                raise too_long(piece.file, number)
    return lines


def _lines(piece: TextPiece, lines: list[str]) -> Texts:
    utf8 = piece.data.split(b"\n")[: len(lines)]  # as long as there are no carriage returns, these are the same lines
    if b"\r" in piece.data:
        utf8 = [line.encode() for line in lines]
    filled = list(map(str.strip, lines))
    if all(filled):
        return Texts(lines, range(piece.start.line, piece.start.line + len(lines)), utf8)
    numbers = list(compress(count(piece.start.line), filled))
    texts = list(compress(lines, filled))
    return Texts(texts, numbers, list(compress(utf8, filled)), blank_lines=len(lines) - len(texts))


def _paragraphs(piece: TextPiece, lines: list[str]) -> Texts:
    found = Texts([], starts := [], [])
    paragraph: list[str] = []
    for number, line in enumerate([*lines, ""], piece.start.line):
        if line and not line.isspace():
            if not paragraph:
                starts.append(number)
            paragraph.append(line)
            continue
        found.blank_lines += 1
        if paragraph:
            found.texts.append("\n".join(paragraph))
            paragraph = []
    found.blank_lines -= 1  # the one behind the end
    for text, start in zip(found.texts, starts, strict=True):
        if len(text) > MAX_RECORD_BYTES:
            raise too_long(piece.file, start)
    found.utf8 = [text.encode() for text in found.texts]
    return found


def _of_records(records: Iterator[Record]) -> Texts:
    found = Texts([], lines := [], [])
    for record in records:
        text = _text(record)
        if text and not text.isspace():
            found.texts.append(text)
            found.utf8.append(_utf8(record, text))
            lines.append(record.line)
        else:
            found.empty_texts += 1
    return found


def _text(record: Record) -> str:
    text = record.value.get("text")
    if text is None and record.what == "Row":
        return ""
    if not isinstance(text, str):
        keys = ", ".join(sorted(record.value)[:8]) or "none"
        what = 'the key "text" is not a string' if "text" in record.value else f'no key "text" (its keys: {keys})'
        raise BadInput(
            f"{record.title}: {what}.",
            file=str(record.file),
            line=record.line,
            hint='Write each document as {"text": "..."} on a line of its own.',
        )
    return text


def _utf8(record: Record, text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise not_text(record.file, record.line, f'The "text" of {record.title.lower()}') from error
