"""JSON objects: of an array, read as a stream, or one a line."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from herdsman_trainer.errors import BadInput
from herdsman_trainer.text_files import MAX_RECORD_BYTES, read_characters, too_long

_SHAPE = "The file must be one JSON array of objects, or one JSON object a line."
_BLANK = " \t\r\n"
_LONGEST_TOKEN = 16
"""An error this close to the end of what was read may be a token cut in two: -Infinity, or an escaped character."""


@dataclass(frozen=True, slots=True)
class Record:
    """One object: its place in the file, counted from 1, and its value."""

    file: Path
    what: Literal["Record", "Line", "Row"]
    """How places of this file are counted: elements of an array, lines, or rows of a table."""
    number: int
    line: int
    """The line where it begins; the row, where there are no lines."""
    value: dict[str, Any]

    @property
    def title(self) -> str:
        """What messages call it: Record 3, or Line 7."""
        return f"{self.what} {self.number}"


def is_array(path: Path) -> bool:
    """Whether the file holds an array: its first character decides, not its suffix."""
    return next((text.lstrip(_BLANK)[0] for text in read_characters(path) if text.strip(_BLANK)), "") == "["


def read_lines(path: Path, lines: Iterable[tuple[int, str]]) -> Iterator[Record]:
    """Yield the objects of numbered lines; blank ones are skipped. BadInput names the line and the column."""
    for line, text in lines:
        if not text.strip():
            continue
        try:
            value = json.loads(text)
        except json.JSONDecodeError as error:
            raise _malformed(path, line, error.colno, error.msg) from error
        except (ValueError, RecursionError) as error:
            raise _malformed(path, line, 1, str(error)) from error
        yield _record(path, "Line", line, line, value)


def read_array(path: Path) -> Iterator[Record]:
    """Yield the objects of an array in order; memory is a few mebibytes and one record.

    BadInput names the line and the column of what is malformed, or the record that is no object.
    """
    text = _Window(path)
    text.next_character()
    text.advance(text.at + 1)  # the opening bracket
    number = 0
    if text.next_character() != "]":
        while True:
            number += 1
            text.next_character()
            line = text.line
            yield _record(path, "Record", number, line, text.take_value())
            separator = text.next_character()
            if separator == "]":
                break
            if separator != ",":
                found = "the file ends inside the array" if not separator else "expecting ',' or ']'"
                raise _malformed(path, text.line, text.column, found)
            text.advance(text.at + 1)
    text.advance(text.at + 1)
    if text.next_character():
        raise _malformed(path, text.line, text.column, "extra data after the array")


class _Window:
    """The part of a file's text that is being parsed, and the line and column of its next character."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.at = 0
        self.line = 1
        self.column = 1
        self._buffer = ""
        self._chunks = read_characters(path)
        self._decoder = json.JSONDecoder()

    def next_character(self) -> str:
        """Move to the next character that is not blank and return it; the empty string at the end."""
        while True:
            end = self.at
            while end < len(self._buffer) and self._buffer[end] in _BLANK:
                end += 1
            self.advance(end)
            if end < len(self._buffer):
                return self._buffer[end]
            if not self._fetch():
                return ""

    def take_value(self) -> Any:
        """Parse the JSON value at the next character and move behind it."""
        while True:
            try:
                value, end = self._decoder.raw_decode(self._buffer, self.at)
            except json.JSONDecodeError as error:
                unfinished = error.msg.startswith("Unterminated") or error.pos > len(self._buffer) - _LONGEST_TOKEN
                if unfinished and len(self._buffer) - self.at > MAX_RECORD_BYTES:
                    raise too_long(self.path, self.line) from error
                if not unfinished or not self._fetch():
                    raise _malformed(self.path, *self._place(error.pos), error.msg) from error
            except (ValueError, RecursionError) as error:
                raise _malformed(self.path, self.line, self.column, str(error)) from error
            else:
                self.advance(end)
                return value

    def advance(self, end: int) -> None:
        """Move to the index `end` of the buffer, counting lines and columns."""
        self.line, self.column = self._place(end)
        self.at = end

    def _place(self, end: int) -> tuple[int, int]:
        feeds = self._buffer.count("\n", self.at, end)
        if not feeds:
            return self.line, self.column + end - self.at
        return self.line + feeds, end - self._buffer.rfind("\n", self.at, end)

    def _fetch(self) -> bool:
        chunk = next(self._chunks, "")
        if chunk:
            self._buffer = self._buffer[self.at :] + chunk
            self.at = 0
        return bool(chunk)


def _record(path: Path, what: Literal["Record", "Line"], number: int, line: int, value: Any) -> Record:
    if not isinstance(value, dict):
        raise BadInput(f"{what} {number} is not a JSON object.", file=str(path), line=line, hint=_SHAPE)
    return Record(path, what, number, line, value)


def _malformed(path: Path, line: int, column: int, what: str) -> BadInput:
    what = what[:1].lower() + what[1:].removesuffix(" at").removesuffix(" starting")
    return BadInput(f"Malformed JSON at line {line}, column {column}: {what}.", file=str(path), line=line, hint=_SHAPE)
