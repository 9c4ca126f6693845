"""Writes the byte-level BPE tokenizer that a GGUF file carries as Hugging Face files.

The metadata names the way text is split before BPE only by a word (`tokenizer.ggml.pre`), so the known words are listed
here; another one needs a tokenizer.json beside the GGUF file.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors

from herdsman_trainer.errors import BadInput
from herdsman_trainer.tokenizer_files import BPE_FILE, CHAT_TEMPLATE_FILE, CONFIG_FILE

CONTROL, USER_DEFINED = 3, 4
"""Values of tokenizer.ggml.token_type."""

LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""How Llama 3 splits text before BPE."""


def _byte_level(*first: Any, use_regex: bool) -> Any:
    last = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=use_regex)
    return pre_tokenizers.Sequence([*first, last]) if first else last


SPLITS: Mapping[str, Callable[[], Any]] = {
    "gpt-2": lambda: _byte_level(use_regex=True),
    "smollm": lambda: _byte_level(pre_tokenizers.Digits(individual_digits=True), use_regex=True),
    "llama-bpe": lambda: _byte_level(pre_tokenizers.Split(Regex(LLAMA3_SPLIT), "isolated"), use_regex=False),
}
"""The pre-tokenizers by the word GGUF has for them."""


def write_gguf_tokenizer(metadata: Mapping[str, Any], target: Path, source: Path) -> None:
    """Write tokenizer.json, tokenizer_config.json and the chat template from the metadata of a GGUF file.

    The class is PreTrainedTokenizerFast: under LlamaTokenizer transformers 5 would replace the splitting by
    SentencePiece's. Raises BadInput for a SentencePiece vocabulary and for an unknown way of splitting.
    """
    kind, split = metadata.get("tokenizer.ggml.model"), metadata.get("tokenizer.ggml.pre", "gpt-2")
    if kind != "gpt2" or split not in SPLITS:
        message = f"The file's tokenizer (model {kind!r}, pre {split!r}) cannot be rebuilt from it."
        hint = "Put the model's tokenizer.model or tokenizer.json with tokenizer_config.json beside the GGUF file."
        raise BadInput(message, file=str(source), hint=hint)
    tokens: list[str] = metadata["tokenizer.ggml.tokens"]
    types: list[int] = metadata.get("tokenizer.ggml.token_type", [1] * len(tokens))
    merges = [tuple(merge.split(" ")) for merge in metadata["tokenizer.ggml.merges"]]
    bpe = models.BPE({token: index for index, token in enumerate(tokens)}, merges, ignore_merges=split == "llama-bpe")
    tokenizer = Tokenizer(bpe)
    tokenizer.pre_tokenizer = SPLITS[split]()
    tokenizer.decoder = decoders.ByteLevel()
    special = [token for token, type_ in zip(tokens, types, strict=True) if type_ in (CONTROL, USER_DEFINED)]
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    named = _named_tokens(metadata, tokens)
    add_bos = bool(metadata.get("tokenizer.ggml.add_bos_token", split == "llama-bpe"))
    if add_bos and (bos := named.get("bos_token")):
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, tokens.index(bos))]
        )
    tokenizer.save(str(target / BPE_FILE))
    config = {
        **named,
        "add_bos_token": add_bos,
        "add_eos_token": bool(metadata.get("tokenizer.ggml.add_eos_token", False)),
        "clean_up_tokenization_spaces": False,
        "model_max_length": int(metadata.get("llama.context_length", 2048)),
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    (target / CONFIG_FILE).write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    if template := metadata.get("tokenizer.chat_template"):
        (target / CHAT_TEMPLATE_FILE).write_text(template, encoding="utf-8")


def _named_tokens(metadata: Mapping[str, Any], tokens: list[str]) -> dict[str, str]:
    roles = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
    ids = {role: metadata.get(f"tokenizer.ggml.{word}_token_id") for role, word in roles.items()}
    return {role: tokens[index] for role, index in ids.items() if index is not None}
