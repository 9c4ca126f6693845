"""Decides what is trained: LoRA matrices, embedding and head in place, or everything.

Matrices trained in full are made trainable where they are: trained once, saved once. peft's modules_to_save would keep
a second copy of each and lose the tie between embedding and head.
"""

import hashlib
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from peft import LoraConfig, TaskType, get_peft_model
from transformers import LlamaForCausalLM

from herdsman.api.job_config import FileDigest
from herdsman.api.v1alpha1.recipes import Lora, Stage
from herdsman_trainer.errors import BadInput
from herdsman_trainer.models import is_tied
from herdsman_trainer.weights.adapter_keys import KEY_PREFIX
from herdsman_trainer.weights.adapter_writing import write_adapter
from herdsman_trainer.weights.adapters import Adapter, LoraSettings
from herdsman_trainer.weights.merge import EMBEDDING, HEAD
from herdsman_trainer.weights.tensor_spec import TensorSpec

FULL_NAMES = {"embed_tokens": EMBEDDING, "lm_head": HEAD}


NO_LORA = LoraSettings(rank=8, alpha=32)
"""What the configuration of an adapter without LoRA matrices says: peft needs some figures."""


@dataclass(frozen=True)
class TrainedModel:
    """A model and what of it is trained; names are those of the base's tensors, LoRA's end in lora_A/lora_B.weight."""

    module: torch.nn.Module
    """What is called: the model, or peft's wrapper of it."""
    base: LlamaForCausalLM
    trained: Mapping[str, torch.nn.Parameter]
    """The trained parameters, all float32, in a fixed order."""
    kept: Mapping[str, torch.Tensor] = field(default_factory=dict)
    """Whole matrices an adapter file must hold: trained ones, grown ones, and those of the adapter it continues.

    As they were at the start, float32; the trained ones are saved with their new values."""
    lora_targets: tuple[str, ...] = ()
    """Names of the adapted weights."""
    settings: LoraSettings = NO_LORA
    dropout: float = 0.0
    tied: bool = False


def full_names(lora: Lora, stage: Stage, *, tied: bool) -> list[str]:
    """Return the names of the matrices trained in full beside LoRA; a tied head is the embedding."""
    names = [FULL_NAMES[name] for name in lora.train_fully or ()]
    if tied:
        names = [EMBEDDING] if names else []
    if stage == "EmbeddingsOnly" and not names:
        raise BadInput(
            "There is nothing to train: stage EmbeddingsOnly, and recipe.lora.trainFully is empty.",
            hint="Set recipe.lora.trainFully to [embed_tokens], or use stage LoRA.",
        )
    return list(dict.fromkeys(names))


def train_everything(model: LlamaForCausalLM) -> TrainedModel:
    """Train all weights; they must be float32."""
    model.requires_grad_(True)
    return TrainedModel(model, model, _trained(model), tied=is_tied(model))


def train_embeddings(model: LlamaForCausalLM, full: Sequence[str], kept: Mapping[str, torch.Tensor]) -> TrainedModel:
    """Train the matrices `full` alone; `kept` are the whole matrices the adapter must hold."""
    _enable(model, full)
    return TrainedModel(model, model, _trained(model), kept=kept, tied=is_tied(model))


def train_lora(
    model: LlamaForCausalLM,
    lora: Lora,
    full: Sequence[str],
    kept: Mapping[str, torch.Tensor],
    *,
    seed: int,
    continued: Adapter | None = None,
) -> TrainedModel:
    """Add LoRA to the recipe's targets and train it with the matrices `full`.

    A is drawn from `seed` (Kaiming uniform) and B is zero, so training starts at the base (Hu et al. 2021). With
    `continued`, its matrices are the start instead; BadInput where its rank, alpha or targets are not the recipe's.
    """
    settings = LoraSettings(rank=lora.rank or 8, alpha=float(lora.alpha or 32))
    targets = sorted(lora.targets or ())
    _check_targets(model, targets)
    if continued is not None and continued.lora:
        _check_continues(continued, settings, targets)
        settings = continued.settings
    config = LoraConfig(
        task_type=TaskType.CAUSAL_LM,
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=lora.dropout or 0.0,
        target_modules=targets,
        bias="none",
        use_rslora=settings.rank_stabilised,
    )
    tied = is_tied(model)
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(_seed_of(seed))
        wrapped = get_peft_model(model, config)
    _enable(model, full)
    trained = _trained(wrapped)
    if continued is not None and continued.lora:
        _load_lora(trained, continued)
    adapted = [name.removesuffix(".lora_A.weight") + ".weight" for name in trained if name.endswith(".lora_A.weight")]
    return TrainedModel(wrapped, model, trained, kept, tuple(adapted), settings, lora.dropout or 0.0, tied)


