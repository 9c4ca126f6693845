"""Instruction records of *.json and *.jsonl files: an instruction, an optional input, an output."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from herdsman_trainer.errors import BadInput
from herdsman_trainer.json_records import JsonRecord, read_json_records
from herdsman_trainer.text_files import find_files, not_text

SUFFIXES = (".json", ".jsonl")
_SHAPE = 'A record is {"instruction": "...", "input": "...", "output": "..."}; "input" may be left out.'


class InstructionRecord(NamedTuple):
    """One record: the prompt is the instruction, and a line feed and the input where there is one."""

    prompt: str
    output: str
    file: Path
    number: int
    line: int


def find_instruction_files(source: Path) -> list[Path]:
    """Return the *.json and *.jsonl files under `source`, sorted by relative name (see `find_files`)."""
    return find_files(source, SUFFIXES)


def read_instructions(files: Sequence[Path]) -> Iterator[InstructionRecord]:
    """Yield the records of `files` in order; memory is a few mebibytes and one record.

    Other columns are ignored. BadInput names file, record and line of a missing key or of a value that is no string.
    """
    for path in files:
        for record in read_json_records(path):
            instruction = _string(record, "instruction")
            extra = _string(record, "input") if record.value.get("input") is not None else ""
            prompt = f"{instruction}\n{extra}" if extra else instruction
            yield InstructionRecord(prompt, _string(record, "output"), path, record.number, record.line)


def _string(record: JsonRecord, key: str) -> str:
    value = record.value.get(key)
    if not isinstance(value, str):
        if key not in record.value:
            keys = ", ".join(sorted(record.value)[:8]) or "none"
            what = f'no key "{key}" (its keys: {keys})'
        else:
            what = f'the key "{key}" is {_json_type(value)}, not a string'
        raise BadInput(f"Record {record.number}: {what}.", file=str(record.file), line=record.line, hint=_SHAPE)
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise not_text(record.file, record.line, f'The "{key}" of record {record.number}') from error
    return value


def _json_type(value: object) -> str:
    names = {type(None): "null", bool: "a boolean", int: "a number", float: "a number", list: "an array"}
    return names.get(type(value), "an object")
