"""Instruction records of *.json, *.jsonl and *.parquet files: an instruction, an optional input, an output."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from herdsman_trainer.corpora import lines_of
from herdsman_trainer.data.pieces import Piece, Place, TextPiece, pieces_of
from herdsman_trainer.errors import BadInput
from herdsman_trainer.json_records import Record, read_lines
from herdsman_trainer.text_files import find_files, not_text

SUFFIXES = (".json", ".jsonl", ".parquet")
COLUMNS = ("instruction", "input", "output")
_SHAPE = 'A record is {"instruction": "...", "input": "...", "output": "..."}; "input" may be left out.'


class InstructionRecord(NamedTuple):
    """One record: the prompt is the instruction, and a line feed and the input where there is one."""

    prompt: str
    output: str
    file: Path
    number: int
    line: int
    what: str = "Record"

    @property
    def title(self) -> str:
        """What messages call it: Record 3, or Line 7."""
        return f"{self.what} {self.number}"


def find_instruction_files(source: Path) -> list[Path]:
    """Return the files of records under `source`, sorted by relative name (see `find_files`)."""
    return find_files(source, SUFFIXES)


def read_pieces(path: Path, start: Place) -> Iterator[Piece]:
    """Yield the pieces of a file of records from a place on."""
    return pieces_of(path, COLUMNS, start)


def read_instructions(files: Sequence[Path]) -> Iterator[InstructionRecord]:
    """Yield the records of `files` in order; memory is one piece of a file.

    Other columns are ignored. BadInput names file, record and line of a missing key or of a value that is no string.
    """
    for path in files:
        for piece in read_pieces(path, Place()):
            yield from instructions_of(piece)


def instructions_of(piece: Piece) -> Iterator[InstructionRecord]:
    """Yield the records of a piece."""
    if isinstance(piece, TextPiece):
        records = read_lines(piece.file, enumerate(lines_of(piece), piece.start.line))
    else:
        records = iter(piece.records)
    for record in records:
        instruction = _string(record, "instruction")
        extra = _string(record, "input") if record.value.get("input") is not None else ""
        prompt = f"{instruction}\n{extra}" if extra else instruction
        output = _string(record, "output")
        yield InstructionRecord(prompt, output, record.file, record.number, record.line, record.what)


def _string(record: Record, key: str) -> str:
    value = record.value.get(key)
    if value is None and record.what == "Row":
        return ""
    if not isinstance(value, str):
        if key not in record.value:
            keys = ", ".join(sorted(record.value)[:8]) or "none"
            what = f'no key "{key}" (its keys: {keys})'
        else:
            what = f'the key "{key}" is {_json_type(value)}, not a string'
        raise BadInput(f"{record.title}: {what}.", file=str(record.file), line=record.line, hint=_SHAPE)
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise not_text(record.file, record.line, f'The "{key}" of {record.title.lower()}') from error
    return value


def _json_type(value: object) -> str:
    names = {type(None): "null", bool: "a boolean", int: "a number", float: "a number", list: "an array"}
    return names.get(type(value), "an object")
