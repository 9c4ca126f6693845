"""The Hugging Face files beside a SentencePiece `tokenizer.model`: configuration, and a tokenizer.json for others.

Herdsman itself reads `tokenizer.model` alone. The tokenizer.json serves transformers 5 and what builds on it, where
SentencePiece models are no longer read directly; how near it comes is measured in docs/decisions/0003.
"""

from typing import Any

from herdsman_trainer.merge_ranks import ranked_merges
from herdsman_trainer.sentencepiece_proto import SPACE, Piece, PieceType, read_pieces

MODEL_MAX_LENGTH = 1000000000000000019884624838656
"""What transformers writes for "no limit"."""
TOKENIZER_CLASS = "PreTrainedTokenizerFast"
"""transformers 5 rebuilds a "LlamaTokenizer" with another normaliser; this class takes tokenizer.json as it is."""


def tokenizer_config(pad: str | None) -> dict[str, Any]:
    """Return tokenizer_config.json with the published settings: BOS added, EOS not, no spaces cleaned up."""
    return {
        "add_bos_token": True,
        "add_eos_token": False,
        "bos_token": "<s>",
        "clean_up_tokenization_spaces": False,
        "eos_token": "</s>",
        "legacy": True,
        "model_max_length": MODEL_MAX_LENGTH,
        "pad_token": pad,
        "tokenizer_class": TOKENIZER_CLASS,
        "unk_token": "<unk>",
    }


def special_tokens_map(pad: str | None) -> dict[str, str]:
    """Return special_tokens_map.json."""
    named = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    return named if pad is None else named | {"pad_token": pad}


def tokenizer_json(model: bytes, pad: str | None) -> dict[str, Any]:
    """Return tokenizer.json of a LLaMA-like model: BPE with byte fallback and a dummy prefix."""
    pieces = read_pieces(model)
    controls = (PieceType.CONTROL, PieceType.UNKNOWN)
    special = [index for index, piece in enumerate(pieces) if piece.type in controls or piece.text == pad]
    bos = next(index for index, piece in enumerate(pieces) if piece.text == "<s>")
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [_special_token(index, pieces[index]) for index in special],
        "normalizer": {
            "type": "Sequence",
            "normalizers": [
                {"type": "Prepend", "prepend": SPACE},
                {"type": "Replace", "pattern": {"String": " "}, "content": SPACE},
            ],
        },
        "pre_tokenizer": None,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [_special("<s>"), _sequence("A", 0)],
            "pair": [_special("<s>"), _sequence("A", 0), _special("<s>", 1), _sequence("B", 1)],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [bos], "tokens": ["<s>"]}},
        },
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
                {"type": "Strip", "content": " ", "start": 1, "stop": 0},
            ],
        },
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": "<unk>",
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": True,
            "ignore_merges": False,
            "vocab": {piece.text: index for index, piece in enumerate(pieces)},
            "merges": [list(pair) for pair in ranked_merges([piece for piece in pieces if piece.text != pad])],
        },
    }


def _special_token(index: int, piece: Piece) -> dict[str, Any]:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": index, "content": piece.text, **flags, "special": True}


def _special(token: str, type_id: int = 0) -> dict[str, Any]:
    return {"SpecialToken": {"id": token, "type_id": type_id}}


def _sequence(name: str, type_id: int) -> dict[str, Any]:
    return {"Sequence": {"id": name, "type_id": type_id}}
