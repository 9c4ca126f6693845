"""Loads LLaMA-family models for training: frozen weights in the type of the products, trained matrices in float32."""

import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.utils import logging as transformers_logging

from herdsman_trainer.errors import BadInput
from herdsman_trainer.heartbeat import HEART
from herdsman_trainer.weights.merge import EMBEDDING, HEAD
from herdsman_trainer.weights.reading import open_model_weights, read_json_object
from herdsman_trainer.weights.tensor_spec import TensorSpec
from herdsman_trainer.weights.vocabulary import check_base

CONFIG_FILE = "config.json"
DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

_log = logging.getLogger(__name__)


def compute_dtype(precision: str, device: str) -> torch.dtype:
    """Return the type of the matrix products for recipe.precision.

    fp16 needs loss scaling, which is for GPUs; on the CPU it is computed in float32, which is slower and more exact.
    """
    if precision == "fp16" and device == "cpu":
        _log.warning("recipe.precision fp16 needs a GPU: on the CPU the run is computed in float32.")
        return torch.float32
    return DTYPES[precision]


def load_model(directory: Path, dtype: torch.dtype) -> LlamaForCausalLM:
    """Load a Hugging Face Llama directory with every floating-point weight in `dtype`, all of them frozen.

    BadInput, naming the file, where it is another architecture, where weights are missing or do not fit config.json, or
    where config.json, embedding and head disagree about the vocabulary. Code of the directory never runs.
    """
    specs = _shapes(directory)[1]
    transformers_logging.disable_progress_bar()
    with HEART.handling(sum(spec.nbytes for spec in specs.values())):
        model, loading = LlamaForCausalLM.from_pretrained(
            directory,
            dtype=dtype,
            local_files_only=True,
            use_safetensors=True,
            attn_implementation="sdpa",
            output_loading_info=True,
        )
    _check_loaded(loading, directory)
    return _frozen(model)


def load_shapes(directory: Path, dtype: torch.dtype) -> LlamaForCausalLM:
    """Return the model that load_model returns, on the device `meta`: all of its shapes and none of its values.

    Reads config.json and the headers of the weights only. BadInput as from load_model.
    """
    return _frozen(_shapes(directory)[0].to(dtype))


def _shapes(directory: Path) -> tuple[LlamaForCausalLM, Mapping[str, TensorSpec]]:
    """Return the model of config.json on the device `meta` and what the files declare, after checking that they fit.

    The loader itself would only raise an error of its own where shapes differ.
    """
    specs = _checked_specs(directory)
    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig.from_pretrained(directory, local_files_only=True))
    expected = {name: tuple(weight.shape) for name, weight in model.state_dict().items()}
    if is_tied(model) and HEAD not in specs:
        del expected[HEAD]
    stored = {name: spec.shape for name, spec in specs.items() if not name.endswith("rotary_emb.inv_freq")}
    found = {
        "missing_keys": expected.keys() - stored.keys(),
        "unexpected_keys": stored.keys() - expected.keys(),
        "mismatched_keys": [name for name in expected.keys() & stored.keys() if expected[name] != stored[name]],
    }
    _check_loaded(found, directory)
    return model, specs


def _checked_specs(directory: Path) -> Mapping[str, TensorSpec]:
    """Return what the headers of the weights declare, after checking that it is a LLaMA with one vocabulary."""
    path = directory / CONFIG_FILE
    config = read_json_object(path, remedy="Name a Hugging Face model directory.")
    if config.get("model_type") != "llama":
        raise BadInput(
            f"The model is of the type {config.get('model_type')!r}; only llama is supported.",
            file=str(path),
            hint="Use a LLaMA-family model in the Hugging Face layout.",
        )
    with open_model_weights(directory) as weights:
        check_base(weights.specs, config, str(path))
        return weights.specs


def _frozen(model: LlamaForCausalLM) -> LlamaForCausalLM:
    model.config.use_cache = False
    model.requires_grad_(False)
    embedding = model.get_input_embeddings()
    embedding.padding_idx = None  # else the row of the pad id, often that of EOS, would never learn
    return model


def _check_loaded(loading: dict[str, Any], directory: Path) -> None:
    for what in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        names = sorted(str(name) for name in loading.get(what) or ())
        if names:
            raise BadInput(
                f"The weights do not fit config.json: {len(names)} {what.replace('_', ' ')}, such as {names[0]}.",
                file=str(directory),
                hint="Weights and config.json are of different models, or a shard is missing: copy the model again.",
            )


def is_tied(model: LlamaForCausalLM) -> bool:
    """Whether the head is the embedding's matrix."""
    return model.lm_head.weight is model.model.embed_tokens.weight


def read_matrix(directory: Path, name: str) -> torch.Tensor:
    """Read one matrix of a model in float32, whatever the type of the loaded model is.

    A tied model's head is its embedding.
    """
    with open_model_weights(directory) as weights:
        stored = name if name in weights.specs else EMBEDDING
        return weights.tensor(stored).to(torch.float32, copy=True)


def set_matrix(model: LlamaForCausalLM, name: str, weight: torch.Tensor) -> None:
    """Put a matrix in the place of a weight, on the device of the old one and in its own type.

    For the embedding and the head it may have more rows than the old one; a tied head follows the embedding.
    """
    path, _, attribute = name.rpartition(".")
    module: Any = model.get_submodule(path)
    tied = is_tied(model)
    old = getattr(module, attribute)
    new = torch.nn.Parameter(weight.to(old.device), requires_grad=False)
    setattr(module, attribute, new)
    if name == EMBEDDING:
        module.num_embeddings = new.shape[0]
        model.config.vocab_size = new.shape[0]
        model.vocab_size = new.shape[0]
        if tied:
            model.lm_head.weight = new
    if name == HEAD or (name == EMBEDDING and tied):
        model.lm_head.out_features = new.shape[0]


def use_gradient_checkpointing(model: LlamaForCausalLM) -> None:
    """Recompute activations of each layer in the backward pass.

    The inputs of the layers are made to require gradients, so that it also works with a frozen embedding.
    """
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    if not model.model.embed_tokens.weight.requires_grad:
        model.enable_input_require_grads()


def parameter_counts(model: torch.nn.Module) -> tuple[int, int]:
    """Return (trainable, all) parameters; a matrix that is used twice counts once."""
    sizes = [(item.requires_grad, math.prod(item.shape)) for item in model.parameters()]
    return sum(size for trainable, size in sizes if trainable), sum(size for _, size in sizes)
