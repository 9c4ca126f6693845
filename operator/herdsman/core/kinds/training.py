"""What both kinds of training share: their inputs, the contract between them, and what they need."""

from collections.abc import Sequence
from typing import Any

from herdsman.api.job_config import (
    MLFLOW_CREDENTIAL_VARIABLES,
    MLFLOW_TOKEN_VARIABLE,
    TRAINING_PART,
    WANDB_KEY_VARIABLE,
)
from herdsman.api.v1alpha1.datasets import DatasetSource, named_datasets
from herdsman.api.v1alpha1.pretrain_job import PretrainJob, PretrainJobSpec
from herdsman.api.v1alpha1.recipes import PretrainRecipe, SFTRecipe, Stage
from herdsman.api.v1alpha1.report_to import ReportTo
from herdsman.api.v1alpha1.secrets import SecretKeyRef
from herdsman.api.v1alpha1.sft_job import SFTJob, SFTJobSpec
from herdsman.api.v1alpha1.sources import AdapterRef, ModelRef, TokenizerRef
from herdsman.api.v1alpha1.status import Estimate
from herdsman.core import contract as artifacts
from herdsman.core import estimate
from herdsman.core.environment import Entry, from_secret
from herdsman.core.inputs import ADAPTER, DATASET, MODEL, TOKENIZER, WEIGHTS, Inputs, Need
from herdsman.core.kinds import remote
from herdsman.core.kinds.recipes import deepspeed_of
from herdsman.core.known_shapes import adapter_rows, model_shape
from herdsman.core.plan_types import Problem
from herdsman.core.site import Site
from herdsman.core.world import World

MODEL_FIELD, ADAPTER_FIELD, TOKENIZER_FIELD = "spec.model", "spec.adapter", "spec.tokenizer"
Named = Sequence[tuple[str, DatasetSource]]


def datasets_of(spec: PretrainJobSpec | SFTJobSpec) -> Named:
    """Return the datasets of a training with their fields."""
    return named_datasets(spec.dataset, spec.datasets)


def needs(
    model: ModelRef, adapter: AdapterRef | None, tokenizer: TokenizerRef | None, datasets: Named
) -> Sequence[Need]:
    """Return the inputs of a training; what is downloaded is none."""
    here = [
        Need(field, dataset, DATASET, part=TRAINING_PART)
        for field, dataset in datasets
        if dataset.chosen[0] not in remote.REMOTE
    ]
    optional = [
        *([Need(ADAPTER_FIELD, adapter, ADAPTER)] if adapter is not None else []),
        *([Need(TOKENIZER_FIELD, tokenizer, TOKENIZER)] if tokenizer is not None else []),
    ]
    return [Need(MODEL_FIELD, model, MODEL, WEIGHTS), *optional, *here]


def problem(datasets: Named) -> Problem | None:
    """Return why the datasets cannot be downloaded, or None."""
    return remote.problem(datasets)


def environment(resource: PretrainJob | SFTJob, site: Site) -> Sequence[Entry]:
    """Return where downloads find their hub and their credentials, and trackers their keys, which lie in Secrets."""
    asked = remote.environment([dataset for _, dataset in datasets_of(resource.spec)], site)
    return [*asked, *_keys(resource.spec.report_to)]


def _keys(report_to: ReportTo) -> list[Entry]:
    found = []
    if report_to.wandb is not None and report_to.wandb.api_key is not None:
        found.append(from_secret(WANDB_KEY_VARIABLE, report_to.wandb.api_key))
    if report_to.mlflow is not None and report_to.mlflow.token is not None:
        found.append(from_secret(MLFLOW_TOKEN_VARIABLE, report_to.mlflow.token))
    if report_to.mlflow is not None and report_to.mlflow.credentials_secret is not None:
        secret = report_to.mlflow.credentials_secret
        found += [from_secret(name, SecretKeyRef(name=secret, key=name)) for name in MLFLOW_CREDENTIAL_VARIABLES]
    return found


def contract(inputs: Inputs, world: World, *, trains_rows: bool) -> Problem | None:
    """Return why model, adapter and tokenizer do not fit together, or None."""
    found = inputs.found
    return artifacts.training(
        found[MODEL_FIELD], found.get(ADAPTER_FIELD), found.get(TOKENIZER_FIELD), world, trains_rows=trains_rows
    )


def members(
    resource: PretrainJob | SFTJob, inputs: Inputs, datasets: Named, recipe: PretrainRecipe | SFTRecipe, site: Site
) -> dict[str, Any]:
    """Return the members of TrainingConfig."""
    single = (MODEL_FIELD, ADAPTER_FIELD, TOKENIZER_FIELD)
    entries = {name.removeprefix("spec."): inputs.found[name].to_input(site) for name in single if name in inputs.found}
    return {
        **entries,
        "datasets": [remote.dataset_input(field, dataset, inputs, site) for field, dataset in datasets],
        "device": "cuda" if resource.spec.compute.gpus_per_node else "cpu",
        "deepspeed": deepspeed_of(recipe),
        "report_to": resource.spec.report_to,
    }


def sketch(
    resource: PretrainJob | SFTJob, recipe: PretrainRecipe | SFTRecipe, stage: Stage, length: int, world: World
) -> estimate.Sketch:
    """Return what the training needs; nothing where the model's shape is not known."""
    shape = model_shape(resource.spec.model, resource, world)
    if shape is None:
        return estimate.Sketch(Estimate())
    shape = shape.with_vocabulary(adapter_rows(resource, world))
    return estimate.training(estimate.TrainingLoad(shape, recipe, stage, length, resource.spec.compute))
