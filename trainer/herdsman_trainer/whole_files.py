"""Files read from their beginning to their end, packed or not, for those who need no pieces of them."""

from collections.abc import Iterator
from pathlib import Path

from herdsman_trainer.corpora import lines_of
from herdsman_trainer.data.pieces import Place, TextPiece, pieces_of, text_pieces
from herdsman_trainer.json_records import Record, read_lines


def read_numbered_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield (number from 1, text without its end) of every line of a UTF-8 file; memory is one piece of it.

    BadInput names file and line of what is not text.
    """
    for piece in text_pieces(path, Place(), blank_lines=False):
        yield from enumerate(lines_of(piece), piece.start.line)


def read_json_records(path: Path) -> Iterator[Record]:
    """Yield the objects of a JSON array, or one a line, in order; memory is one piece of the file.

    BadInput names file, line and column of what is malformed.
    """
    for piece in pieces_of(path, (), Place()):
        if isinstance(piece, TextPiece):
            yield from read_lines(piece.file, enumerate(lines_of(piece), piece.start.line))
        else:
            yield from piece.records
