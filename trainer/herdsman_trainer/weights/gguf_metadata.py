"""What a GGUF file says about its model besides the weights: figures, rotary embedding, tokenizer, chat template."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import pi
from typing import Any

import numpy
from gguf import GGML_QUANT_VERSION, GGUFWriter, LlamaFileType, RopeScalingType, size_label

from herdsman_trainer.errors import BadInput
from herdsman_trainer.weights.gguf_vocabulary import GgufVocabulary

ROPE_FACTORS = "rope_freqs.weight"
"""The tensor by which llama.cpp divides the frequencies of the rotary embedding."""
TURN_ENDS: Mapping[str, str] = {"llama-3": "<|eot_id|>", "chatml": "<|im_end|>"}
"""The token that ends a turn, where a prompt template has another than EOS."""
WITH_BOS = frozenset({"alpaca", "llama-2"})
"""The prompt templates whose prompts begin with BOS."""


@dataclass(frozen=True)
class GgufDescription:
    """The facts of a model that all its GGUF files share."""

    name: str
    config: Mapping[str, Any]
    """config.json of the merged model."""
    vocabulary: GgufVocabulary
    parameters: int
    template: str | None = None
    """The name of the prompt template, where there is one."""
    chat_template: str | None = None
    """Jinja."""

    @property
    def heads(self) -> int:
        """Number of query heads."""
        return int(self.config["num_attention_heads"])

    @property
    def key_heads(self) -> int:
        """Number of key and value heads."""
        return int(self.config.get("num_key_value_heads") or self.heads)

    @property
    def head_size(self) -> int:
        """Rows of one head."""
        return int(self.config.get("head_dim") or self.config["hidden_size"] // self.heads)

    @property
    def layers(self) -> int:
        """Number of blocks."""
        return int(self.config["num_hidden_layers"])

    @property
    def context(self) -> int:
        """Positions the model was made for; early conversions of LLaMA do not say."""
        return int(self.config.get("max_position_embeddings", 2048))

    @property
    def add_bos(self) -> bool:
        """Whether llama.cpp puts BOS before a prompt: as the prompt template has it, or else as the tokenizer."""
        return self.vocabulary.add_bos if self.template is None else self.template in WITH_BOS

    @property
    def tied(self) -> bool:
        """Whether the head is the embedding."""
        return bool(self.config.get("tie_word_embeddings", False))


def describe(writer: GGUFWriter, model: GgufDescription, file_type: LlamaFileType) -> None:
    """Put everything but the tensors into a file's header."""
    writer.add_type("model")
    writer.add_name(model.name)
    writer.add_size_label(size_label(model.parameters, model.parameters, 0, 0))
    writer.add_file_type(int(file_type))
    writer.add_quantization_version(GGML_QUANT_VERSION)
    config = model.config
    writer.add_vocab_size(len(model.vocabulary.tokens))
    writer.add_context_length(model.context)
    writer.add_embedding_length(int(config["hidden_size"]))
    writer.add_feed_forward_length(int(config["intermediate_size"]))
    writer.add_block_count(model.layers)
    writer.add_head_count(model.heads)
    writer.add_head_count_kv(model.key_heads)
    writer.add_key_length(model.head_size)
    writer.add_value_length(model.head_size)
    writer.add_layer_norm_rms_eps(float(config.get("rms_norm_eps", 1e-6)))
    writer.add_rope_dimension_count(model.head_size)
    rope = rope_settings(config)
    writer.add_rope_freq_base(float(rope["rope_theta"]))
    if rope["rope_type"] == "linear":
        writer.add_rope_scaling_type(RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(float(rope["factor"]))
    _describe_vocabulary(writer, model)


def _describe_vocabulary(writer: GGUFWriter, model: GgufDescription) -> None:
    vocabulary = model.vocabulary
    writer.add_tokenizer_model(vocabulary.model)
    writer.add_tokenizer_pre(vocabulary.pre)
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types(vocabulary.types)
    if vocabulary.scores is not None:
        writer.add_token_scores(vocabulary.scores)
    if vocabulary.merges is not None:
        writer.add_token_merges(vocabulary.merges)
    if vocabulary.bos_id is not None:
        writer.add_bos_token_id(vocabulary.bos_id)
    writer.add_eos_token_id(vocabulary.eos_id)
    end = TURN_ENDS.get(model.template or "")
    if end in vocabulary.tokens:
        writer.add_eot_token_id(vocabulary.tokens.index(end))
    if vocabulary.unknown_id is not None:
        writer.add_unk_token_id(vocabulary.unknown_id)
    if vocabulary.pad_id is not None:
        writer.add_pad_token_id(vocabulary.pad_id)
    writer.add_add_bos_token(model.add_bos)
    writer.add_add_eos_token(False)
    writer.add_add_space_prefix(vocabulary.add_space_prefix)
    if model.chat_template:
        writer.add_chat_template(model.chat_template)


def rope_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the rotary embedding's settings with rope_type and rope_theta, whichever way config.json spells them.

    Raises BadInput for a scaling that llama.cpp would compute differently.
    """
    given = dict(config.get("rope_parameters") or config.get("rope_scaling") or {})
    kind = given.get("rope_type") or given.get("type") or "default"
    theta = given.get("rope_theta", config.get("rope_theta", 10000.0))
    if kind not in ("default", "linear", "llama3"):
        message = f"The rotary embedding is scaled as {kind!r}, which the GGUF output does not express."
        hint = "Choose the output huggingface, or set rope_parameters in config.json to default, linear or llama3."
        raise BadInput(message, file="config.json", hint=hint)
    return {**given, "rope_type": kind, "rope_theta": float(theta)}


def rope_factors(model: GgufDescription) -> "numpy.ndarray[Any, numpy.dtype[numpy.float32]] | None":
    """Return what the frequencies of Llama 3.1's rotary embedding are divided by; None where they are not scaled.

    Long waves are stretched by `factor`, short ones stay, and between the two the frequency is interpolated (Llama 3.1,
    as `rope_type: llama3` of transformers defines it). The result has one float32 for each pair of a head.
    """
    rope = rope_settings(model.config)
    if rope["rope_type"] != "llama3":
        return None
    size = model.head_size
    frequencies = rope["rope_theta"] ** (-numpy.arange(0, size, 2, dtype=numpy.float64) / size)
    turns = float(rope["original_max_position_embeddings"]) * frequencies / (2 * pi)
    low, high = float(rope["low_freq_factor"]), float(rope["high_freq_factor"])
    kept = numpy.clip((turns - low) / (high - low), 0.0, 1.0)
    divisors: Any = 1.0 / ((1.0 - kept) / float(rope["factor"]) + kept)
    return divisors.astype(numpy.float32)  # type: ignore[no-any-return]
