"""PretrainJob: a model, perhaps an adapter to go on from, a tokenizer, text, and the recipe made definite."""

from collections.abc import Sequence

from herdsman.api.job_config import PretrainConfig
from herdsman.api.v1alpha1.pretrain_job import PretrainJob
from herdsman.api.v1alpha1.recipes import PretrainRecipe, resolve_pretrain
from herdsman.core import estimate
from herdsman.core.inputs import Inputs, Need
from herdsman.core.jobs import Frame
from herdsman.core.kinds import recipes, training
from herdsman.core.kinds.rules import RunKind
from herdsman.core.plan_types import Problem
from herdsman.core.site import Site
from herdsman.core.world import World


def recipe_of(resource: PretrainJob) -> PretrainRecipe:
    """Return the recipe with nothing left open."""
    spec = resource.spec
    resolved = resolve_pretrain(spec.recipe, spec.stage)
    return recipes.definite(spec.recipe, resolved, spec.compute)


def needs(resource: PretrainJob) -> Sequence[Need]:
    """Return the inputs of a training."""
    spec = resource.spec
    return training.needs(spec.model, spec.adapter, spec.tokenizer, training.datasets_of(spec))


def problem(resource: PretrainJob) -> Problem | None:
    """Return why the recipe cannot run on these devices, or the datasets cannot be downloaded, or None."""
    spec = resource.spec
    resolved = resolve_pretrain(spec.recipe, spec.stage)
    return recipes.problem(spec.recipe, resolved, spec.compute) or training.problem(training.datasets_of(spec))


def contract(resource: PretrainJob, inputs: Inputs, world: World) -> Problem | None:
    """Return why model, adapter and tokenizer do not fit together, or None."""
    trains_rows = resource.spec.stage == "Full" or bool(recipe_of(resource).lora.train_fully)
    return training.contract(inputs, world, trains_rows=trains_rows)


def config(resource: PretrainJob, frame: Frame, inputs: Inputs, site: Site) -> PretrainConfig:
    """Return the configuration of one attempt."""
    spec, recipe = resource.spec, recipe_of(resource)
    members = training.members(resource, inputs, training.datasets_of(spec), recipe, site)
    return PretrainConfig(**frame.members(), **members, stage=spec.stage, recipe=recipe)


def sketch(resource: PretrainJob, world: World) -> estimate.Sketch:
    """Return what the training needs."""
    recipe = recipe_of(resource)
    return training.sketch(resource, recipe, resource.spec.stage, recipe.block_size or 512, world)


RULES = RunKind(
    needs=needs, estimate=sketch, problem=problem, contract=contract, config=config, environment=training.environment
)
