"""A tokenizer as the metadata of a GGUF file: llama.cpp reads two kinds, SentencePiece's BPE and byte-level BPE."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gguf import TokenType
from tokenizers import Tokenizer, models

from herdsman_trainer.errors import BadInput
from herdsman_trainer.sentencepiece_proto import BPE, PieceType, model_type, normaliser, read_pieces
from herdsman_trainer.tokenizer_files import (
    BPE_FILE,
    CONFIG_FILE,
    SENTENCEPIECE_FILE,
    read_added_tokens,
    read_bpe,
    read_json,
    read_named_tokens,
    read_sentencepiece,
)
from herdsman_trainer.tokenizers import TextTokenizer, load_tokenizer
from herdsman_trainer.weights.gguf_tokenizer import SPLITS
from herdsman_trainer.weights.vocabulary import check_tokenizer

ELSEWHERE = "Choose the outputs huggingface or pth in spec.outputs for this model."
NOT_A_TOKEN = -10000.0
"""The score of an id that no piece has."""


@dataclass(frozen=True)
class GgufVocabulary:
    """The tokenizer of a model as llama.cpp wants it."""

    model: str
    """"llama" for SentencePiece, "gpt2" for byte-level BPE."""
    pre: str
    """How text is split before BPE, as one of llama.cpp's words."""
    tokens: list[str]
    types: list[int]
    """gguf.TokenType of each token."""
    scores: list[float] | None
    """SentencePiece only: the pair that gives the highest score is joined first."""
    merges: list[str] | None
    """Byte-level BPE only, the first to be joined first."""
    bos_id: int | None
    eos_id: int
    pad_id: int | None
    unknown_id: int | None
    add_bos: bool
    """Whether llama.cpp begins a text with BOS."""
    add_space_prefix: bool
    notes: tuple[str, ...] = ()
    """Where llama.cpp segments text differently, in sentences."""

    def text_of(self, index: int | None) -> str:
        """Return a token's text, "" for None."""
        return "" if index is None else self.tokens[index]


def read_vocabulary(directory: Path, rows: int) -> GgufVocabulary:
    """Read the tokenizer of a model directory whose embedding has `rows` rows.

    Raises BadInput where the two differ in number, and for a tokenizer that llama.cpp cannot follow.
    """
    tokenizer = load_tokenizer(directory)
    check_tokenizer(rows, tokenizer.vocab_size, model="the model", tokenizer=str(directory))
    if (directory / SENTENCEPIECE_FILE).is_file():
        return _sentencepiece(directory, tokenizer)
    return _byte_level(directory, tokenizer)


def _sentencepiece(directory: Path, tokenizer: TextTokenizer) -> GgufVocabulary:
    path = directory / SENTENCEPIECE_FILE
    model = read_sentencepiece(path)
    pieces = read_pieces(model)
    settings = normaliser(model)
    if model_type(model) != BPE:
        raise _inexpressible(path, "The SentencePiece model is not a BPE (it is unigram, word or char)")
    if settings.has_rules or settings.removes_spaces:
        raise _inexpressible(path, "The SentencePiece model normalises text (such as nmt_nfkc)")
    if sum(piece.type is PieceType.BYTE for piece in pieces) != 256:
        raise _inexpressible(path, "The SentencePiece model has no pieces for the 256 bytes (byte_fallback)")
    tokens = [piece.text for piece in pieces]
    types = [int(piece.type) for piece in pieces]
    scores = [piece.score for piece in pieces]
    spare = tokenizer.vocab_size - len(pieces)
    tokens += [f"[UNUSED{len(pieces) + place}]" for place in range(spare)]
    types += [int(TokenType.UNUSED)] * spare
    scores += [NOT_A_TOKEN] * spare
    added = read_added_tokens(directory, first_id=len(pieces))
    for text, index in added.items():
        tokens[index], types[index], scores[index] = text, int(TokenType.CONTROL), 0.0
    for control in (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id):
        if control is not None and types[control] == TokenType.NORMAL:
            types[control] = int(TokenType.CONTROL)  # as our own tokenizer has it: no text becomes this id
    unknown = next((index for index, kind in enumerate(types) if kind == TokenType.UNKNOWN), None)
    return GgufVocabulary(
        model="llama",
        pre="default",
        tokens=tokens,
        types=types,
        scores=scores,
        merges=None,
        bos_id=tokenizer.bos_id,
        eos_id=tokenizer.eos_id,
        pad_id=tokenizer.pad_id,
        unknown_id=unknown,
        add_bos=bool(read_json(directory / CONFIG_FILE).get("add_bos_token", True)),
        add_space_prefix=settings.adds_prefix,
    )


