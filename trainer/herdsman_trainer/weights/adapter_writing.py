"""Writes adapters that peft reads, and checks that what was asked for is what was written."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from herdsman.api.job_config import FileDigest
from herdsman_trainer.free_space import require_space
from herdsman_trainer.weights.adapter_keys import KEY_PREFIX, LORA_A, LORA_B
from herdsman_trainer.weights.adapters import CONFIG_FILE, WEIGHTS_FILE, LoraSettings
from herdsman_trainer.weights.reading import read_header
from herdsman_trainer.weights.tensor_digests import DIGESTS_FILE, RecordedBlocks
from herdsman_trainer.weights.tensor_spec import TensorSpec
from herdsman_trainer.weights.writing import write_file, write_tensor_digests, write_tensors


class IncompleteAdapterError(RuntimeError):
    """The tensors to be saved are not those that were trained: a fault of the trainer, never of its input."""


def adapter_keys(lora_targets: Sequence[str], full: Sequence[str]) -> set[str]:
    """Return the keys an adapter file must have.

    `lora_targets` and `full` are tensor names of the base, such as `model.layers.0.self_attn.q_proj.weight`.
    """
    factors = (name.removesuffix(".weight") + half for name in lora_targets for half in (LORA_A, LORA_B))
    return {KEY_PREFIX + name for name in (*factors, *full)}


def write_adapter(
    directory: Path,
    tensors: Mapping[str, torch.Tensor],
    *,
    settings: LoraSettings,
    lora_targets: Sequence[str],
    full: Sequence[str],
    dropout: float = 0.0,
    tied: bool = False,
    base_model: str | None = None,
) -> dict[str, FileDigest]:
    """Write adapter_config.json, adapter_model.safetensors and tensor-digests.json; returns the files' digests.

    `tensors` are keyed as in the file (`base_model.model.…`). Raises IncompleteAdapterError where the keys are not
    exactly those of `lora_targets` and `full`, a tensor is empty or not finite, or the file read back differs.
    Raises Temporary (DiskFull) where there is no room for them.
    """
    expected = adapter_keys(lora_targets, full)
    if tensors.keys() != expected:
        missing, extra = sorted(expected - tensors.keys()), sorted(tensors.keys() - expected)
        counts = f"{len(expected)} tensors are expected and {len(tensors)} are there"
        raise IncompleteAdapterError(f"{counts}; missing {missing[:3]}, extra {extra[:3]}")
    if not expected:
        raise IncompleteAdapterError("nothing was trained: the adapter would hold no tensors")
    for key, tensor in tensors.items():
        if tensor.numel() == 0:
            raise IncompleteAdapterError(f"{key} is empty: gather partitioned parameters before saving")
        if not math.isfinite(tensor.detach().abs().max().item()):
            raise IncompleteAdapterError(f"{key} holds values that are not finite")
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    require_space(directory, size, "the adapter")
    recorded = RecordedBlocks()
    written = {WEIGHTS_FILE: write_tensors(directory / WEIGHTS_FILE, tensors, recorded)}
    written[DIGESTS_FILE] = write_tensor_digests(directory, recorded.digests)
    back = read_header(directory / WEIGHTS_FILE)
    if back != {key: TensorSpec(key, tensor.dtype, tuple(tensor.shape)) for key, tensor in tensors.items()}:
        raise IncompleteAdapterError(f"{WEIGHTS_FILE} read back does not declare what was written")
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_model,
        "inference_mode": True,
        "r": settings.rank,
        "lora_alpha": settings.alpha,
        "lora_dropout": dropout,
        "use_rslora": settings.rank_stabilised,
        "fan_in_fan_out": settings.fan_in_fan_out,
        "bias": "none",
        "target_modules": sorted({name.removesuffix(".weight").rpartition(".")[2] for name in lora_targets}),
        "modules_to_save": sorted({name.removesuffix(".weight").rpartition(".")[2] for name in full}) or None,
        "ensure_weight_tying": tied,
    }
    written[CONFIG_FILE] = write_file(directory / CONFIG_FILE, (json.dumps(config, indent=2) + "\n").encode())
    return written
