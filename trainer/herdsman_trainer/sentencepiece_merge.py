"""Appends the pieces of SentencePiece models to LLaMA's, byte for byte as the published tokenizers were made."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from herdsman_trainer.errors import BadInput
from herdsman_trainer.sentencepiece_proto import BPE, PieceType, append_pieces, model_type, read_pieces

PAD = "[PAD]"
REQUIRED_PIECES = ("<unk>", "<s>", "</s>")


@dataclass(frozen=True)
class SourceCounts:
    """What became of the pieces of one source."""

    pieces: int
    """All pieces of the source."""
    added: int
    overlap: int
    """Pieces that the tokenizer had already."""
    skipped: Mapping[str, int] = field(default_factory=dict)
    """Pieces left out, by reason."""


@dataclass(frozen=True)
class SentencePieceMerge:
    """A merged SentencePiece model and the counts of each source, in order."""

    model: bytes
    sources: list[SourceCounts]


def merge_sentencepiece(base: bytes, sources: Sequence[bytes], pad: bool = False) -> SentencePieceMerge:
    """Append every piece that is not there yet, in file order, with score 0.0; then `[PAD]` if asked for.

    The settings of the base stay as they are, its `vocab_size` too; the scores and the normaliser of the sources are
    dropped. Control, unknown, unused and byte pieces of a source are never appended: as NORMAL pieces they would match
    text. BadInput for a base that is not LLaMA-like. ValueError for bytes that are no SentencePiece model.
    """
    known = {piece.text for piece in read_pieces(base)}
    _check_base(base, known)
    new: list[str] = []
    counts = []
    for source in sources:
        pieces = read_pieces(source)
        unknown = [piece for piece in pieces if piece.text not in known]
        wanted = [piece.text for piece in unknown if piece.type in (PieceType.NORMAL, PieceType.USER_DEFINED)]
        skipped = len(unknown) - len(wanted)
        counts.append(
            SourceCounts(
                pieces=len(pieces),
                added=len(wanted),
                overlap=len(pieces) - len(unknown),
                skipped={"control": skipped} if skipped else {},
            )
        )
        new += wanted
        known.update(wanted)
    if pad and PAD not in known:
        new.append(PAD)
    return SentencePieceMerge(append_pieces(base, new), counts)


def _check_base(base: bytes, known: set[str]) -> None:
    missing = [text for text in REQUIRED_PIECES if text not in known]
    if missing:
        raise BadInput(
            f"The base tokenizer has no piece {', '.join(missing)}.",
            hint="Use a LLaMA-like SentencePiece model as the base, and the new language's model as a source.",
        )
    if model_type(base) != BPE:
        raise BadInput(
            "The base tokenizer is not a BPE SentencePiece model, so pieces of score 0 would not merge as they should.",
            hint="Use a LLaMA-like SentencePiece model as the base; sources may be of any type.",
        )
