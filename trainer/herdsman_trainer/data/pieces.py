"""Files cut into pieces, each of whole documents: what a worker takes at a time, and where a killed run goes on.

Where a file is cut has no influence on what becomes of it. Text is cut at the ends of lines, or at blank lines where
these end documents; arrays of JSON and rows of Parquet files are cut between records.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from herdsman_trainer.data.compression import read_chunks, unpacked_name
from herdsman_trainer.json_records import Record, is_array, read_array
from herdsman_trainer.text_files import BYTE_ORDER_MARK, MAX_RECORD_BYTES, refuse_utf_16, too_long

PIECE_BYTES = 4 * 2**20
"""Bytes of text in a piece, about; a document that is longer is a piece of its own."""


@dataclass(frozen=True, slots=True)
class Place:
    """How far a file is read: all documents that start before are done."""

    position: int = 0
    """Bytes of its unpacked text, or records."""
    line: int = 1
    """The number of the next line."""


@dataclass(frozen=True, slots=True)
class TextPiece:
    """Whole lines of a text file; `start` is where it begins and `end` where the next one does."""

    file: Path
    data: bytes
    start: Place
    end: Place
    read: int
    """How much of the file itself, packed or not, was read so far."""


@dataclass(frozen=True, slots=True)
class RecordPiece:
    """Some records of a JSON array or of a Parquet file."""

    file: Path
    records: tuple[Record, ...]
    end: Place
    read: int
    """How much text was read so far, about."""


Piece = TextPiece | RecordPiece
Pieces = Callable[[Place], Iterator[Piece]]
"""Opens the pieces of one file from a place on."""


def pieces_of(path: Path, columns: tuple[str, ...], start: Place, *, blank_lines: bool = False) -> Iterator[Piece]:
    """Yield the pieces of a file from `start` on; `columns` are those of a Parquet file that are read.

    With `blank_lines`, a text file (*.txt) is cut at those only.
    """
    name = unpacked_name(path.name).lower()
    if name.endswith(".parquet"):
        from herdsman_trainer.data.parquet import read_rows  # a library that text does not need

        return _record_pieces(path, read_rows(path, columns, start.position), start)
    if not name.endswith(".txt") and is_array(path):
        return _record_pieces(path, islice(read_array(path), start.position, None), start)
    return text_pieces(path, start, blank_lines=blank_lines and name.endswith(".txt"))


def text_pieces(path: Path, start: Place, *, blank_lines: bool) -> Iterator[TextPiece]:
    """Yield the lines of a text file in pieces; memory is one piece. BadInput for a line that is too long, or UTF-16.

    A byte order mark belongs to no piece.
    """
    held, here = b"", start
    read = 0

    def on_read(position: int) -> None:
        nonlocal read
        read = position

    for chunk in read_chunks(path, start.position, on_read):
        held += chunk
        if here.position == 0:
            refuse_utf_16(path, held)
        if len(held) < PIECE_BYTES:
            continue
        cut = _behind_blank_line(held) if blank_lines else held.rfind(b"\n") + 1
        if cut:
            piece = _text_piece(path, held[:cut], here, read)
            yield piece
            held, here = held[cut:], piece.end
        elif len(held) > MAX_RECORD_BYTES + PIECE_BYTES:
            raise too_long(path, here.line + _blank_at_start(held))
    if held:
        yield _text_piece(path, held, here, read)


def _text_piece(path: Path, data: bytes, start: Place, read: int) -> TextPiece:
    end = Place(start.position + len(data), start.line + data.count(b"\n"))
    if start.position == 0 and data.startswith(BYTE_ORDER_MARK):
        data, start = data[len(BYTE_ORDER_MARK) :], Place(len(BYTE_ORDER_MARK))
    return TextPiece(path, data, start, end, read)


def _behind_blank_line(data: bytes) -> int:
    """Return the offset behind the last blank line of `data` that is complete, 0 where there is none."""
    end = data.rfind(b"\n")
    while end > 0:
        begin = data.rfind(b"\n", 0, end) + 1
        if is_blank(data[begin:end]):
            return end + 1
        end = begin - 1
    return 0


def _blank_at_start(data: bytes) -> int:
    """Return how many blank lines `data` begins with."""
    lines = data[:PIECE_BYTES].split(b"\n")
    return next((number for number, line in enumerate(lines) if not is_blank(line)), 0)


def is_blank(line: bytes) -> bool:
    """Whether a line of UTF-8 holds nothing but white space, of any script."""
    rest = line.strip()
    if not rest:
        return True
    if rest[0] not in b"\x1c\x1d\x1e\x1f\xc2\xe1\xe2\xe3":  # no white space begins otherwise
        return False
    try:
        return rest.decode().isspace()
    except UnicodeDecodeError:
        return False


def _record_pieces(path: Path, records: Iterator[Record], start: Place) -> Iterator[RecordPiece]:
    taken: list[Record] = []
    size = read = 0
    position = start.position
    for record in records:
        taken.append(record)
        size += _text_size(record)
        if size >= PIECE_BYTES:
            position, read = position + len(taken), read + size
            yield RecordPiece(path, tuple(taken), Place(position, record.line), read)
            taken, size = [], 0
    if taken:
        yield RecordPiece(path, tuple(taken), Place(position + len(taken), taken[-1].line), read + size)


def _text_size(record: Record) -> int:
    return sum(len(value) * (1 if value.isascii() else 3) for value in record.value.values() if isinstance(value, str))
