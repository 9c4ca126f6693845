"""Random weights, each tensor from its own seed, so that they need no memory and depend on nothing but their names."""

import hashlib
from collections.abc import Iterator
from math import prod
from pathlib import Path

import torch

from herdsman.api.v1alpha1.model_import import Initialise
from herdsman_trainer.errors import BadInput
from herdsman_trainer.tokenizers import copy_tokenizer, load_tokenizer
from herdsman_trainer.weights.architecture import expected_tensors, llama_config
from herdsman_trainer.weights.merge import BLOCK_VALUES
from herdsman_trainer.weights.model_writing import Announce, WrittenModel, announced, write_configs
from herdsman_trainer.weights.tensor_spec import TensorSpec, dtype_name
from herdsman_trainer.weights.writing import write_model_weights

STANDARD_DEVIATION = 0.02
"""LLaMA's initializer_range."""


def write_initial_model(
    wanted: Initialise, tokenizer_source: Path, target: Path, dtype: torch.dtype, announce: Announce
) -> WrittenModel:
    """Write a Llama with random weights into an empty directory; its vocabulary is the tokenizer's.

    Raises BadInput, with the field of the spec, for heads of odd width, which cannot be rotated.
    """
    field = "spec.source.initialise"
    if wanted.hidden_size % (2 * wanted.attention_heads):
        message = f"{field}.hiddenSize {wanted.hidden_size} does not give {wanted.attention_heads} heads of even width."
        raise BadInput(message, hint=f"Make it a multiple of {2 * wanted.attention_heads}, twice attentionHeads.")
    copy_tokenizer(tokenizer_source, target)
    tokenizer = load_tokenizer(target)
    config = llama_config(
        vocab_size=tokenizer.vocab_size,
        hidden_size=wanted.hidden_size,
        intermediate_size=wanted.intermediate_size,
        num_hidden_layers=wanted.layers,
        num_attention_heads=wanted.attention_heads,
        num_key_value_heads=wanted.key_value_heads or wanted.attention_heads,
        max_position_embeddings=wanted.max_position_embeddings,
        rope_theta=wanted.rope_theta,
        tie_word_embeddings=wanted.tie_embeddings,
        dtype=dtype_name(dtype),
    )
    specs = [TensorSpec(name, dtype, shape) for name, shape in expected_tensors(config, field).items()]
    blocks = announced(lambda spec: initial_blocks(spec, wanted.seed), specs, announce)
    digests = write_model_weights(target, specs, blocks)
    write_configs(target, config, tokenizer)
    parameters = sum(spec.nbytes for spec in specs) // dtype.itemsize
    figures = {"tensors": len(specs), "parameters": parameters, "seed": wanted.seed}
    return WrittenModel(tokenizer.vocab_size, tokenizer, dtype, figures, digests)


def initial_blocks(spec: TensorSpec, seed: int) -> Iterator[torch.Tensor]:
    """Yield a tensor as blocks of rows: ones for the norms, else normal(0, 0.02) drawn in float32.

    The same name, shape and seed give the same values in every process and type.
    """
    generator = torch.Generator().manual_seed(_seed(spec.name, seed))
    step = max(1, BLOCK_VALUES * spec.shape[0] // prod(spec.shape))
    for start in range(0, spec.shape[0], step):
        shape = (min(step, spec.shape[0] - start), *spec.shape[1:])
        if len(shape) == 1:
            yield torch.ones(shape, dtype=spec.dtype)
        else:
            yield (torch.randn(shape, generator=generator) * STANDARD_DEVIATION).to(spec.dtype)


def _seed(name: str, seed: int) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed} {name}".encode()).digest()[:8], "little") >> 1
