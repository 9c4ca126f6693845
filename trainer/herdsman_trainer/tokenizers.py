"""The two tokenizer families behind one protocol: SentencePiece (LLaMA, Llama 2) and byte-level BPE (Llama 3, SmolLM2).

Text never becomes a control id here, whatever strings it holds; prompts are put together from ids. SentencePiece models
are read by the sentencepiece library itself, because transformers 5 encodes them differently (docs/decisions/0003).
"""

import hashlib
import json
import shutil
from collections.abc import Callable, Sequence
from itertools import chain
from pathlib import Path
from typing import Protocol

import numpy as np
import sentencepiece
import tokenizers

from herdsman_trainer.errors import BadInput
from herdsman_trainer.sentencepiece_flat import FlatIds, Lengths, flat_encoder
from herdsman_trainer.sentencepiece_proto import SPACE, PieceType, as_control, read_pieces
from herdsman_trainer.tokenizer_files import (
    BPE_FILE,
    CONFIG_FILE,
    SENTENCEPIECE_FILE,
    TOKENIZER_FILES,
    canonical_digest,
    read_added_tokens,
    read_bpe,
    read_named_tokens,
    read_sentencepiece,
)

PAD_PIECES = ("[PAD]", "<pad>")
"""What a padding piece is called in the Alpaca and the Chinese-LLaMA-2 tokenizers, whose model files mark it NORMAL."""

_AT_ONCE = 256
"""Texts the tokenizers library encodes at once: what it knows of each token takes a hundred times an id's memory."""

_SHOWN = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
_HIDDEN = [byte for byte in range(256) if byte not in _SHOWN]
BYTE_OF = {chr(byte): byte for byte in _SHOWN} | {chr(256 + place): byte for place, byte in enumerate(_HIDDEN)}
"""The byte behind each character of a byte-level vocabulary: itself where it can be seen, else one above 255."""


class TextTokenizer(Protocol):
    """Turns text into ids and back; control tokens exist only as ids."""

    vocab_size: int
    """The number of ids, which is the number of rows the embedding needs."""
    bos_id: int | None
    eos_id: int
    pad_id: int | None
    digest: str
    """SHA-256 (hex) of `tokenizer.model`, or of the canonical JSON of `tokenizer.json` where there is no such file."""

    def encode(self, text: str) -> list[int]:
        """Return the ids of plain text, without BOS and EOS and never with a control id."""

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the ids of each text, on all cores."""

    def encode_flat(self, texts: Sequence[bytes]) -> tuple[FlatIds, Lengths]:
        """Return the ids of texts in UTF-8, all in one array, and how many each text has; on one core."""

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of the ids; control ids are skipped."""

    def bytes_of(self, index: int) -> bytes:
        """Return what an id adds to the UTF-8 of a text, part of a character maybe; nothing for control ids."""

    def control_id(self, token: str) -> int | None:
        """Return the id of a control token such as `<s>` or `<|eot_id|>`, or None where there is no such token."""


def load_tokenizer(directory: Path) -> TextTokenizer:
    """Load the tokenizer of a directory; `tokenizer.model` wins over `tokenizer.json`.

    BadInput where neither file exists, where it cannot be read, or where no end-of-sequence token is known.
    """
    if (directory / SENTENCEPIECE_FILE).is_file():
        return SentencePieceTokenizer(directory)
    if (directory / BPE_FILE).is_file():
        return BpeTokenizer(directory)
    raise BadInput(
        f"There is neither {SENTENCEPIECE_FILE} nor {BPE_FILE} in this directory.",
        file=str(directory),
        hint="Point to the directory of a Hugging Face model or of a TokenizerMerge's artifact.",
    )


def copy_tokenizer(source: Path, target: Path) -> None:
    """Copy the tokenizer files of a model directory byte for byte; BadInput where there is no tokenizer."""
    load_tokenizer(source)
    target.mkdir(parents=True, exist_ok=True)
    if source.resolve() == target.resolve():
        return
    for name in TOKENIZER_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)


