"""The bytes of a SentencePiece model: its pieces read, appended and re-typed without a protobuf library.

A model file is one protobuf message: `repeated SentencePiece pieces = 1; TrainerSpec = 2; NormalizerSpec = 3; …`; a
piece is `string piece = 1; float score = 2; enum type = 3`. Appending bytes leaves every other byte as it was.
"""

import struct
from collections.abc import Collection, Iterable, Iterator
from enum import IntEnum
from functools import lru_cache
from typing import NamedTuple

PIECES, TRAINER_SPEC, NORMALIZER_SPEC = 1, 2, 3
UNIGRAM, BPE = 1, 2
"""Values of the trainer setting `model_type`."""
SPACE = "▁"
"""U+2581, which stands for a space inside a piece."""


class PieceType(IntEnum):
    """The `type` of a piece; a piece without one is NORMAL."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


class Piece(NamedTuple):
    """One entry of the vocabulary; its id is its position in the file."""

    text: str
    score: float
    type: PieceType


class Normaliser(NamedTuple):
    """What happens to text before it is segmented."""

    has_rules: bool
    """Whether characters are replaced, as nmt_nfkc does; the rule set "identity" has none."""
    adds_prefix: bool
    """Whether a space is put before the text."""
    removes_spaces: bool
    """Whether repeated and outer spaces are dropped."""


class _Field(NamedTuple):
    number: int
    start: int
    end: int
    value: bytes | int


def read_pieces(model: bytes) -> list[Piece]:
    """Return the pieces in file order; ValueError says why the bytes are no complete SentencePiece model."""
    return list(_pieces(model))


def model_type(model: bytes) -> int:
    """Return how the model segments text: BPE, UNIGRAM (also where nothing is said) or another value."""
    settings = next(field.value for field in _fields_of_model(model) if field.number == TRAINER_SPEC)
    assert isinstance(settings, bytes)
    kinds = [field.value for field in _fields(settings) if field.number == 3 and isinstance(field.value, int)]
    return kinds[-1] if kinds else UNIGRAM


def normaliser(model: bytes) -> Normaliser:
    """Return the settings of the normaliser; what the file does not say has the defaults of SentencePiece."""
    settings = next(field.value for field in _fields_of_model(model) if field.number == NORMALIZER_SPEC)
    assert isinstance(settings, bytes)
    said = {field.number: field.value for field in _fields(settings)}
    return Normaliser(bool(said.get(2)), bool(said.get(3, 1)), bool(said.get(4, 1)))


def append_pieces(model: bytes, texts: Iterable[str]) -> bytes:
    """Return the model with NORMAL pieces of score 0.0 behind its last piece.

    The score is written although it is the default, and the type is not, as in the published merges: other bytes with
    the same meaning would change the file's SHA-256.
    """
    end = max(field.end for field in _fields_of_model(model) if field.number == PIECES)
    return model[:end] + b"".join(_piece_field(text) for text in texts) + model[end:]


def as_control(model: bytes, ids: Collection[int]) -> bytes:
    """Return the model with the pieces of these ids typed CONTROL, so that no text is ever encoded to them."""
    if not ids:
        return model
    parts, position, piece_id = [], 0, 0
    for field in _fields_of_model(model):
        if field.number != PIECES or not isinstance(field.value, bytes):
            continue
        if piece_id in ids:
            # The last value of a repeated scalar field counts, so the type may simply be added.
            value = field.value + bytes([3 << 3, PieceType.CONTROL])
            parts += [model[position : field.start], bytes([PIECES << 3 | 2]), _varint(len(value)), value]
            position = field.end
        piece_id += 1
    return b"".join([*parts, model[position:]])


@lru_cache(maxsize=2)
def _pieces(model: bytes) -> tuple[Piece, ...]:
    """Read the pieces once: a step asks for those of one large model several times."""
    fields = _fields_of_model(model)
    return tuple(_piece(field.value) for field in fields if field.number == PIECES and isinstance(field.value, bytes))


def _fields_of_model(model: bytes) -> list[_Field]:
    fields = list(_fields(model))
    numbers = {field.number for field in fields}
    if PIECES not in numbers:
        raise ValueError("it holds no pieces")
    if not {TRAINER_SPEC, NORMALIZER_SPEC} <= numbers:
        raise ValueError("it ends before the trainer and normalizer settings, so it was cut short")
    return fields


def _piece(message: bytes) -> Piece:
    end = 2 + (message[1] if len(message) > 1 else 0)
    if message[:1] == b"\x0a" and end < 0x82 and message[end : end + 1] == b"\x15" and len(message) == end + 5:
        (score,) = struct.unpack_from("<f", message, end + 1)  # nearly always: a text, a score and nothing else
        return Piece(message[2:end].decode(), score, PieceType.NORMAL)
    text, score, kind = "", 0.0, PieceType.NORMAL
    for field in _fields(message):
        if field.number == 1 and isinstance(field.value, bytes):
            text = field.value.decode()
        elif field.number == 2 and isinstance(field.value, bytes):
            (score,) = struct.unpack("<f", field.value)
        elif field.number == 3 and isinstance(field.value, int):
            kind = PieceType(field.value)  # ValueError for a type nobody knows
    return Piece(text, score, kind)


def _piece_field(text: str) -> bytes:
    encoded = text.encode()
    message = bytes([1 << 3 | 2]) + _varint(len(encoded)) + encoded + bytes([2 << 3 | 5]) + struct.pack("<f", 0.0)
    return bytes([PIECES << 3 | 2]) + _varint(len(message)) + message


def _fields(message: bytes) -> Iterator[_Field]:
    """Yield the fields of a protobuf message: the key is a varint, (field number << 3) | wire type."""
    position = 0
    while position < len(message):
        start = position
        key, position = _read_varint(message, position)
        value: bytes | int
        match key & 7:
            case 0:
                value, position = _read_varint(message, position)
            case 1 | 5 as wire_type:
                size = 8 if wire_type == 1 else 4
                value, position = message[position : position + size], position + size
            case 2:
                size, position = _read_varint(message, position)
                value, position = message[position : position + size], position + size
            case _:
                raise ValueError(f"byte {start} starts no protobuf field")
        if position > len(message):
            raise ValueError(f"the field at byte {start} ends behind the end of the file, so it was cut short")
        yield _Field(key >> 3, start, position, value)


def _read_varint(message: bytes, position: int) -> tuple[int, int]:
    if position < len(message) and message[position] < 0x80:  # nearly always
        return message[position], position + 1
    value = shift = 0
    while True:
        if position >= len(message) or shift > 63:
            raise ValueError(f"byte {position} ends no protobuf number")
        byte = message[position]
        value |= (byte & 0x7F) << shift
        position += 1
        if byte < 0x80:
            return value, position
        shift += 7


def _varint(value: int) -> bytes:
    parts = bytearray()
    while value > 0x7F:
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    parts.append(value)
    return bytes(parts)
