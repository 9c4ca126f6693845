"""Keeps config.json, embedding and tokenizer of one opinion about the vocabulary."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from herdsman_trainer.errors import BadInput
from herdsman_trainer.weights.adapters import Adapter
from herdsman_trainer.weights.merge import EMBEDDING, HEAD, MergePlan
from herdsman_trainer.weights.tensor_spec import TensorSpec, dtype_name


def is_tied(config: Mapping[str, Any]) -> bool:
    """Whether config.json ties the head to the embedding; LLaMA's default is that it does not."""
    return bool(config.get("tie_word_embeddings", False))


def check_base(specs: Mapping[str, TensorSpec], config: Mapping[str, Any], where: str) -> None:
    """Raise BadInput where config.json and the embedding's rows differ, or a tensor of the vocabulary is missing."""
    embedding, head = specs.get(EMBEDDING), specs.get(HEAD)
    if embedding is None:
        hint = "Only LLaMA-family models in the Hugging Face layout are supported."
        raise BadInput(f"The model has no tensor {EMBEDDING}.", file=where, hint=hint)
    if head is None and not is_tied(config):
        hint = 'Set "tie_word_embeddings": true in config.json if the head is meant to be the embedding.'
        raise BadInput(f"The model has no {HEAD} and config.json does not tie it.", file=where, hint=hint)
    if config.get("vocab_size") != embedding.shape[0]:
        message = (
            f"config.json says vocab_size = {config.get('vocab_size')} and {EMBEDDING} has {embedding.shape[0]} rows."
        )
        hint = f"Weights and config.json are of different models, or vocab_size must become {embedding.shape[0]}."
        raise BadInput(message, file=where, hint=hint)
    if head is not None and not is_tied(config) and head.shape[0] != embedding.shape[0]:
        message = f"{EMBEDDING} has {embedding.shape[0]} rows and {HEAD} has {head.shape[0]}."
        raise BadInput(message, file=where, hint="The model is damaged: resize both or copy it again.")


def check_tokenizer(rows: int, pieces: int, *, model: str, tokenizer: str, adapters: Sequence[Adapter] = ()) -> None:
    """Raise BadInput where an embedding of `rows` rows and a tokenizer of `pieces` pieces meet and differ."""
    if rows == pieces:
        return
    message = f"The embedding of {model} has {rows} rows and the tokenizer {tokenizer} has {pieces} pieces."
    if pieces > rows and adapters and all(adapter.embedding_rows is None for adapter in adapters):
        hint = (
            "No adapter holds an embedding, so the new pieces have no rows: "
            "train with trainFully: [embed_tokens, lm_head], or use the base's tokenizer."
        )
    elif abs(pieces - rows) == 1:
        hint = "One piece apart is mostly [PAD]: use the tokenizer the embedding was trained with (padToken on or off)."
    elif pieces > rows:
        hint = "Use the tokenizer the model was trained with, or train its embedding with this one first."
    else:
        hint = "Use the tokenizer the model was trained with; a smaller one would leave rows without a piece."
    raise BadInput(message, reason="ArtifactMismatch", file=tokenizer, hint=hint)


def merged_config(config: Mapping[str, Any], plan: MergePlan, pad_id: int | None) -> dict[str, Any]:
    """Return config.json of the merged model: vocabulary, tying and type are those of its tensors."""
    merged = dict(config)
    merged["vocab_size"] = plan.vocab_size
    merged["tie_word_embeddings"] = plan.tied
    name = dtype_name(main_dtype(plan.tensors[EMBEDDING].spec.dtype))
    merged["dtype"] = name
    if "torch_dtype" in merged:
        merged["torch_dtype"] = name
    if pad_id is not None:
        merged["pad_token_id"] = pad_id
    merged.pop("_name_or_path", None)
    return merged


def main_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the type a model is said to have, from that of its embedding; raises BadInput where it is no float."""
    if not dtype.is_floating_point:
        raise BadInput(f"The embedding is stored as {dtype_name(dtype)}; only floating-point weights can be used.")
    return dtype
