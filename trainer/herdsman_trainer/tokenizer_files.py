"""The tokenizer files of a model directory: their names, and readers whose errors name the file and the remedy."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import sentencepiece
import tokenizers

from herdsman_trainer.errors import BadInput
from herdsman_trainer.sentencepiece_proto import read_pieces

SENTENCEPIECE_FILE = "tokenizer.model"
BPE_FILE = "tokenizer.json"
CONFIG_FILE = "tokenizer_config.json"
SPECIAL_TOKENS_FILE = "special_tokens_map.json"
ADDED_TOKENS_FILE = "added_tokens.json"
CHAT_TEMPLATE_FILE = "chat_template.jinja"
TOKENIZER_FILES = (
    SENTENCEPIECE_FILE,
    BPE_FILE,
    CONFIG_FILE,
    SPECIAL_TOKENS_FILE,
    ADDED_TOKENS_FILE,
    CHAT_TEMPLATE_FILE,
)
NAMED_ROLES = ("bos_token", "eos_token", "pad_token", "unk_token")


def read_sentencepiece(path: Path) -> bytes:
    """Return the bytes of a complete SentencePiece model; BadInput says what is wrong with the file."""
    try:
        model = path.read_bytes()
        if not model:
            raise ValueError("it is empty")
        read_pieces(model)
        sentencepiece.SentencePieceProcessor(model_proto=model)
    except (OSError, ValueError, RuntimeError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise _invalid(
            path,
            f"This is not a readable SentencePiece model: {why}.",
            "Download it again and compare its SHA-256; a Git LFS pointer or an HTML page is not the file itself. "
            "Llama 3 has no SentencePiece model: use its tokenizer.json.",
        ) from error
    return model


def read_bpe(path: Path) -> dict[str, Any]:
    """Return the document of a byte-level BPE `tokenizer.json`; BadInput says what is wrong with the file."""
    try:
        document: dict[str, Any] = json.loads(path.read_bytes())
        tokenizers.Tokenizer.from_str(json.dumps(document))
        model, pre_tokenizer = document["model"], document.get("pre_tokenizer")
    except Exception as error:  # the tokenizers library raises bare Exceptions
        raise _invalid(
            path, f"This is not a readable tokenizer.json: {error}.", "Download it again and compare its SHA-256."
        ) from error
    if model.get("type") != "BPE" or '"ByteLevel"' not in json.dumps(pre_tokenizer):
        raise _invalid(
            path,
            "This tokenizer.json is not a byte-level BPE.",
            "Put the SentencePiece tokenizer.model of the model beside it: it is read instead.",
        )
    document.setdefault("added_tokens", [])
    return document


def canonical_digest(path: Path) -> str:
    """Return the SHA-256 of a JSON file's content, whatever its layout: sorted keys, no spaces, UTF-8."""
    document = json.loads(path.read_bytes())
    canonical = json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(canonical.encode("utf-8", "surrogatepass")).hexdigest()


def read_named_tokens(directory: Path) -> dict[str, str]:
    """Return what the configuration calls bos_token, eos_token, pad_token and unk_token.

    `tokenizer_config.json` wins over `special_tokens_map.json`, but a null there does not hide the other's value.
    """
    named: dict[str, str] = {}
    for name in (SPECIAL_TOKENS_FILE, CONFIG_FILE):
        for role, value in read_json(directory / name).items():
            content = value.get("content") if isinstance(value, Mapping) else value
            if role in NAMED_ROLES and isinstance(content, str):
                named[role] = content
    return named


def read_added_tokens(directory: Path, first_id: int) -> dict[str, int]:
    """Return the tokens which the configuration of a SentencePiece tokenizer adds behind the pieces of the model."""
    decoder = read_json(directory / CONFIG_FILE).get("added_tokens_decoder", {})
    added = {str(value["content"]): int(index) for index, value in decoder.items()}
    added |= {str(token): int(index) for token, index in read_json(directory / ADDED_TOKENS_FILE).items()}
    return {token: index for token, index in added.items() if index >= first_id}


def read_json(path: Path) -> dict[str, Any]:
    """Return a JSON object, or an empty one where there is no file; BadInput where it is something else."""
    if not path.is_file():
        return {}
    try:
        document = json.loads(path.read_bytes())
        if not isinstance(document, dict):
            raise ValueError("it holds no JSON object")
    except ValueError as error:
        raise _invalid(path, f"This is not readable JSON: {error}.", "Download it again.") from error
    return document


def _invalid(path: Path, message: str, hint: str) -> BadInput:
    return BadInput(message, file=str(path), hint=hint)
