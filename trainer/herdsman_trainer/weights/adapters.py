"""Reads adapters: peft's LoRA files, with fully trained matrices beside the low-rank ones."""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from herdsman_trainer.errors import BadInput
from herdsman_trainer.weights.adapter_keys import sort_keys
from herdsman_trainer.weights.pickle_reading import digest_checkpoint, read_tensors, tensor_specs
from herdsman_trainer.weights.published import recognise
from herdsman_trainer.weights.reading import open_safetensors, read_json_object
from herdsman_trainer.weights.reading_ahead import Place
from herdsman_trainer.weights.tensor_spec import TensorSpec, shape_text

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
PICKLE_FILE = "adapter_model.bin"
TRAINED_WITH = f"Put the {CONFIG_FILE} beside the weights that they were trained with."

UNSUPPORTED: Mapping[str, tuple[object, str]] = {
    "use_dora": (False, "DoRA scales the columns of the weight"),
    "use_qalora": (False, "QA-LoRA pools the inputs"),
    "lora_bias": (False, "its low-rank matrices have biases"),
    "bias": ("none", "it trains biases, which LLaMA does not have"),
    "enable_lora": (None, "it adapts parts of a fused projection"),
    "layer_replication": (None, "it changes the number of layers"),
    "target_parameters": (None, "it adapts parameters instead of modules"),
    "trainable_token_indices": (None, "it stores single rows of the embedding"),
    "alora_invocation_tokens": (None, "it is active for part of the tokens only"),
    "arrow_config": (None, "it routes between several adapters"),
    "kasa_config": (None, "it is not of the form B·A"),
    "use_bdlora": (None, "its matrices are block-diagonal"),
    "monteclora_config": (None, "it is not of the form B·A"),
    "velora_config": (None, "it is not of the form B·A"),
}
"""Settings under which W + (alpha/r)·B·A is not what the adapter means: the harmless value, and why others are not."""


@dataclass(frozen=True)
class LoraSettings:
    """The figures of adapter_config.json that decide the mathematics."""

    rank: int
    alpha: float
    rank_stabilised: bool = False
    fan_in_fan_out: bool = False
    rank_pattern: Mapping[str, float] = field(default_factory=dict)
    """Ranks of modules that differ from `rank`, by regular expression; the first that matches counts."""
    alpha_pattern: Mapping[str, float] = field(default_factory=dict)
    """The same for alpha."""

    def of(self, module: str) -> "LoraSettings":
        """Return the figures of one module, such as model.layers.0.self_attn.q_proj, as peft looks them up."""
        rank = _matching(self.rank_pattern, module, self.rank)
        return replace(self, rank=int(rank), alpha=_matching(self.alpha_pattern, module, self.alpha))

    @property
    def scale(self) -> float:
        """alpha / r, or alpha / sqrt(r) for rank-stabilised LoRA (Kalajdzievski 2023)."""
        return self.alpha / (math.sqrt(self.rank) if self.rank_stabilised else self.rank)


@dataclass(frozen=True)
class LoraPair:
    """The two low-rank matrices of one module: `a` is r x in, `b` is out x r, and the module gains scale · B·A."""

    a: TensorSpec
    b: TensorSpec
    scale: float


@dataclass(frozen=True)
class Adapter:
    """An adapter directory, its tensors read when asked for.

    `full` and `lora` are keyed by the base's tensor names, such as `model.embed_tokens.weight`.
    """

    directory: Path
    settings: LoraSettings
    full: Mapping[str, TensorSpec]
    lora: Mapping[str, LoraPair]
    read: Callable[[str], torch.Tensor]
    """Reads a tensor by its key in the adapter file."""
    place: Callable[[str], Place | None] = lambda _: None
    """Tells where a tensor lies, where that is known."""
    notes: tuple[str, ...] = ()
    """What a user should know about how it was read."""

    @property
    def embedding_rows(self) -> int | None:
        """Rows of the embedding it holds; none where it holds no embedding."""
        spec = self.full.get("model.embed_tokens.weight")
        return spec.shape[0] if spec else None


