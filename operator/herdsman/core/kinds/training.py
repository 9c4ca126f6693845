"""What both kinds of training share: their inputs, the contract between them, and what they need."""

from collections.abc import Sequence
from typing import Any

from herdsman.api.job_config import TRAINING_PART
from herdsman.api.v1alpha1.compute import Compute
from herdsman.api.v1alpha1.pretrain_job import PretrainJob
from herdsman.api.v1alpha1.recipes import PretrainRecipe, SFTRecipe, Stage
from herdsman.api.v1alpha1.sft_job import SFTJob
from herdsman.api.v1alpha1.sources import AdapterRef, DatasetRef, ModelRef, TokenizerRef
from herdsman.api.v1alpha1.status import Estimate
from herdsman.core import contract as artifacts
from herdsman.core import estimate
from herdsman.core.inputs import ADAPTER, DATASET, MODEL, TOKENIZER, WEIGHTS, Inputs, Need
from herdsman.core.kinds.recipes import deepspeed_of
from herdsman.core.known_shapes import adapter_rows, model_shape
from herdsman.core.plan_types import Problem
from herdsman.core.site import Site
from herdsman.core.world import World

MODEL_FIELD, ADAPTER_FIELD, TOKENIZER_FIELD, DATASET_FIELD = (
    "spec.model",
    "spec.adapter",
    "spec.tokenizer",
    "spec.dataset",
)


def needs(
    model: ModelRef, adapter: AdapterRef | None, tokenizer: TokenizerRef | None, dataset: DatasetRef
) -> Sequence[Need]:
    """Return the inputs of a training."""
    optional = [
        *([Need(ADAPTER_FIELD, adapter, ADAPTER)] if adapter is not None else []),
        *([Need(TOKENIZER_FIELD, tokenizer, TOKENIZER)] if tokenizer is not None else []),
    ]
    return [
        Need(MODEL_FIELD, model, MODEL, WEIGHTS),
        *optional,
        Need(DATASET_FIELD, dataset, DATASET, part=TRAINING_PART),
    ]


def contract(inputs: Inputs, world: World, *, trains_rows: bool) -> Problem | None:
    """Return why model, adapter and tokenizer do not fit together, or None."""
    found = inputs.found
    return artifacts.training(
        found[MODEL_FIELD], found.get(ADAPTER_FIELD), found.get(TOKENIZER_FIELD), world, trains_rows=trains_rows
    )


def members(inputs: Inputs, compute: Compute, recipe: PretrainRecipe | SFTRecipe, site: Site) -> dict[str, Any]:
    """Return the members of TrainingConfig."""
    entries = {name.removeprefix("spec."): found.to_input(site) for name, found in inputs.found.items()}
    return {**entries, "device": "cuda" if compute.gpus_per_node else "cpu", "deepspeed": deepspeed_of(recipe)}


def sketch(
    resource: PretrainJob | SFTJob, recipe: PretrainRecipe | SFTRecipe, stage: Stage, length: int, world: World
) -> estimate.Sketch:
    """Return what the training needs; nothing where the model's shape is not known."""
    shape = model_shape(resource.spec.model, resource, world)
    if shape is None:
        return estimate.Sketch(Estimate())
    shape = shape.with_vocabulary(adapter_rows(resource, world))
    return estimate.training(estimate.TrainingLoad(shape, recipe, stage, length, resource.spec.compute))
