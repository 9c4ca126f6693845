"""Writes the tokenizer of a Meta checkpoint as Hugging Face files: SentencePiece's model, or Llama 3's ranks."""

import base64
import binascii
import json
import re
import shutil
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, processors

from herdsman_trainer.errors import BadInput
from herdsman_trainer.sentencepiece_files import special_tokens_map, tokenizer_config, tokenizer_json
from herdsman_trainer.sentencepiece_proto import read_pieces
from herdsman_trainer.tokenizer_files import (
    BPE_FILE,
    CONFIG_FILE,
    SENTENCEPIECE_FILE,
    SPECIAL_TOKENS_FILE,
    TOKENIZER_FILES,
    read_sentencepiece,
)
from herdsman_trainer.tokenizers import copy_tokenizer, load_tokenizer
from herdsman_trainer.weights.gguf_tokenizer import SPLITS

BESIDE = "Put Meta's tokenizer.model, or a tokenizer.json with tokenizer_config.json, beside the weights."
BOS, EOS, END_OF_TURN, END_OF_MESSAGE = "<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>", "<|eom_id|>"
LLAMA_3_SPECIAL = {0: BOS, 1: EOS, 6: "<|start_header_id|>", 7: "<|end_header_id|>", 9: END_OF_TURN}
"""Control tokens of Llama 3 by their place behind the ranks; the others are reserved."""
LLAMA_3_1_SPECIAL = {**LLAMA_3_SPECIAL, 4: "<|finetune_right_pad_id|>", 8: END_OF_MESSAGE, 10: "<|python_tag|>"}
_RANK_LINE = re.compile(rb"^[A-Za-z0-9+/]+={0,2} \d+\r?\n")


def find_meta_tokenizer(directory: Path, root: Path) -> Path:
    """Return the directory of the tokenizer: that of the weights, or the one above it if it is inside of `root`.

    Meta put one tokenizer.model above the directories of all sizes. Raises BadInput where there is none.
    """
    above = directory.resolve().parent
    places = [directory, *([directory.parent] if above.is_relative_to(root.resolve()) else [])]
    for place in places:
        if any((place / name).is_file() for name in (SENTENCEPIECE_FILE, BPE_FILE)):
            return place
    message = f"There is neither {SENTENCEPIECE_FILE} nor {BPE_FILE} beside the weights or above them."
    raise BadInput(message, file=str(directory), hint=BESIDE)


def write_meta_tokenizer(source: Path, target: Path, rows: int, *, scaled_rope: bool) -> None:
    """Write the tokenizer files for an embedding of `rows` rows.

    A tokenizer.json that is there is taken. Otherwise SentencePiece's tokenizer.model gets its companions, and of
    Llama 3's ranks a tokenizer.json is made, with the names of the control tokens that the 3.1 models
    (`scaled_rope`) or the first ones have. Raises BadInput where the file is neither.
    """
    model = source / SENTENCEPIECE_FILE
    ranked = model.is_file() and _has_ranks(model)
    if (source / BPE_FILE).is_file() and ranked:
        for name in TOKENIZER_FILES:
            if (source / name).is_file() and name != SENTENCEPIECE_FILE:
                shutil.copyfile(source / name, target / name)
    elif (source / BPE_FILE).is_file():
        copy_tokenizer(source, target)
    elif ranked:
        _write_ranked(model, target, rows, LLAMA_3_1_SPECIAL if scaled_rope else LLAMA_3_SPECIAL)
    else:
        _write_sentencepiece(source, target)


def _write_sentencepiece(source: Path, target: Path) -> None:
    content = read_sentencepiece(source / SENTENCEPIECE_FILE)
    copy_tokenizer(source, target)
    tokenizer = load_tokenizer(target)
    if (target / CONFIG_FILE).is_file() or tokenizer.control_id("<s>") is None:
        return
    pad = None if tokenizer.pad_id is None else read_pieces(content)[tokenizer.pad_id].text
    _write(target / BPE_FILE, tokenizer_json(content, pad))
    _write(target / CONFIG_FILE, tokenizer_config(pad))
    _write(target / SPECIAL_TOKENS_FILE, special_tokens_map(pad))


def _has_ranks(path: Path) -> bool:
    with path.open("rb") as stream:
        return bool(_RANK_LINE.match(stream.read(4096)))


def _write_ranked(path: Path, target: Path, rows: int, known: dict[int, str]) -> None:
    ranks = _read_ranks(path)
    special = special_names(rows - len(ranks), known)
    if len(special) <= max(known):
        message = f"The tokenizer has {len(ranks)} ranks and the embedding {rows} rows: too few for control tokens."
        raise BadInput(message, reason="ArtifactMismatch", file=str(path), hint=BESIDE)
    letters = _letters()
    spelled = {token: "".join(letters[byte] for byte in token) for token in ranks}
    merges = [(spelled[left], spelled[right]) for left, right in merges_of(ranks)]
    vocabulary = {spelled[token]: rank for token, rank in ranks.items()}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, ignore_merges=True))
    tokenizer.pre_tokenizer = SPLITS["llama-bpe"]()
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A {BOS} $B", special_tokens=[(BOS, len(ranks))]
    )
    tokenizer.save(str(target / BPE_FILE))
    config = {
        "bos_token": BOS,
        "clean_up_tokenization_spaces": False,
        "eos_token": EOS,
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    _write(target / CONFIG_FILE, config)


def special_names(count: int, known: dict[int, str]) -> list[str]:
    """Return the control tokens of Llama 3 in the order of their ids; the reserved ones are numbered through."""
    reserved = iter(range(count))
    return [known.get(place) or f"<|reserved_special_token_{next(reserved)}|>" for place in range(count)]


def merges_of(ranks: dict[bytes, int]) -> list[tuple[bytes, bytes]]:
    """Return the merges that ranks stand for, best first.

    Ranks join the neighbours whose whole has the lowest rank, however it is cut; so every cut of a token into two
    others is a merge, with the token's rank.
    """
    merges: list[tuple[bytes, bytes]] = []
    for token in sorted(ranks, key=ranks.__getitem__):
        cuts = ((token[:at], token[at:]) for at in range(1, len(token)))
        merges += sorted(
            (cut for cut in cuts if all(part in ranks for part in cut)), key=lambda cut: _order(cut, ranks)
        )
    return merges


def _order(cut: tuple[bytes, bytes], ranks: dict[bytes, int]) -> tuple[int, int]:
    return ranks[cut[0]], ranks[cut[1]]


def _read_ranks(path: Path) -> dict[bytes, int]:
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        try:
            token, rank = line.split()
            ranks[base64.b64decode(token, validate=True)] = int(rank)
        except (ValueError, binascii.Error):
            hint = "Copy the file again and compare its SHA-256 with the source."
            raise BadInput("The line is not a token and its rank.", file=str(path), line=number, hint=hint) from None
    if sorted(ranks.values()) != list(range(len(ranks))):
        message = f"The ranks of its {len(ranks)} tokens are not 0 to {len(ranks) - 1}."
        raise BadInput(message, file=str(path), hint="The file is cut or changed: copy it again.")
    return ranks


def _letters() -> list[str]:
    """Return the letter that byte-level BPE writes for each byte: the byte's own where it can be printed."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(byte) if byte in printable else chr(next(others)) for byte in range(0x100)]


def _write(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
