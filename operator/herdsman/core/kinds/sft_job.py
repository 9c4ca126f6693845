"""SFTJob: a model, perhaps an adapter to go on from, a tokenizer, records, and the recipe made definite."""

from collections.abc import Sequence

from herdsman.api.job_config import SFTConfig
from herdsman.api.v1alpha1.recipes import SFTRecipe, resolve_sft
from herdsman.api.v1alpha1.sft_job import SFTJob
from herdsman.core import estimate
from herdsman.core.inputs import Inputs, Need
from herdsman.core.jobs import Frame
from herdsman.core.kinds import recipes, training
from herdsman.core.kinds.rules import RunKind
from herdsman.core.plan_types import Problem
from herdsman.core.site import Site
from herdsman.core.world import World


def recipe_of(resource: SFTJob) -> SFTRecipe:
    """Return the recipe with nothing left open."""
    spec = resource.spec
    resolved = resolve_sft(spec.recipe)
    return recipes.definite(spec.recipe, resolved, spec.compute)


def needs(resource: SFTJob) -> Sequence[Need]:
    """Return the inputs of a training."""
    spec = resource.spec
    return training.needs(spec.model, spec.adapter, spec.tokenizer, training.datasets_of(spec))


def problem(resource: SFTJob) -> Problem | None:
    """Return why the recipe cannot run on these devices, or the datasets cannot be downloaded, or None."""
    spec = resource.spec
    resolved = resolve_sft(spec.recipe)
    return recipes.problem(spec.recipe, resolved, spec.compute) or training.problem(training.datasets_of(spec))


def contract(resource: SFTJob, inputs: Inputs, world: World) -> Problem | None:
    """Return why model, adapter and tokenizer do not fit together, or None."""
    return training.contract(inputs, world, trains_rows=bool(recipe_of(resource).lora.train_fully))


def config(resource: SFTJob, frame: Frame, inputs: Inputs, site: Site) -> SFTConfig:
    """Return the configuration of one attempt."""
    spec, recipe = resource.spec, recipe_of(resource)
    members = training.members(resource, inputs, training.datasets_of(spec), recipe, site)
    return SFTConfig(**frame.members(), **members, recipe=recipe)


def sketch(resource: SFTJob, world: World) -> estimate.Sketch:
    """Return what the training needs, with every sample at its longest."""
    recipe = recipe_of(resource)
    return training.sketch(resource, recipe, "LoRA", recipe.max_length or 512, world)


RULES = RunKind(
    needs=needs, estimate=sketch, problem=problem, contract=contract, config=config, environment=training.environment
)
