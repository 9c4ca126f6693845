"""Documents of a pre-training corpus: *.txt (one a line, or separated by blank lines) and *.jsonl with a "text"."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from herdsman_trainer.errors import BadInput
from herdsman_trainer.json_records import read_json_records
from herdsman_trainer.text_files import MAX_RECORD_BYTES, find_files, not_text, read_lines, too_long

Separator = Literal["Line", "BlankLine"]
"""What ends a document of a *.txt file."""

SUFFIXES = (".txt", ".jsonl")


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


def find_text_files(source: Path) -> list[Path]:
    """Return the *.txt and *.jsonl files under `source`, sorted by relative name (see `find_files`)."""
    return find_files(source, SUFFIXES)


def read_documents(files: Sequence[Path], separator: Separator, counts: ReadCounts | None = None) -> Iterator[Document]:
    """Yield the documents of `files` in order; memory is one document.

    `separator` applies to *.txt only: with "Line" every line that is not blank is a document, with "BlankLine" the
    lines between blank lines are joined by a line feed. A line of a *.jsonl file is a document whatever its text
    holds. `counts` is brought up to date with every document. BadInput names file and line.
    """
    counts = ReadCounts() if counts is None else counts
    for path in files:
        if path.suffix.lower() == ".jsonl":
            documents = _json_documents(path, counts)
        elif separator == "Line":
            documents = _lines(path, counts)
        else:
            documents = _paragraphs(path, counts)
        for document in documents:
            counts.documents += 1
            yield document


def _lines(path: Path, counts: ReadCounts) -> Iterator[Document]:
    for number, text in read_lines(path):
        if text and not text.isspace():
            yield Document(text, path, number)
        else:
            counts.blank_lines += 1


def _paragraphs(path: Path, counts: ReadCounts) -> Iterator[Document]:
    lines: list[str] = []
    start = size = 0
    for number, text in read_lines(path):
        if text and not text.isspace():
            start = start if lines else number
            lines.append(text)
            size += len(text)
            if size > MAX_RECORD_BYTES:
                raise too_long(path, start)
            continue
        counts.blank_lines += 1
        if lines:
            yield Document("\n".join(lines), path, start)
            lines, size = [], 0
    if lines:
        yield Document("\n".join(lines), path, start)


def _json_documents(path: Path, counts: ReadCounts) -> Iterator[Document]:
    for record in read_json_records(path):
        text = record.value.get("text")
        if not isinstance(text, str):
            keys = ", ".join(sorted(record.value)[:8]) or "none"
            what = 'the key "text" is not a string' if "text" in record.value else f'no key "text" (its keys: {keys})'
            raise BadInput(
                f"Record {record.number}: {what}.",
                file=str(path),
                line=record.line,
                hint='Write each document as {"text": "..."} on a line of its own.',
            )
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise not_text(path, record.line, f'The "text" of record {record.number}') from error
        if text and not text.isspace():
            yield Document(text, path, record.line)
        else:
            counts.empty_texts += 1
