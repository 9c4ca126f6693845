"""Merges tokenizers on disk: the base's directory and SentencePiece models in, a tokenizer directory out."""

import json
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from herdsman_trainer.bpe_merge import merge_bpe
from herdsman_trainer.errors import BadInput
from herdsman_trainer.sentencepiece_files import special_tokens_map, tokenizer_config, tokenizer_json
from herdsman_trainer.sentencepiece_merge import PAD, SourceCounts, merge_sentencepiece
from herdsman_trainer.sentencepiece_proto import read_pieces
from herdsman_trainer.tokenizer_files import (
    BPE_FILE,
    CHAT_TEMPLATE_FILE,
    CONFIG_FILE,
    SENTENCEPIECE_FILE,
    SPECIAL_TOKENS_FILE,
    read_bpe,
    read_json,
    read_sentencepiece,
)
from herdsman_trainer.tokenizers import TextTokenizer, load_tokenizer

BPE_CLASS = "PreTrainedTokenizerFast"
"""transformers 5 gives a tokenizer.json of class LlamaTokenizer another pre-tokenizer, without a word."""
_BATCH = 1000


def merge_tokenizer(base: Path, sources: Sequence[Path], target: Path, pad: bool = False) -> list[SourceCounts]:
    """Write the merged tokenizer into `target`, an existing directory, and return the counts of each source, in order.

    Old ids stay. BadInput names the file that is not what it should be. See `merge_sentencepiece` and `merge_bpe`.
    """
    if base.is_file():
        raise BadInput(
            "The base tokenizer is a file.", file=str(base), hint="Name the directory that holds it, without the file."
        )
    before = load_tokenizer(base)
    models = [_read_source(source) for source in sources]
    is_sentencepiece = (base / SENTENCEPIECE_FILE).is_file()
    try:
        counts = (_merge_sentencepiece if is_sentencepiece else _merge_bpe)(base, before, models, target, pad)
    except BadInput as refused:
        refused.file = refused.file or str(base / (SENTENCEPIECE_FILE if is_sentencepiece else BPE_FILE))
        raise
    if (base / CHAT_TEMPLATE_FILE).is_file():
        (target / CHAT_TEMPLATE_FILE).write_bytes((base / CHAT_TEMPLATE_FILE).read_bytes())
    return counts


def tokens_per_character(tokenizer: TextTokenizer, texts: Iterable[str]) -> tuple[int, int]:
    """Return how many tokens and how many characters the texts have; line ends count as no characters."""
    tokens = characters = 0
    for batch in _batches(texts):
        tokens += sum(map(len, tokenizer.encode_batch(batch)))
        characters += sum(len(text) - text.count("\n") - text.count("\r") for text in batch)
    return tokens, characters


def _merge_sentencepiece(
    base: Path, before: TextTokenizer, models: Sequence[bytes], target: Path, pad: bool
) -> list[SourceCounts]:
    base_model = read_sentencepiece(base / SENTENCEPIECE_FILE)
    pieces = read_pieces(base_model)
    if before.vocab_size != len(pieces):
        raise BadInput(
            f"The base has {len(pieces)} pieces, and its configuration adds {before.vocab_size - len(pieces)} tokens "
            "behind them, whose ids the new pieces would take.",
            hint="Use the tokenizer without added tokens as the base: its tokenizer.model alone.",
        )
    base_pad = None if before.pad_id is None else pieces[before.pad_id].text
    merged = merge_sentencepiece(base_model, models, pad)
    pad_token = PAD if pad else base_pad
    (target / SENTENCEPIECE_FILE).write_bytes(merged.model)
    _write_json(target / BPE_FILE, tokenizer_json(merged.model, pad_token))
    _write_json(target / CONFIG_FILE, tokenizer_config(pad_token) | _chat_template_of(base))
    _write_json(target / SPECIAL_TOKENS_FILE, special_tokens_map(pad_token))
    return merged.sources


def _merge_bpe(
    base: Path, before: TextTokenizer, models: Sequence[bytes], target: Path, pad: bool
) -> list[SourceCounts]:
    del before  # loading it has shown that the base is complete
    merged = merge_bpe(read_bpe(base / BPE_FILE), models, pad)
    pad_token = {"pad_token": PAD} if pad else {}
    _write_json(target / BPE_FILE, merged.document)
    config = read_json(base / CONFIG_FILE) | pad_token
    _write_json(target / CONFIG_FILE, config | {"tokenizer_class": BPE_CLASS})
    if (base / SPECIAL_TOKENS_FILE).is_file():
        _write_json(target / SPECIAL_TOKENS_FILE, read_json(base / SPECIAL_TOKENS_FILE) | pad_token)
    return merged.sources


def _read_source(source: Path) -> bytes:
    if source.is_dir():
        found = ", ".join(sorted(path.name for path in source.glob("*.model"))) or "none"
        raise BadInput(
            "The source is a directory.",
            file=str(source),
            hint=f"Name the SentencePiece model file in it (*.model here: {found}).",
        )
    return read_sentencepiece(source)


def _chat_template_of(base: Path) -> dict[str, Any]:
    config = read_json(base / CONFIG_FILE)
    return {"chat_template": config["chat_template"]} if "chat_template" in config else {}


def _write_json(path: Path, document: dict[str, Any]) -> None:
    path.write_text(json.dumps(document, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def _batches(texts: Iterable[str]) -> Iterator[list[str]]:
    iterator = iter(texts)
    while batch := list(islice(iterator, _BATCH)):
        yield batch