def load_adapter(directory: Path) -> Adapter:
    """Open an adapter directory.

    `adapter_model.safetensors` is mapped into memory, and so is an `adapter_model.bin` as the published adapters have
    it: nothing in it is run, its checksums are compared, and it is named if it is a published one. Raises BadInput,
    naming file and remedy, for anything that is not plain LoRA with fully trained matrices, and for matrices that do
    not belong together.
    """
    settings = _settings(directory / CONFIG_FILE)
    weights = directory / WEIGHTS_FILE
    notes: tuple[str, ...] = ()
    read: Callable[[str], torch.Tensor]
    place: Callable[[str], Place | None]
    if weights.is_file():
        files = open_safetensors(weights)
        specs, read, place = dict(files.specs), files.tensor, files.place
    elif (directory / PICKLE_FILE).is_file():
        weights = directory / PICKLE_FILE
        tensors = read_tensors(weights)
        specs, read, place = tensor_specs(tensors), tensors.__getitem__, lambda _: None
        digest = digest_checkpoint(weights, lambda _count: None).sha256
        notes = (f"{weights} is a pickle file; it was read with weights_only=True. Prefer {WEIGHTS_FILE}.",)
        if published := recognise(digest):
            notes = (*notes, f"{weights} is recognised by its SHA-256: this is {published}.")
    else:
        message = f"The directory has neither {WEIGHTS_FILE} nor {PICKLE_FILE}."
        raise BadInput(message, file=str(directory), hint="Name the directory that save_pretrained wrote.")
    keys = sort_keys(specs, weights)
    lora = {name: _pair(name, a, keys.b[name], settings, weights) for name, a in keys.a.items()}
    return Adapter(directory, settings, keys.full, lora, read, place, notes)


def _settings(path: Path) -> LoraSettings:
    config = read_json_object(path, remedy="An adapter directory has adapter_config.json beside its weights.")
    if (kind := config.get("peft_type", "LORA")) != "LORA":
        raise BadInput(f"The adapter is of the type {kind}; only LORA can be merged.", file=str(path))
    for name, (harmless, why) in UNSUPPORTED.items():
        value = config.get(name, harmless)
        if value != harmless and value not in (None, False, {}, []):
            message = f"{name} is {value!r}: {why}, so W + (alpha/r)·B·A is not what it means."
            raise BadInput(message, file=str(path), hint="Merge it with peft's merge_and_unload and import the model.")
    return LoraSettings(
        rank=int(_number(config, "r", path)),
        alpha=_number(config, "lora_alpha", path),
        rank_stabilised=bool(config.get("use_rslora", False)),
        fan_in_fan_out=bool(config.get("fan_in_fan_out", False)),
        rank_pattern=_pattern(config, "rank_pattern", path),
        alpha_pattern=_pattern(config, "alpha_pattern", path),
    )


def _pattern(config: Mapping[str, Any], name: str, path: Path) -> dict[str, float]:
    """Return the figures of a pattern; raises BadInput for what is no regular expression or no number."""
    given = config.get(name) or {}
    if not isinstance(given, dict):
        raise BadInput(f"{name} must be an object and is {given!r}.", file=str(path), hint=TRAINED_WITH)
    for key in given:
        try:
            re.compile(_anchored(key))
        except re.error as error:
            message = f"The key {key!r} of {name} is no regular expression: {error}."
            raise BadInput(message, file=str(path), hint=TRAINED_WITH) from None
    return {key: _number(given, key, path) for key in given}


def _anchored(key: str) -> str:
    """Return the whole expression: a key stands for modules whose name, or its end after a dot, it matches."""
    return rf"(.*\.)?({key})$"


def _matching(pattern: Mapping[str, float], module: str, default: float) -> float:
    return next((value for key, value in pattern.items() if re.match(_anchored(key), module)), default)


def _number(config: Mapping[str, Any], field: str, path: Path) -> float:
    value = config.get(field)
    if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
        missing = "is missing" if value is None else f"is {value!r}"
        raise BadInput(f"{field} must be a positive number and {missing}.", file=str(path), hint=TRAINED_WITH)
    return float(value)


def _pair(name: str, a: TensorSpec, b: TensorSpec, settings: LoraSettings, path: Path) -> LoraPair:
    own = settings.of(name.removesuffix(".weight"))
    if len(a.shape) != 2 or len(b.shape) != 2 or a.shape[0] != b.shape[1]:
        message = f"lora_A ({shape_text(a.shape)}) and lora_B ({shape_text(b.shape)}) of {name} cannot be multiplied."
        raise BadInput(message, file=str(path), hint="The adapter is damaged: copy or save it again.")
    if a.shape[0] != own.rank:
        named = "r" if own.rank == settings.rank else "rank_pattern"
        message = f"{name} has rank {a.shape[0]} and {CONFIG_FILE} says {named} = {own.rank}."
        raise BadInput(message, file=str(path), hint=TRAINED_WITH)
    return LoraPair(a, b, own.scale)
