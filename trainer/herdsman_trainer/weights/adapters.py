"""Reads adapters: peft's LoRA files, with fully trained matrices beside the low-rank ones."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from herdsman_trainer.errors import BadInput
from herdsman_trainer.weights.reading import open_safetensors, read_json_object
from herdsman_trainer.weights.tensor_spec import TensorSpec, shape_text

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
PICKLE_FILE = "adapter_model.bin"
KEY_PREFIX = "base_model.model."
LORA_A = ".lora_A.weight"
LORA_B = ".lora_B.weight"

UNSUPPORTED: Mapping[str, tuple[object, str]] = {
    "use_dora": (False, "DoRA scales the columns of the weight"),
    "use_qalora": (False, "QA-LoRA pools the inputs"),
    "lora_bias": (False, "its low-rank matrices have biases"),
    "bias": ("none", "it trains biases, which LLaMA does not have"),
    "rank_pattern": ({}, "its layers have different ranks"),
    "alpha_pattern": ({}, "its layers have different scales"),
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

    @property
    def scale(self) -> float:
        """alpha / r, or alpha / sqrt(r) for rank-stabilised LoRA (Kalajdzievski 2023)."""
        return self.alpha / (math.sqrt(self.rank) if self.rank_stabilised else self.rank)


@dataclass(frozen=True)
class LoraPair:
    """The two low-rank matrices of one module: `a` is r x in, `b` is out x r."""

    a: TensorSpec
    b: TensorSpec


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
    notes: tuple[str, ...] = ()
    """What a user should know about how it was read."""

    @property
    def embedding_rows(self) -> int | None:
        """Rows of the embedding it holds; none where it holds no embedding."""
        spec = self.full.get("model.embed_tokens.weight")
        return spec.shape[0] if spec else None


def load_adapter(directory: Path) -> Adapter:
    """Open an adapter directory.

    `adapter_model.safetensors` is mapped; an `adapter_model.bin` as the published adapters have is unpickled with
    weights only (no code of the file runs) and noted. Raises BadInput, naming file and remedy, for anything that is
    not plain LoRA with fully trained matrices, and for matrices that do not belong together.
    """
    settings = _settings(directory / CONFIG_FILE)
    weights = directory / WEIGHTS_FILE
    notes: tuple[str, ...] = ()
    read: Callable[[str], torch.Tensor]
    if weights.is_file():
        files = open_safetensors(weights)
        specs, read = dict(files.specs), files.tensor
    elif (directory / PICKLE_FILE).is_file():
        weights = directory / PICKLE_FILE
        tensors = _unpickle(weights)
        specs = {key: TensorSpec(key, tensor.dtype, tuple(tensor.shape)) for key, tensor in tensors.items()}
        read = tensors.__getitem__
        notes = (f"{weights} is a pickle file; it was read with weights_only=True. Prefer {WEIGHTS_FILE}.",)
    else:
        message = f"The directory has neither {WEIGHTS_FILE} nor {PICKLE_FILE}."
        raise BadInput(message, file=str(directory), hint="Name the directory that save_pretrained wrote.")
    full, lora = _sort_keys(specs, weights)
    _check_pairs(lora, settings, weights)
    return Adapter(directory, settings, full, lora, read, notes)


def _settings(path: Path) -> LoraSettings:
    config = read_json_object(path, remedy="An adapter directory has adapter_config.json beside its weights.")
    if (kind := config.get("peft_type", "LORA")) != "LORA":
        raise BadInput(f"The adapter is of the type {kind}; only LORA can be merged.", file=str(path))
    for field, (harmless, why) in UNSUPPORTED.items():
        value = config.get(field, harmless)
        if value != harmless and value not in (None, False, {}, []):
            message = f"{field} is {value!r}: {why}, so W + (alpha/r)·B·A is not what it means."
            raise BadInput(message, file=str(path), hint="Merge it with peft's merge_and_unload and import the model.")
    return LoraSettings(
        rank=int(_number(config, "r", path)),
        alpha=_number(config, "lora_alpha", path),
        rank_stabilised=bool(config.get("use_rslora", False)),
        fan_in_fan_out=bool(config.get("fan_in_fan_out", False)),
    )


def _number(config: Mapping[str, Any], field: str, path: Path) -> float:
    value = config.get(field)
    if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
        raise BadInput(f"{field} must be a positive number and is {value!r}.", file=str(path))
    return float(value)


def _unpickle(path: Path) -> dict[str, torch.Tensor]:
    try:
        tensors = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # noqa: BLE001 - a damaged or hostile pickle raises nearly anything
        hint = f"Ask its author for {WEIGHTS_FILE}; code in pickle files is never run."
        raise BadInput(f"The pickle file cannot be read safely: {error}", file=str(path), hint=hint) from None
    if not isinstance(tensors, dict) or not all(isinstance(value, torch.Tensor) for value in tensors.values()):
        raise BadInput("The pickle file does not hold named tensors.", file=str(path))
    return tensors


def _sort_keys(specs: Mapping[str, TensorSpec], path: Path) -> tuple[dict[str, TensorSpec], dict[str, LoraPair]]:
    if not specs:
        hint = "It was saved by a trainer that filtered its keys twice; take an earlier checkpoint or train again."
        raise BadInput(f"The adapter holds no tensors ({path.stat().st_size} bytes).", file=str(path), hint=hint)
    full: dict[str, TensorSpec] = {}
    halves: dict[str, dict[str, TensorSpec]] = {LORA_A: {}, LORA_B: {}}
    for key, spec in specs.items():
        name = key.removeprefix(KEY_PREFIX)
        if 0 in spec.shape:
            hint = "It was saved from a partitioned (ZeRO-3) model; gather the parameters before saving."
            raise BadInput(f"{key} is empty ({shape_text(spec.shape)}).", file=str(path), hint=hint)
        half = next((suffix for suffix in halves if name.endswith(suffix)), None)
        if half:
            halves[half][name.removesuffix(half) + ".weight"] = spec
        elif "lora_" in name or ".token_adapter." in name or not name.endswith(".weight"):
            raise BadInput(f"{key} is neither a LoRA matrix nor a whole weight.", file=str(path))
        else:
            full[name] = spec
    if lonely := sorted(halves[LORA_A].keys() ^ halves[LORA_B].keys()):
        message = f"{lonely[0]} has only one of lora_A and lora_B."
        raise BadInput(message, file=str(path), hint="The adapter is incomplete: copy or save it again.")
    return full, {name: LoraPair(spec, halves[LORA_B][name]) for name, spec in halves[LORA_A].items()}


def _check_pairs(lora: Mapping[str, LoraPair], settings: LoraSettings, path: Path) -> None:
    for name, pair in lora.items():
        a, b = pair.a.shape, pair.b.shape
        if len(a) != 2 or len(b) != 2 or a[0] != b[1]:
            message = f"lora_A ({shape_text(a)}) and lora_B ({shape_text(b)}) of {name} cannot be multiplied."
            raise BadInput(message, file=str(path), hint="The adapter is damaged: copy or save it again.")
        if a[0] != settings.rank:
            message = f"{name} has rank {a[0]} and {CONFIG_FILE} says r = {settings.rank}."
            raise BadInput(message, file=str(path), hint=f"Put the {CONFIG_FILE} beside it that it was trained with.")
