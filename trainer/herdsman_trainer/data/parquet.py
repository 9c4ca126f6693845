"""Rows of Parquet files, a few at a time."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import parquet

from herdsman_trainer.errors import BadInput
from herdsman_trainer.heartbeat import HEART
from herdsman_trainer.json_records import Record
from herdsman_trainer.text_files import MAX_RECORD_BYTES, too_long

_ROWS_AT_ONCE = 64
_BUFFER_BYTES = 2**20
OPTIONAL = ("input",)
"""Columns that may be missing."""


def read_rows(path: Path, columns: tuple[str, ...], start: int = 0) -> Iterator[Record]:
    """Yield the rows from number `start` (from 0) on, with these columns; memory is some dozens of rows and a page.

    BadInput for a file that is no Parquet file, lacks a column, or has another type in it than strings.
    """
    try:
        with parquet.ParquetFile(path, buffer_size=_BUFFER_BYTES, pre_buffer=False) as file:
            yield from _rows(path, file, _present(path, file.schema_arrow, columns), start)
    except PermissionError as error:
        hint = "Give the user of the job read permission; on a volume, check the owner and the group."
        raise BadInput("The file may not be read.", file=str(path), hint=hint) from error
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        what = str(error).partition("\n")[0].rstrip(".")
        hint = "Copy the file again, or write it again."
        raise BadInput(f"The file is no sound Parquet file ({what}).", file=str(path), hint=hint) from error


def _rows(path: Path, file: Any, columns: list[str], start: int) -> Iterator[Record]:
    number = 0
    for group in range(file.num_row_groups):
        rows = file.metadata.row_group(group).num_rows
        if number + rows <= start:
            number += rows
            continue
        for batch in file.iter_batches(batch_size=_ROWS_AT_ONCE, row_groups=[group], columns=columns):
            HEART.beat()
            for value in batch.to_pylist():
                number += 1
                if number > start:
                    yield Record(path, "Row", number, number, _within_bounds(path, number, value))


def _within_bounds(path: Path, number: int, value: dict[str, Any]) -> dict[str, Any]:
    if any(isinstance(text, str) and len(text) > MAX_RECORD_BYTES for text in value.values()):
        raise too_long(path, number)
    return value


def _present(path: Path, schema: Any, columns: tuple[str, ...]) -> list[str]:
    """Return the columns that are there, after checking that they are strings."""
    names = list(schema.names)
    for column in columns:
        if column not in names:
            if column in OPTIONAL:
                continue
            there = ", ".join(names[:8]) or "none"
            hint = f'Rename the column that holds it to "{column}".'
            raise BadInput(f'There is no column "{column}" (there are: {there}).', file=str(path), hint=hint)
        kind = schema.field(column).type
        if pa.types.is_dictionary(kind):
            kind = kind.value_type
        if not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)):
            hint = "Write the column as strings."
            raise BadInput(f'The column "{column}" holds {kind} and no strings.', file=str(path), hint=hint)
    return [column for column in columns if column in names]
