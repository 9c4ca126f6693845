"""What models are asked, in files: one prompt a line, or records with an instruction."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from herdsman_trainer.errors import BadInput
from herdsman_trainer.json_records import Record
from herdsman_trainer.text_files import find_files, not_text
from herdsman_trainer.whole_files import read_json_records, read_numbered_lines

SUFFIXES = (".txt", ".json", ".jsonl")
_SHAPE = 'A record is {"instruction": "...", "input": "...", "output": "..."}; "input" and "output" may be left out.'


class Asked(NamedTuple):
    """One prompt, where it stands, and the answer that was written for it, if any."""

    text: str
    reference: str
    file: str
    line: int


def read_prompts(source: Path, most: int) -> list[Asked]:
    """Return the first prompts of the files under `source`; BadInput names file and line of what is none."""
    found: list[Asked] = []
    for path in find_files(source, SUFFIXES):
        for asked in _lines(path) if path.suffix.lower() == ".txt" else _records(path):
            found.append(asked)
            if len(found) == most:
                return found
    if not found:
        raise BadInput("The files hold no prompts.", file=str(source), hint=f"Write one a line into a *.txt. {_SHAPE}")
    return found


def _lines(path: Path) -> Iterator[Asked]:
    return (Asked(text, "", str(path), number) for number, text in read_numbered_lines(path) if text.strip())


def _records(path: Path) -> Iterator[Asked]:
    for record in read_json_records(path):
        instruction, extra = _string(record, "instruction", needed=True), _string(record, "input")
        text = f"{instruction}\n{extra}" if extra else instruction
        yield Asked(text, _string(record, "output"), str(path), record.line)


def _string(record: Record, key: str, *, needed: bool = False) -> str:
    value = record.value.get(key)
    if value is None and not needed:
        return ""
    if not isinstance(value, str):
        keys = ", ".join(sorted(record.value)[:8]) or "none"
        what = f'the key "{key}" is no string' if key in record.value else f'no key "{key}" (its keys: {keys})'
        raise BadInput(f"{record.title}: {what}.", file=str(record.file), line=record.line, hint=_SHAPE)
    if needed and not value.strip():
        what = f'the key "{key}" is empty'
        raise BadInput(f"{record.title}: {what}.", file=str(record.file), line=record.line, hint=_SHAPE)
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise not_text(record.file, record.line, f'The "{key}" of {record.title}') from error
    return value