def write_trained_adapter(
    directory: Path, trained: TrainedModel, values: Mapping[str, torch.Tensor], base_model: str | None = None
) -> dict[str, FileDigest]:
    """Write the adapter: `values` of the trained parameters, and the other matrices it must hold."""
    tensors = {name: values.get(name, start) for name, start in trained.kept.items()}
    tensors |= {name: value for name, value in values.items() if ".lora_" in name}
    return write_adapter(
        directory,
        {KEY_PREFIX + name: value.detach().to("cpu", torch.float32) for name, value in tensors.items()},
        settings=trained.settings,
        lora_targets=trained.lora_targets,
        full=list(trained.kept),
        dropout=trained.dropout,
        tied=trained.tied,
        base_model=base_model,
    )


def plain_name(name: str) -> str:
    """Return a parameter's name without peft's wrapping: model.layers.0.self_attn.q_proj.lora_A.weight."""
    return name.removeprefix(KEY_PREFIX).replace(".default.", ".")


def _trained(module: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    trained = {plain_name(name): item for name, item in module.named_parameters() if item.requires_grad}
    if not trained:
        raise BadInput("There is nothing to train.", hint="Set recipe.lora.targets or recipe.lora.trainFully.")
    wrong = [name for name, item in trained.items() if item.dtype != torch.float32]
    if wrong:
        raise TypeError(f"{wrong[0]} is trained and is not float32")
    return trained


def _enable(model: LlamaForCausalLM, names: Sequence[str]) -> None:
    parameters = {plain_name(name): item for name, item in model.named_parameters()}
    for name in names:
        parameters[name].requires_grad_(True)


def _check_targets(model: LlamaForCausalLM, targets: Sequence[str]) -> None:
    layer = model.model.layers[0]
    known = {name.rpartition(".")[2] for name, module in layer.named_modules() if isinstance(module, torch.nn.Linear)}
    if unknown := sorted(set(targets) - known):
        raise BadInput(
            f"recipe.lora.targets names {unknown[0]}, which is not a linear layer of a block.",
            hint=f"Choose from {', '.join(sorted(known))}; embed_tokens and lm_head go into recipe.lora.trainFully.",
        )
    if not targets:
        raise BadInput("recipe.lora.targets is empty.", hint=f"Choose from {', '.join(sorted(known))}.")


def _check_continues(adapter: Adapter, settings: LoraSettings, targets: Sequence[str]) -> None:
    theirs = sorted({name.removesuffix(".weight").rpartition(".")[2] for name in adapter.lora})
    sides = (
        ("rank", adapter.settings.rank, settings.rank),
        ("alpha", adapter.settings.alpha, settings.alpha),
        ("targets", theirs, list(targets)),
    )
    for name, there, here in sides:
        if there != here:
            raise BadInput(
                f"The adapter to go on from has LoRA {name} {_text(there)} and recipe.lora.{name} is {_text(here)}.",
                reason="ArtifactMismatch",
                file=str(adapter.directory),
                hint=f"Set recipe.lora.{name} to {_text(there)}, or merge the adapter and start a new LoRA.",
            )
    if adapter.settings.rank_pattern or adapter.settings.alpha_pattern:
        raise BadInput(
            "The adapter to go on from has a rank_pattern or an alpha_pattern; a recipe has one of each.",
            file=str(adapter.directory),
            hint="Merge the adapter and start a new LoRA.",
        )
    if adapter.settings.fan_in_fan_out:
        raise BadInput("The adapter has fan_in_fan_out, which LLaMA's layers do not.", file=str(adapter.directory))


def _text(value: object) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    return f"[{', '.join(map(str, value))}]" if isinstance(value, list) else str(value)


def _load_lora(trained: Mapping[str, torch.nn.Parameter], adapter: Adapter) -> None:
    expected = {name for name in trained if ".lora_" in name}
    given: dict[str, TensorSpec] = {}
    for name, pair in adapter.lora.items():
        stem = name.removesuffix(".weight")
        given |= {f"{stem}.lora_A.weight": pair.a, f"{stem}.lora_B.weight": pair.b}
    if odd := sorted(expected ^ given.keys()):
        side = "lacks" if odd[0] in expected else "has"
        raise BadInput(
            f"The adapter {side} {odd[0]}, unlike the model with the recipe's targets.",
            reason="ArtifactMismatch",
            file=str(adapter.directory),
            hint="It adapts some layers only, or another model: merge it and start a new LoRA.",
        )
    for name, spec in given.items():
        if tuple(trained[name].shape) != spec.shape:
            raise BadInput(
                f"The adapter's {name} is {spec.shape} and the model's is {tuple(trained[name].shape)}.",
                reason="ArtifactMismatch",
                file=str(adapter.directory),
                hint="The adapter was trained on a model of another size.",
            )
        with torch.no_grad():
            trained[name].copy_(adapter.read(spec.name))


def _seed_of(seed: int) -> int:
    return int.from_bytes(hashlib.blake2b(f"{seed}:lora".encode(), digest_size=8).digest(), "little") >> 1
