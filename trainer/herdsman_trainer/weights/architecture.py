"""Which tensors a model must have, by its config.json, as transformers would make it."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch

from herdsman_trainer.errors import BadInput
from herdsman_trainer.weights.merge import HEAD
from herdsman_trainer.weights.tensor_spec import TensorSpec, shape_text

LLAMA_DEFAULTS = {
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
}
"""What transformers takes for a figure that config.json leaves out."""
_NO_MODEL = (ValueError, KeyError, TypeError, RuntimeError, AttributeError)
"""What transformers raises for a config.json that describes no model."""


def model_settings(config: Mapping[str, Any], where: str) -> Any:
    """Return a config.json as transformers reads it; raises BadInput where it describes no model."""
    from transformers import AutoConfig

    fields = {name: value for name, value in config.items() if name not in ("architectures", "auto_map")}
    try:
        return AutoConfig.for_model(**{"model_type": "llama", **fields})
    except _NO_MODEL as error:
        raise _no_model(error, where) from None


def meta_model(config: Mapping[str, Any], where: str) -> Any:
    """Return the model of a config.json without memory for its weights; raises BadInput where there is none."""
    from transformers import AutoModelForCausalLM

    settings = model_settings(config, where)
    try:
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(settings)
    except _NO_MODEL as error:
        raise _no_model(error, where) from None


def _no_model(error: object, where: str) -> BadInput:
    hint = "Use a LLaMA-family model whose code is part of transformers; code in model directories is never run."
    return BadInput(f"config.json does not describe a model: {error}", file=where, hint=hint)


def llama_config(**fields: Any) -> dict[str, Any]:
    """Return the config.json of a Llama with these figures, as transformers writes it."""
    from transformers import LlamaConfig

    config: dict[str, Any] = LlamaConfig(architectures=["LlamaForCausalLM"], **fields).to_diff_dict()
    return {**config, "tie_word_embeddings": fields.get("tie_word_embeddings", False)}


def llama_tensors(config: Mapping[str, Any], where: str) -> dict[str, tuple[int, ...]]:
    """Return what expected_tensors does, for a Llama, from its figures alone: transformers takes 100 MB to say it."""
    figures = {name: config.get(name, default) for name, default in LLAMA_DEFAULTS.items()}
    if odd := [name for name, value in figures.items() if type(value) is not int or value < 1]:
        raise _no_model(f"{odd[0]} is {figures[odd[0]]!r}", where)
    rows, width, inner, layers, heads = figures.values()
    kv_heads, head = config.get("num_key_value_heads") or heads, config.get("head_dim") or width // heads
    attention = {"q": (heads * head, width), "k": (kv_heads * head, width), "v": (kv_heads * head, width)}
    linear = {f"self_attn.{name}_proj": shape for name, shape in attention.items()}
    linear |= {"self_attn.o_proj": (width, heads * head)}
    feed_forward = {"mlp.gate_proj": (inner, width), "mlp.up_proj": (inner, width), "mlp.down_proj": (width, inner)}
    biased = [*(linear if config.get("attention_bias") else ()), *(feed_forward if config.get("mlp_bias") else ())]
    block: dict[str, tuple[int, ...]] = {f"{name}.weight": shape for name, shape in (linear | feed_forward).items()}
    block |= {f"{name}.bias": (shape[0],) for name, shape in (linear | feed_forward).items() if name in biased}
    block |= {"input_layernorm.weight": (width,), "post_attention_layernorm.weight": (width,)}
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (rows, width)}
    for layer in range(layers):
        shapes |= {f"model.layers.{layer}.{name}": shape for name, shape in block.items()}
    shapes["model.norm.weight"] = (width,)
    return shapes if config.get("tie_word_embeddings", False) else {**shapes, HEAD: (rows, width)}


def expected_tensors(config: Mapping[str, Any], where: str) -> dict[str, tuple[int, ...]]:
    """Return names and shapes of the weights that a config.json calls for; a tied head is not one of them."""
    if config.get("model_type", "llama") == "llama":
        return llama_tensors(config, where)
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
