"""Fits a model's embedding and head to a larger vocabulary: old rows stay bit for bit, new rows are made."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Literal

import torch
from torch.nn.functional import embedding_bag

from herdsman_trainer.errors import BadInput
from herdsman_trainer.tokenizer_files import BPE_FILE, SENTENCEPIECE_FILE
from herdsman_trainer.tokenizers import TextTokenizer, load_tokenizer

NewRows = Literal["Mean", "Normal"]
NORMAL_DEVIATION = 0.02
"""The standard deviation of LLaMA's initialisation, and of the published recipe's new rows."""

_ANCHOR = "\n"
"""Put before a piece so that neither encoding nor decoding touches white space at its start."""


@dataclass(frozen=True)
class Vocabulary:
    """The vocabulary that rows stand for: what names it in messages, and its tokenizer where one is known."""

    label: str
    rows: int
    tokenizer: TextTokenizer | None


def tokenizer_of(directory: Path) -> TextTokenizer | None:
    """Return the tokenizer in a model or adapter directory, or None where there is none."""
    there = any((directory / name).is_file() for name in (SENTENCEPIECE_FILE, BPE_FILE))
    return load_tokenizer(directory) if there else None


def check_extends(old: Vocabulary, new: TextTokenizer, new_label: str) -> None:
    """Raise BadInput (ArtifactMismatch) unless `new` has every id of `old` with the same meaning, and perhaps more."""
    if old.tokenizer is not None and old.tokenizer.vocab_size != old.rows:
        raise _mismatch(
            f"The embedding of {old.label} has {old.rows} rows and the tokenizer beside it has "
            f"{old.tokenizer.vocab_size} ids (tokenizer {_short(old.tokenizer)}).",
            old.label,
            "Put the tokenizer beside the model that its embedding was trained with.",
        )
    if new.vocab_size < old.rows:
        one_apart = " One piece apart is mostly [PAD]." if old.rows - new.vocab_size == 1 else ""
        raise _mismatch(
            f"The tokenizer {new_label} has {new.vocab_size} ids (tokenizer {_short(new)}) and the embedding of "
            f"{old.label} has {old.rows} rows" + (f" (tokenizer {_short(old.tokenizer)})." if old.tokenizer else "."),
            new_label,
            f"A vocabulary cannot shrink: use the tokenizer of {old.label}, or one that extends it.{one_apart}",
        )
    if old.tokenizer is None or old.tokenizer.digest == new.digest:
        return
    ids = range(old.rows)
    mine, theirs = spellings(old.tokenizer, ids), spellings(new, ids)
    wrong = next((index for index in ids if mine[index] != theirs[index] and mine[index] and theirs[index]), None)
    if wrong is not None:
        raise _mismatch(
            f"Id {wrong} is {mine[wrong]!r} for {old.label} (tokenizer {_short(old.tokenizer)}, {old.rows} ids) and "
            f"{theirs[wrong]!r} in the tokenizer {new_label} ({_short(new)}, {new.vocab_size} ids).",
            new_label,
            "Use a tokenizer that was made by extending the model's own (TokenizerMerge).",
        )


def spellings(tokenizer: TextTokenizer, ids: Sequence[int]) -> list[str]:
    """Return the text each id stands for, leading spaces included; "" for control ids."""
    anchor = tokenizer.encode(_ANCHOR)
    start = len(tokenizer.decode(anchor))
    return [tokenizer.decode([*anchor, index])[start:] for index in ids]


def grown_rows(
    weight: torch.Tensor, old: Vocabulary, new: TextTokenizer, how: NewRows, seed: int, *, salt: str
) -> torch.Tensor:
    """Return `weight` (rows x width, float32) with rows for the ids that `new` adds; old rows stay bit for bit.

    Mean: a new row is the mean of the rows of the old pieces that spell it; of all old rows where nothing does, as for
    a padding token. Normal: N(0, 0.02), drawn from `seed` and `salt`, which tells embedding and head apart. A weight
    without values (on the device meta) grows in shape alone.
    """
    count = new.vocab_size - old.rows
    if count == 0:
        return weight
    if how == "Mean" and old.tokenizer is None:
        raise BadInput(
            f"recipe.newRows is Mean, and {old.label} has no tokenizer whose pieces could spell the new ones.",
            file=old.label,
            hint="Put the model's own tokenizer beside it, or set recipe.newRows to Normal.",
        )
    if weight.is_meta:
        return weight.new_empty(new.vocab_size, weight.shape[1])
    if how == "Normal":
        generator = torch.Generator().manual_seed(_derived_seed(seed, salt))
        added = torch.randn(count, weight.shape[1], generator=generator) * NORMAL_DEVIATION
    else:
        added = _mean_rows(weight, old, new)
    return torch.cat([weight, added.to(weight.dtype)])


def _mean_rows(weight: torch.Tensor, old: Vocabulary, new: TextTokenizer) -> torch.Tensor:
    assert old.tokenizer is not None, "checked above"
    spelled = _spell(spellings(new, range(old.rows, new.vocab_size)), old.tokenizer)
    lengths = torch.tensor([len(ids) for ids in spelled])
    offsets = torch.cumsum(lengths, 0) - lengths
    flat = torch.tensor(list(chain.from_iterable(spelled)), dtype=torch.long)
    means = embedding_bag(flat, weight, offsets, mode="mean") if len(flat) else weight.new_zeros(len(spelled), 1)
    return torch.where((lengths == 0)[:, None], weight.mean(dim=0), means)


def _spell(texts: Sequence[str], old: TextTokenizer) -> list[list[int]]:
    """Return the old ids of each text; an id that lacks a text of its own (part of a character) has none."""
    anchor = old.encode(_ANCHOR)
    whole = old.encode_batch([_ANCHOR + text for text in texts])
    return [
        ([] if not text or "\N{REPLACEMENT CHARACTER}" in text else ids[len(anchor) :])
        if ids[: len(anchor)] == anchor
        else old.encode(text)
        for text, ids in zip(texts, whole, strict=True)
    ]


def _derived_seed(seed: int, salt: str) -> int:
    return int.from_bytes(hashlib.blake2b(f"{seed}:{salt}".encode(), digest_size=8).digest(), "little") >> 1


def _short(tokenizer: TextTokenizer) -> str:
    return f"{tokenizer.digest[:12]}…"


def _mismatch(message: str, file: str, hint: str) -> BadInput:
    return BadInput(message, reason="ArtifactMismatch", file=file, hint=hint)
