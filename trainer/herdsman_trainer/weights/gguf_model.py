"""Reads a GGUF file as a Hugging Face Llama: configuration from its metadata, weights de-quantised row by row.

The layout is llama.cpp's: rows of the query and key projections are interleaved for its rotary embedding, which
`_row_order` undoes; values of quantised types are computed by ggml's own Python package.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import gguf
import numpy
import torch

from herdsman_trainer.errors import BadInput
from herdsman_trainer.weights.architecture import llama_config
from herdsman_trainer.weights.gguf_rope import FACTORS, FROM_SOURCE, rope_parameters
from herdsman_trainer.weights.merge import BLOCK_VALUES, EMBEDDING, HEAD
from herdsman_trainer.weights.tensor_spec import TensorSpec, dtype_name

GLOBAL_NAMES = {"token_embd.weight": EMBEDDING, "output.weight": HEAD, "output_norm.weight": "model.norm.weight"}
LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


@dataclass(frozen=True)
class GgufModel:
    """A GGUF file of the architecture llama."""

    path: Path
    metadata: dict[str, Any]
    """Everything the file says besides its tensors."""
    tensors: dict[str, Any]
    """gguf.ReaderTensor by Hugging Face name."""
    divisors: Any | None = None
    """Of the rotary embedding's frequencies, float32, where the file has them."""

    @property
    def tied(self) -> bool:
        """Whether the head is the embedding: then the file has no output.weight."""
        return HEAD not in self.tensors

    @property
    def vocab_size(self) -> int:
        """Rows of the embedding; raises BadInput where there is none."""
        if EMBEDDING not in self.tensors:
            raise BadInput("The file has no token_embd.weight.", file=str(self.path), hint=FROM_SOURCE)
        return _shape(self.tensors[EMBEDDING])[0]

    @property
    def quantisation(self) -> dict[str, int]:
        """How many tensors have which type, such as {"Q4_1": 210, "F32": 61}."""
        names = [tensor.tensor_type.name for tensor in self.tensors.values()]
        return {name: names.count(name) for name in sorted(set(names))}

    def specs(self, dtype: torch.dtype) -> list[TensorSpec]:
        """Return names and shapes as transformers has them, in the given type."""
        return [TensorSpec(name, dtype, _shape(tensor)) for name, tensor in self.tensors.items()]

    def config(self, dtype: torch.dtype) -> dict[str, Any]:
        """Return config.json; raises BadInput where the metadata lacks a figure, or for an unknown rotary scaling."""
        heads = self._number("attention.head_count")
        width = self._number("embedding_length")
        return llama_config(
            vocab_size=self.vocab_size,
            hidden_size=int(width),
            intermediate_size=int(self._number("feed_forward_length")),
            num_hidden_layers=int(self._number("block_count")),
            num_attention_heads=int(heads),
            num_key_value_heads=int(self._number("attention.head_count_kv", heads)),
            head_dim=int(self._number("attention.key_length", self._number("rope.dimension_count", width // heads))),
            max_position_embeddings=int(self._number("context_length")),
            rms_norm_eps=_decimal(self._number("attention.layer_norm_rms_epsilon")),
            rope_parameters=rope_parameters(
                self.metadata, self.divisors, _decimal(self._number("rope.freq_base", 10000.0)), self.path
            ),
            tie_word_embeddings=self.tied,
            dtype=dtype_name(dtype),
        )

    def blocks(self, spec: TensorSpec) -> Iterator[torch.Tensor]:
        """Yield the values of a tensor as blocks of rows in the spec's type."""
        tensor = self.tensors[spec.name]
        order = self._row_order(spec)
        step = max(1, BLOCK_VALUES * spec.shape[0] // prod(spec.shape))
        for start in range(0, spec.shape[0], step):
            rows = tensor.data[order[start : start + step]] if order is not None else tensor.data[start : start + step]
            values = gguf.quants.dequantize(rows, tensor.tensor_type)
            yield torch.from_numpy(numpy.array(values, dtype=numpy.float32, order="C")).to(spec.dtype)

    def _row_order(self, spec: TensorSpec) -> Any:
        """Where transformers' rows lie in the file: pairs (i, i + d/2) of a head are neighbours there."""
        if not spec.name.endswith(("q_proj.weight", "k_proj.weight")):
            return None
        heads = self._number("attention.head_count")
        if spec.name.endswith("k_proj.weight"):
            heads = self._number("attention.head_count_kv", heads)
        rows = numpy.arange(spec.shape[0])
        return rows.reshape(int(heads), -1, 2).swapaxes(1, 2).reshape(-1)

    def _number(self, key: str, default: float | None = None) -> float:
        value = self.metadata.get(f"llama.{key}", default)
        if isinstance(value, bool) or not isinstance(value, int | float):
            message = f"The metadata says llama.{key} = {value!r} where a number is needed."
            raise BadInput(message, file=str(self.path), hint=FROM_SOURCE)
        return value


def open_gguf(path: Path) -> GgufModel:
    """Open a GGUF file; raises BadInput for anything but a whole file of a plain Llama."""
    try:
        reader = gguf.GGUFReader(path)
        metadata = {name: field.contents() for name, field in reader.fields.items()}
    except Exception as error:  # noqa: BLE001 - a cut file ends in whatever numpy says about its shape
        hint = "Copy the file again and compare its SHA-256 with the source."
        raise BadInput(f"The file is not a whole GGUF file: {error}", file=str(path), hint=hint) from None
    if (kind := metadata.get("general.architecture")) != "llama":
        message = f"The file holds a model of the architecture {kind!r}; only llama is supported."
        raise BadInput(message, file=str(path), hint="Choose a LLaMA-family model.")
    if metadata.get("split.count", 1) > 1:
        message = "The file is one of several parts of a split model."
        raise BadInput(message, file=str(path), hint="Join the parts with llama-gguf-split --merge first.")
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    factors = tensors.pop(FACTORS, None)
    divisors = gguf.quants.dequantize(factors.data, factors.tensor_type) if factors is not None else None
    return GgufModel(path, metadata, {_name(name, path): tensor for name, tensor in tensors.items()}, divisors)


def _name(name: str, path: Path) -> str:
    """Return the Hugging Face name of a tensor."""
    if name in GLOBAL_NAMES:
        return GLOBAL_NAMES[name]
    match name.split("."):
        case ["blk", layer, part, "weight"] if part in LAYER_NAMES and layer.isdecimal():
            return f"model.layers.{layer}.{LAYER_NAMES[part]}.weight"
    raise BadInput(f"The file has a tensor {name}, which a plain Llama has not.", file=str(path), hint=FROM_SOURCE)


def _shape(tensor: Any) -> tuple[int, ...]:
    """Return the shape with rows first; GGUF lists the fastest-running dimension first."""
    return tuple(int(size) for size in reversed(tensor.shape))


def _decimal(value: float) -> float:
    """Return the shortest decimal that is the same number in float32: 1e-05 instead of 9.999999747378752e-06."""
    return float(str(numpy.float32(value)))