def _byte_level(directory: Path, tokenizer: TextTokenizer) -> GgufVocabulary:
    path = directory / BPE_FILE
    document = read_bpe(path)
    model, added = document["model"], document["added_tokens"]
    pre = _pre_tokenizer(document, path)
    named = read_named_tokens(directory)
    tokens = [f"[UNUSED{index}]" for index in range(tokenizer.vocab_size)]
    types = [int(TokenType.UNUSED)] * len(tokens)
    for text, index in model["vocab"].items():
        tokens[index], types[index] = text, int(TokenType.NORMAL)
    for token in added:
        special = token["special"] or token["content"] in named.values()
        tokens[token["id"]] = token["content"]
        types[token["id"]] = int(TokenType.CONTROL if special else TokenType.USER_DEFINED)
    notes = []
    if ordinary := types.count(TokenType.USER_DEFINED):
        notes.append(
            f"{ordinary} tokens were added behind the vocabulary. The tokenizers library cuts text at the leftmost of "
            "them, llama.cpp at the longest first: where two overlap in a text, the ids differ."
        )
    if bool(model.get("ignore_merges")) != (pre == "llama-bpe"):
        notes.append(
            "Whether a word that is one token is taken whole, before its merges are looked at (ignore_merges), is "
            f"bound to the splitting in llama.cpp ({pre}) and is the other way round here: rare words get other ids."
        )
    config = read_json(directory / CONFIG_FILE)
    return GgufVocabulary(
        model="gpt2",
        pre=pre,
        tokens=tokens,
        types=types,
        scores=None,
        merges=[merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]],
        bos_id=tokenizer.bos_id,
        eos_id=tokenizer.eos_id,
        pad_id=tokenizer.pad_id,
        unknown_id=None,
        add_bos=bool(config.get("add_bos_token", _begins_with(document, tokenizer.bos_id))),
        add_space_prefix=False,
        notes=tuple(notes),
    )


def _pre_tokenizer(document: Mapping[str, Any], path: Path) -> str:
    """Return llama.cpp's word for how the document splits text; raises BadInput where it has none."""
    if document.get("normalizer") is not None:
        raise _inexpressible(path, "The tokenizer normalises text before it splits it")
    wanted = _comparable(document["pre_tokenizer"])
    for word, build in SPLITS.items():
        known = Tokenizer(models.BPE())
        known.pre_tokenizer = build()
        if _comparable(json.loads(known.to_str())["pre_tokenizer"]) == wanted:
            return word
    raise _inexpressible(path, f"The tokenizer splits text in a way llama.cpp has no word for ({', '.join(SPLITS)})")


def _comparable(settings: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the steps of a pre-tokenizer without what changes no segment."""
    steps = settings["pretokenizers"] if settings["type"] == "Sequence" else [settings]
    full = [{"use_regex": True, **step} if step["type"] == "ByteLevel" else step for step in steps]
    return [{key: value for key, value in step.items() if key != "trim_offsets"} for step in full]


def _begins_with(document: Mapping[str, Any], bos_id: int | None) -> bool:
    """Whether the document's own post-processor puts BOS before a text."""
    encoding = Tokenizer.from_str(json.dumps(document)).encode("a")
    return bos_id is not None and encoding.ids[:1] == [bos_id]


def _inexpressible(path: Path, why: str) -> BadInput:
    return BadInput(f"{why}, which llama.cpp cannot express.", file=str(path), hint=ELSEWHERE)
