"""Recipes made definite: the preset's values, what the CPU changes, and the micro-batch."""

from typing import TypeVar

from herdsman.api.v1alpha1.compute import Compute
from herdsman.api.v1alpha1.recipes import DeepSpeed, PretrainRecipe, SFTRecipe, TrainingRecipe
from herdsman.api.v1alpha1.status import Reason
from herdsman.core.plan_types import Problem

T = TypeVar("T", PretrainRecipe, SFTRecipe)


def definite(given: T, resolved: T, compute: Compute) -> T:
    """Return the resolved recipe with what depends on the devices.

    On the CPU, where the manifest does not say otherwise: float32 and no DeepSpeed. The micro-batch is left to the
    trainer, which sees how much memory there is.
    """
    update: dict[str, object] = {}
    if compute.gpus_per_node == 0:
        if given.precision is None:
            update["precision"] = "float32"
        if given.deepspeed is None:
            update["deepspeed"] = DeepSpeed(zero_stage=0)
    return resolved.model_copy(update=update)


def deepspeed_of(recipe: TrainingRecipe) -> DeepSpeed | None:
    """Return DeepSpeed's settings; None trains without it."""
    return recipe.deepspeed if recipe.deepspeed is not None and recipe.deepspeed.zero_stage > 0 else None


def problem(given: TrainingRecipe, resolved: TrainingRecipe, compute: Compute) -> Problem | None:
    """Return why the recipe cannot run on these devices, or None."""
    if given.precision == "fp16" and compute.gpus_per_node == 0:
        return _invalid(
            "spec.recipe.precision",
            "fp16 needs a GPU, and spec.compute.gpusPerNode is 0.",
            "Set recipe.precision to bf16 or float32, or leave it out; or ask for GPUs.",
        )
    if resolved.fsdp is not None and resolved.precision == "fp16":
        return _invalid(
            "spec.recipe.precision",
            "fp16 is trained with a loss scale, which goes with DeepSpeed and not with fsdp.",
            "Set recipe.precision to bf16, or recipe.deepspeed instead of recipe.fsdp.",
        )
    sequences, world = resolved.batch.global_sequences or 1, compute.world_size
    micro = given.batch.micro_sequences or 1
    if sequences % (world * micro):
        parts = f"{world} processes" + (f" in micro-batches of {micro}" if micro > 1 else "")
        below, above = sequences // (world * micro) * world * micro, -(-sequences // (world * micro)) * world * micro
        fitting = f"{below} or {above}" if below else f"{above}"
        return _invalid(
            "spec.recipe.batch.globalSequences",
            f"{sequences} sequences cannot be shared evenly by {parts}.",
            f"Set batch.globalSequences to {fitting}, or change compute or batch.microSequences.",
        )
    return None


def _invalid(field: str, message: str, hint: str) -> Problem:
    return Problem(Reason.INVALID_SPEC, f"{field}: {message}", hint, field)
