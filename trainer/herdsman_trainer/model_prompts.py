"""Which prompts a model wants: its prompt template, and whether plain text starts with BOS."""

import json
from pathlib import Path
from typing import Any

from herdsman_trainer.errors import BadInput
from herdsman_trainer.prompts import TEMPLATES, PromptTemplate
from herdsman_trainer.tokenizer_files import BPE_FILE, CHAT_TEMPLATE_FILE, CONFIG_FILE, SENTENCEPIECE_FILE
from herdsman_trainer.tokenizers import TextTokenizer

SIGNS = {
    "llama-3": ("<|start_header_id|>", "<|eot_id|>"),
    "chatml": ("<|im_start|>", "<|im_end|>"),
    "llama-2": ("[INST]",),
    "alpaca": ("### Response:",),
}
"""What a chat template written by others contains, by the name we have for it."""


def choose_template(named: str | None, directory: Path, tokenizer: TextTokenizer) -> PromptTemplate:
    """Return the prompt template: the one named by the spec or the model's manifest, or the one its files show.

    A chat template of the model's own is only recognised, never run: it would turn text into control tokens.
    """
    if named:
        if named not in TEMPLATES:
            hint = f"Set spec.template to one of {', '.join(TEMPLATES)}."
            raise BadInput(f"The model was tuned with the prompt template {named!r}, which is unknown.", hint=hint)
        return TEMPLATES[named]
    written = _own_chat_template(directory)
    for name, signs in SIGNS.items():
        controls = [sign for sign in signs if sign.startswith("<|")]
        present = all(tokenizer.control_id(control) is not None for control in controls)
        if present and (controls or any(sign in written for sign in signs)):
            return TEMPLATES[name]
    return TEMPLATES["alpaca"]


def starts_with_bos(directory: Path, tokenizer: TextTokenizer) -> bool:
    """Whether plain text starts with BOS: as tokenizer_config.json says, else as LLaMA's SentencePiece models do.

    A byte-level BPE tokenizer says it by a post-processor that names BOS.
    """
    stated = _tokenizer_config(directory).get("add_bos_token")
    if stated is not None or tokenizer.bos_id is None:
        return bool(stated) and tokenizer.bos_id is not None
    if (directory / SENTENCEPIECE_FILE).is_file():
        return True
    post_processor = json.loads((directory / BPE_FILE).read_bytes()).get("post_processor")
    return '"SpecialToken"' in json.dumps(post_processor)


def _own_chat_template(directory: Path) -> str:
    path = directory / CHAT_TEMPLATE_FILE
    if path.is_file():
        return path.read_text(encoding="utf-8")
    return str(_tokenizer_config(directory).get("chat_template", ""))


def _tokenizer_config(directory: Path) -> dict[str, Any]:
    path = directory / CONFIG_FILE
    config = json.loads(path.read_bytes()) if path.is_file() else {}
    return config if isinstance(config, dict) else {}
