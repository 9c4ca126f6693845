"""Records of given files as they are written there: JSON, JSON Lines, CSV, TSV and Parquet."""

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from herdsman_trainer.errors import BadInput
from herdsman_trainer.heartbeat import HEART
from herdsman_trainer.json_records import Record
from herdsman_trainer.text_files import MAX_RECORD_BYTES, find_files, read_characters
from herdsman_trainer.whole_files import read_json_records

SUFFIXES = (".json", ".jsonl", ".csv", ".tsv", ".parquet")
_ROWS_AT_ONCE = 64


def find_record_files(source: Path) -> list[Path]:
    """Return the files of records under `source`, sorted by relative name (see `find_files`)."""
    return find_files(source, SUFFIXES)


def read_records(path: Path) -> Iterator[Record]:
    """Yield the records of a file in order; memory is a few mebibytes and one record.

    BadInput names the file and the line of what cannot be read at all.
    """
    name = path.name.lower()
    if name.endswith(".parquet"):
        return _rows(path)
    if ".csv" in name[-8:] or ".tsv" in name[-8:]:
        return _table(path, tabs=".tsv" in name[-8:])
    return read_json_records(path)


def _table(path: Path, *, tabs: bool) -> Iterator[Record]:
    csv.field_size_limit(MAX_RECORD_BYTES)
    lines = _lines(path)
    first = next(lines, "")
    if not first.strip():
        hint = "Its first line has to name the columns: instruction,input,output."
        raise BadInput("The table is empty.", file=str(path), line=1, hint=hint)
    separator = "\t" if tabs else ";" if first.count(";") > first.count(",") else ","
    rows = csv.reader(_again(first, lines), delimiter=separator, strict=True)
    number = line = 0
    head: list[str] = []
    try:
        for row in rows:
            begun, line = line + 1, rows.line_num
            if not row:
                continue
            if not head:
                head = [name.strip() for name in row]
                _check_head(path, head)
                continue
            number += 1
            if len(row) != len(head):
                raise _ragged(path, begun, len(row), head)
            yield Record(path, "Row", number, begun, dict(zip(head, row, strict=True)))
    except csv.Error as error:
        hint = 'Fields with a separator, a line end or a quote stand in "quotes", and a quote inside is doubled.'
        raise BadInput(f"The table is malformed: {error}.", file=str(path), line=line + 1, hint=hint) from error


def _check_head(path: Path, head: Sequence[str]) -> None:
    twice = next((name for name in head if head.count(name) > 1), None)
    if twice is not None:
        raise BadInput(f"Two columns are called {twice!r}.", file=str(path), line=1, hint="Rename one of them.")


def _ragged(path: Path, line: int, found: int, head: Sequence[str]) -> BadInput:
    return BadInput(
        f"The row has {found} fields, and the first line names {len(head)} columns ({', '.join(head[:8])}).",
        file=str(path),
        line=line,
        hint='A field with a separator in it stands in "quotes".',
    )


def _lines(path: Path) -> Iterator[str]:
    """Yield lines with their ends, as the csv module wants them."""
    rest = ""
    for text in read_characters(path):
        *whole, rest = (rest + text).split("\n")
        for line in whole:
            yield f"{line}\n"
    if rest:
        yield rest


def _again(first: str, rest: Iterator[str]) -> Iterator[str]:
    yield first
    for line in rest:
        HEART.beat()
        yield line


def _rows(path: Path) -> Iterator[Record]:
    import pyarrow
    from pyarrow import parquet

    number = 0
    try:
        with parquet.ParquetFile(path, pre_buffer=False) as file:
            for batch in file.iter_batches(batch_size=_ROWS_AT_ONCE):
                HEART.beat()
                for value in batch.to_pylist():
                    number += 1
                    yield Record(path, "Row", number, number, _plain(value))
    except PermissionError as error:
        hint = "Give the user of the job read permission; on a volume, check the owner and the group."
        raise BadInput("The file may not be read.", file=str(path), hint=hint) from error
    except (pyarrow.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        what = str(error).partition("\n")[0].rstrip(".")
        hint = "Copy the file again, or write it again."
        raise BadInput(f"The file is no sound Parquet file ({what}).", file=str(path), hint=hint) from error


def _plain(value: dict[str, Any]) -> dict[str, Any]:
    """Return a row as JSON has it: a missing value is an empty string where the others of its column are strings."""
    return {name: "" if member is None else member for name, member in value.items()}