class SentencePieceTokenizer:
    """A SentencePiece model as the sentencepiece library reads it; the padding piece is out of the reach of text."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        path = directory / SENTENCEPIECE_FILE
        model = read_sentencepiece(path)
        pieces = read_pieces(model)
        ids = {piece.text: index for index, piece in enumerate(pieces)}
        added = read_added_tokens(directory, first_id=len(pieces))
        named = read_named_tokens(directory)
        pad = named.get("pad_token") or next((text for text in PAD_PIECES if text in ids), "")
        self.pad_id = (ids | added).get(pad)
        if self.pad_id is not None and self.pad_id < len(pieces) and pieces[self.pad_id].type is PieceType.NORMAL:
            model = as_control(model, {self.pad_id})
            pieces[self.pad_id] = pieces[self.pad_id]._replace(type=PieceType.CONTROL)
        self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        self._flat = flat_encoder(self._processor)
        controls = (PieceType.CONTROL, PieceType.UNKNOWN)
        self._controls = {piece.text: index for index, piece in enumerate(pieces) if piece.type in controls} | added
        self._silent = frozenset(self._controls.values()) - {self._processor.unk_id()}
        self.vocab_size = max([len(pieces) - 1, *added.values()]) + 1
        self.bos_id = _first_id(self._controls.get(named.get("bos_token", "")), self._processor.bos_id())
        self.eos_id = _eos_id(_first_id(self._controls.get(named.get("eos_token", "")), self._processor.eos_id()), path)
        self.digest = hashlib.sha256(path.read_bytes()).hexdigest()

    def encode(self, text: str) -> list[int]:
        """Return the ids of plain text, without BOS and EOS and never with a control id."""
        ids: list[int] = self._processor.encode(_well_formed(text))
        return ids

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the ids of each text, on all cores."""
        ids: list[list[int]] = self._processor.encode([_well_formed(text) for text in texts])
        return ids

    def encode_flat(self, texts: Sequence[bytes]) -> tuple[FlatIds, Lengths]:
        """Return the ids of all texts in one array and how many each text has, without a Python number for each id."""
        return self._flat(list(texts))

    def __reduce__(self) -> "tuple[Callable[[Path], TextTokenizer], tuple[Path]]":
        """Be loaded again by a worker."""
        return load_tokenizer, (self._directory,)

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of the ids, control ids skipped; IndexError for an id that no piece has."""
        text: str = self._processor.decode([int(index) for index in ids if index not in self._silent])
        return text

    def bytes_of(self, index: int) -> bytes:
        """Return what an id adds to the UTF-8 of a text; nothing for control ids and ids that no piece has."""
        if index in self._silent or index >= self._processor.get_piece_size():
            return b""
        if self._processor.is_unknown(index):
            return self.decode([index]).encode()
        piece: str = self._processor.id_to_piece(index)
        return bytes([int(piece[3:5], 16)]) if self._processor.is_byte(index) else piece.replace(SPACE, " ").encode()

    def control_id(self, token: str) -> int | None:
        """Return the id of a control token, of `<unk>` or of the padding piece."""
        return self._controls.get(token)


class BpeTokenizer:
    """A byte-level BPE `tokenizer.json` as the tokenizers library reads it, control tokens switched off in text."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        path = directory / BPE_FILE
        document = read_bpe(path)
        named = read_named_tokens(directory)
        vocabulary, added = document["model"]["vocab"], document["added_tokens"]
        for token in added:
            # Some releases list their BOS or EOS as an ordinary added token, which text would match.
            token["special"] = token["special"] or token["content"] in named.values()
        self._tokenizer = tokenizers.Tokenizer.from_str(json.dumps(document))
        self._tokenizer.encode_special_tokens = True
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        for token in added:
            _check_added_token(token["content"], token["id"], self._tokenizer.token_to_id(token["content"]), path)
        self._controls = {token["content"]: token["id"] for token in added if token["special"]}
        self._silent = frozenset(self._controls.values())
        self._added = frozenset(token["id"] for token in added)
        # BPE itself can yield a control id only where the control string is also in its vocabulary.
        self._reachable = frozenset(index for token, index in self._controls.items() if token in vocabulary)
        self.vocab_size = max([*vocabulary.values(), *(token["id"] for token in added)]) + 1
        self.bos_id = self._controls.get(named.get("bos_token", ""))
        self.eos_id = _eos_id(self._controls.get(named.get("eos_token", "")), directory / CONFIG_FILE)
        self.pad_id = self._controls.get(named.get("pad_token", PAD_PIECES[0]))
        self.digest = canonical_digest(path)

    def encode(self, text: str) -> list[int]:
        """Return the ids of plain text, without BOS and EOS and never with a control id."""
        text = _well_formed(text)
        return self._guarded(text, self._tokenizer.encode(text, add_special_tokens=False).ids)

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the ids of each text, on all cores."""
        texts = [_well_formed(text) for text in texts]
        batch = self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        return [self._guarded(text, encoding.ids) for text, encoding in zip(texts, batch, strict=True)]

    def encode_flat(self, texts: Sequence[bytes]) -> tuple[FlatIds, Lengths]:
        """Return the ids of all texts in one array and how many each text has."""
        batches = (texts[begin : begin + _AT_ONCE] for begin in range(0, len(texts), _AT_ONCE))
        encoded = [ids for batch in batches for ids in self.encode_batch([text.decode() for text in batch])]
        lengths = np.fromiter(map(len, encoded), np.int64, len(encoded))
        return np.fromiter(chain.from_iterable(encoded), np.int32, int(lengths.sum())), lengths

    def __reduce__(self) -> "tuple[Callable[[Path], TextTokenizer], tuple[Path]]":
        """Be loaded again by a worker."""
        return load_tokenizer, (self._directory,)

    def _guarded(self, text: str, ids: list[int]) -> list[int]:
        if self._reachable.isdisjoint(ids):
            return ids
        encoding = self._tokenizer.encode(text, add_special_tokens=False)
        guarded: list[int] = []
        for index, (start, end) in zip(encoding.ids, encoding.offsets, strict=True):
            parts = text[start:end] if index in self._reachable else ""
            spelled = [self._tokenizer.encode(character, add_special_tokens=False).ids for character in parts]
            guarded += [index] if not parts else [each for ids in spelled for each in ids]
        return [index for index in guarded if index not in self._reachable]

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of the ids; control ids, and ids that no token has, are skipped."""
        text: str = self._tokenizer.decode([int(index) for index in ids if index not in self._silent])
        return text

    def bytes_of(self, index: int) -> bytes:
        """Return what an id adds to the UTF-8 of a text; nothing for control ids and ids that no token has."""
        token = None if index in self._silent else self._tokenizer.id_to_token(index)
        if token is None or index in self._added:
            return (token or "").encode()
        return bytes(BYTE_OF[character] for character in token)

    def control_id(self, token: str) -> int | None:
        """Return the id of a special token."""
        return self._controls.get(token)


def _check_added_token(token: str, stated: int, given: int | None, path: Path) -> None:
    if stated != given:
        raise BadInput(
            f"The added token {token!r} has the id {stated} in the file, but the tokenizers library gives it {given}.",
            file=str(path),
            hint="Number the added tokens without gaps behind the vocabulary, in the order of their ids.",
        )


def _first_id(*candidates: int | None) -> int | None:
    return next((index for index in candidates if index is not None and index >= 0), None)


def _eos_id(index: int | None, path: Path) -> int:
    if index is None:
        raise BadInput(
            "No end-of-sequence token is known.",
            file=str(path),
            hint='Name one that the tokenizer has as "eos_token" in tokenizer_config.json.',
        )
    return index


def _well_formed(text: str) -> str:
    """Return text that UTF-8 can hold: surrogate pairs joined, lone surrogates (legal in JSON) replaced by U+FFFD."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text
