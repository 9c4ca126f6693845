"""Adds the pieces of SentencePiece models to a byte-level BPE tokenizer (Llama 3, SmolLM2) as added tokens.

Added tokens are cut out of the text before BPE, the leftmost and longest first, so the old vocabulary, its merges and
its ids stay. Four rules keep text whole and English unchanged:

- No new token lies wholly in the byte-level alphabet, whose 256 characters stand for bytes: an added token "é" would
  take the id of the byte 0xE9 and come back as that byte. One other character, a space too, makes the decoder take a
  token literally.
- Every new token holds a character that English text has not (ASCII, typographic signs).
- No new token holds a digit, because it would undo the splitting of digits, or white space but for one leading space.
- A piece that already is one token is not added again.
"""

import json
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import tokenizers
from tokenizers.pre_tokenizers import ByteLevel

from herdsman_trainer.errors import BadInput
from herdsman_trainer.sentencepiece_merge import PAD, SourceCounts
from herdsman_trainer.sentencepiece_proto import SPACE, Piece, PieceType, read_pieces

UNSPACED_SCRIPTS = (
    (0x0E00, 0x0EFF),  # Thai, Lao
    (0x0F00, 0x109F),  # Tibetan, Myanmar
    (0x1780, 0x17FF),  # Khmer
    (0x2E80, 0x312F),  # CJK radicals and punctuation, kana, Bopomofo
    (0x31A0, 0x9FFF),  # Bopomofo and kana extensions, CJK ideographs
    (0xF900, 0xFAFF),  # CJK compatibility ideographs
    (0xFE30, 0xFE4F),  # CJK compatibility forms
    (0xFF00, 0xFFEF),  # half- and full-width forms
    (0x1AFF0, 0x1B16F),  # kana supplements
    (0x20000, 0x3FFFF),  # CJK ideographs beyond the first plane
)
"""Scripts that set no spaces between words: there a leading `▁` marks only the beginning of a line."""
_ALPHABET = frozenset(ByteLevel.alphabet())


@dataclass(frozen=True)
class BpeMerge:
    """The merged document of `tokenizer.json` and the counts of each source, in order."""

    document: dict[str, Any]
    sources: list[SourceCounts]


def merge_bpe(document: dict[str, Any], sources: Sequence[bytes], pad: bool = False) -> BpeMerge:
    """Return `tokenizer.json` with the pieces of the sources as added tokens, and `[PAD]` last if asked for.

    New ids follow the highest old one without gaps. `document` stays unchanged. BadInput for a base whose pre-tokenizer
    puts a space before every segment, because text would not survive. ValueError for bytes that are no model.
    """
    if '"add_prefix_space": true' in json.dumps(document.get("pre_tokenizer")):
        raise BadInput(
            "The base tokenizer puts a space before every segment of text (add_prefix_space).",
            hint="Use a base whose pre_tokenizer has add_prefix_space false, such as Llama 3's.",
        )
    base = tokenizers.Tokenizer.from_str(json.dumps(document))
    base.encode_special_tokens = True
    added = list(document.get("added_tokens", []))
    known = {token["content"] for token in added}
    next_id = max([*document["model"]["vocab"].values(), *(token["id"] for token in added)]) + 1
    counts = []
    for source in sources:
        pieces = read_pieces(source)
        new, skipped = _new_tokens(base, pieces, known)
        added += [_added_token(next_id + offset, text) for offset, text in enumerate(new)]
        next_id += len(new)
        overlap = len(pieces) - len(new) - skipped.total()
        counts.append(SourceCounts(pieces=len(pieces), added=len(new), overlap=overlap, skipped=dict(skipped)))
    if pad and PAD not in known:
        added.append(_added_token(next_id, PAD) | {"special": True})
    return BpeMerge(document | {"added_tokens": added}, counts)


def _new_tokens(base: tokenizers.Tokenizer, pieces: Sequence[Piece], known: set[str]) -> tuple[list[str], Counter[str]]:
    """Return the texts to add, in file order, and how many pieces are left out for which reason; `known` grows."""
    skipped: Counter[str] = Counter()
    candidates = []
    for piece in pieces:
        text = _text_of(piece)
        reason = "control" if piece.type not in (PieceType.NORMAL, PieceType.USER_DEFINED) else _unfit(text)
        if reason is None:
            candidates.append(text)
        else:
            skipped[reason] += 1
    new = []
    encodings = base.encode_batch_fast(candidates, add_special_tokens=False)
    for text, encoding in zip(candidates, encodings, strict=True):
        if len(encoding.ids) > 1 and text not in known:
            new.append(text)
            known.add(text)
    return new, skipped


def _text_of(piece: Piece) -> str:
    """Return the text a piece stands for, with a real space for its leading `▁` where words are spaced."""
    body = piece.text.removeprefix(SPACE)
    spaced = body != piece.text and body and not _unspaced(body[0])
    return " " + body if spaced else body


def _unfit(text: str) -> str | None:
    """Return why a text must not become an added token, or None."""
    body = text.removeprefix(" ")
    if not body or SPACE in body or any(character.isspace() for character in body):
        return "whitespace"
    categories = [unicodedata.category(character) for character in body]
    if "Nd" in categories:
        return "digits"
    if "Cc" in categories or "Cs" in categories:
        return "control"
    if all(map(_english, body)):
        return "english"
    return "alphabet" if _ALPHABET.issuperset(text) else None


def _english(character: str) -> bool:
    """Tell whether English text has the character: ASCII, Latin-1 signs, general punctuation such as quotes."""
    return ord(character) < 0xC0 or character in "×÷" or 0x2000 <= ord(character) < 0x2070


def _unspaced(character: str) -> bool:
    return any(first <= ord(character) <= last for first, last in UNSPACED_SCRIPTS)


def _added_token(token_id: int, content: str) -> dict[str, Any]:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False)
    return {"id": token_id, "content": content, **flags}
