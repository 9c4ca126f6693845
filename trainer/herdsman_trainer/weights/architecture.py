"""Which tensors a model must have, by its config.json, as transformers would make it."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig

from herdsman_trainer.errors import BadInput
from herdsman_trainer.weights.merge import HEAD
from herdsman_trainer.weights.tensor_spec import TensorSpec, shape_text


def meta_model(config: Mapping[str, Any], where: str) -> Any:
    """Return the model of a config.json without memory for its weights; raises BadInput where there is none."""
    fields = {name: value for name, value in config.items() if name not in ("architectures", "auto_map")}
    try:
        settings = AutoConfig.for_model(**{"model_type": "llama", **fields})
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(settings)
    except (ValueError, KeyError, TypeError, RuntimeError, AttributeError) as error:
        hint = "Use a LLaMA-family model whose code is part of transformers; code in model directories is never run."
        raise BadInput(f"config.json does not describe a model: {error}", file=where, hint=hint) from None


def llama_config(**fields: Any) -> dict[str, Any]:
    """Return the config.json of a Llama with these figures, as transformers writes it."""
    config: dict[str, Any] = LlamaConfig(architectures=["LlamaForCausalLM"], **fields).to_diff_dict()
    return {**config, "tie_word_embeddings": fields.get("tie_word_embeddings", False)}


def expected_tensors(config: Mapping[str, Any], where: str) -> dict[str, tuple[int, ...]]:
    """Return names and shapes of the weights that a config.json calls for; a tied head is not one of them."""
    shapes = {name: tuple(tensor.shape) for name, tensor in meta_model(config, where).state_dict().items()}
    if config.get("tie_word_embeddings", False):
        shapes.pop(HEAD, None)
    return shapes


def check_tensors(specs: Iterable[TensorSpec], config: Mapping[str, Any], where: str) -> None:
    """Raise BadInput unless the tensors are exactly those that strict loading needs, in number and shape."""
    expected = expected_tensors(config, where)
    found = {spec.name: spec.shape for spec in specs}
    hint = "Weights and config.json are of different models, or files are missing: copy the model again."
    if missing := sorted(expected.keys() - found.keys()):
        message = f"{len(missing)} tensors are missing that config.json calls for, such as {missing[0]}."
        raise BadInput(message, file=where, hint=hint)
    if extra := sorted(found.keys() - expected.keys()):
        message = f"{len(extra)} tensors are there that config.json does not know, such as {extra[0]}."
        raise BadInput(message, file=where, hint=hint)
    for name, shape in expected.items():
        if found[name] != shape:
            message = f"{name} is {shape_text(found[name])} and config.json calls for {shape_text(shape)}."
            raise BadInput(message, file=where, hint=hint)
