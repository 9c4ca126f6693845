"""Published weights and tokenizers by the SHA-256 of their files, so that a file says by itself what it is.

The table holds LLaMA's own files and those of the Chinese-LLaMA-Alpaca project. Files made by others from the same
weights have other digests: a checkpoint's bytes depend on the version of the library that wrote it.
"""

import json
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Literal

Form = Literal["meta", "huggingface", "adapter", "merged", "tokenizer"]
WORDS: dict[Form, str] = {
    "meta": "Meta's {file}",
    "huggingface": "{file} of the Hugging Face form",
    "adapter": "the LoRA in {file}",
    "merged": "{file} of the merged model",
    "tokenizer": "the tokenizer {file}",
}
SHAPES = {(4096, 32): "7B", (5120, 40): "13B", (6656, 60): "33B"}
"""The published sizes by hidden size and number of layers."""


@dataclass(frozen=True)
class Published:
    """A published file."""

    sha256: str
    model: str
    """Such as LLaMA-7B or Chinese-Alpaca-Plus-13B."""
    form: Form
    file: str

    def __str__(self) -> str:
        return f"{self.model} ({WORDS[self.form].format(file=self.file)})"


def recognise(sha256: str) -> Published | None:
    """Return the published file with this digest, or None."""
    return _table().get(sha256)


def resembles(file: str, form: Form, hidden_size: int, layers: int) -> Published | None:
    """Return the first file of that name among the published ones of a model of that shape, or None."""
    size = SHAPES.get((hidden_size, layers))
    matching = (one for one in _table().values() if one.file == file and one.form == form)
    return next((one for one in matching if size and one.model.endswith(f"-{size}")), None)


@cache
def _table() -> dict[str, Published]:
    text = (resources.files(__package__) / "published_digests.json").read_text(encoding="utf-8")
    return {entry["sha256"]: Published(**entry) for entry in json.loads(text)}
