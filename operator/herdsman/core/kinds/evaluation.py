"""Evaluation: several models, each perhaps with adapters, and the files of the tasks."""

from collections.abc import Sequence

from herdsman.api.job_config import JUDGE_KEY_VARIABLE, EvaluationConfig, ModelToEvaluate
from herdsman.api.v1alpha1.datasets import DatasetSource
from herdsman.api.v1alpha1.evaluation import Evaluation
from herdsman.api.v1alpha1.evaluation_tasks import Judge, Task
from herdsman.api.v1alpha1.status import Estimate
from herdsman.core import contract as artifacts
from herdsman.core import estimate
from herdsman.core.environment import Entry, from_secret
from herdsman.core.inputs import ADAPTER, FILES, MODEL, WEIGHTS, Inputs, Need
from herdsman.core.jobs import Frame
from herdsman.core.kinds import remote
from herdsman.core.kinds.rules import RunKind
from herdsman.core.known_shapes import model_shape
from herdsman.core.plan_types import Problem
from herdsman.core.site import Site
from herdsman.core.world import World

MODELS, TASKS = "spec.models", "spec.tasks"
DISK_GIB = 0.1
"""A report with all answers."""
LONGEST_TOKENS = 4096
"""A prompt with its examples, for the estimate."""


def needs(resource: Evaluation) -> Sequence[Need]:
    """Return the models with their adapters, in order, and the files of the tasks; what is downloaded is none."""
    found: list[Need] = []
    for place, each in enumerate(resource.spec.models):
        here = f"{MODELS}[{place}]"
        found.append(Need(f"{here}.model", each.model, MODEL, WEIGHTS))
        adapters = enumerate(each.adapters)
        found += [Need(f"{here}.adapters[{number}]", reference, ADAPTER) for number, reference in adapters]
    named = _datasets(resource).values()
    return [*found, *(Need(field, each, FILES) for field, each in named if each.chosen[0] not in remote.REMOTE)]


def problem(resource: Evaluation) -> Problem | None:
    """Return why the files of the tasks cannot be downloaded, or None."""
    return remote.problem(list(_datasets(resource).values()))


def contract(resource: Evaluation, inputs: Inputs, world: World) -> Problem | None:
    """Return why the adapters of a model do not fit it or each other, or None."""
    for place, _ in enumerate(resource.spec.models):
        here = f"{MODELS}[{place}]"
        problem = artifacts.chain(inputs.found[f"{here}.model"], inputs.listed(f"{here}.adapters"), world)
        if problem is not None:
            return problem
    return None


def config(resource: Evaluation, frame: Frame, inputs: Inputs, site: Site) -> EvaluationConfig:
    """Return the configuration of one attempt."""
    spec, found = resource.spec, inputs.found
    models = [
        ModelToEvaluate(
            name=each.name,
            model=found[f"{MODELS}[{place}].model"].to_input(site),
            adapters=[adapter.to_input(site) for adapter in inputs.listed(f"{MODELS}[{place}].adapters")],
            template=each.template,
        )
        for place, each in enumerate(spec.models)
    ]
    datasets = {
        name: remote.dataset_input(field, dataset, inputs, site)
        for name, (field, dataset) in _datasets(resource).items()
    }
    return EvaluationConfig(
        **frame.members(),
        models=models,
        tasks=spec.tasks,
        datasets=datasets,
        thresholds=spec.thresholds,
        resamples=spec.resamples,
        seed=spec.seed,
        device="cuda" if spec.compute.gpus_per_node else "cpu",
    )


def environment(resource: Evaluation, site: Site) -> Sequence[Entry]:
    """Return where downloads find their hub and their credentials, and the key of the judge, where it has one."""
    judge = judge_of(resource.spec.tasks)
    key = judge.endpoint.api_key if judge is not None else None
    asked = remote.environment([dataset for _, dataset in _datasets(resource).values()], site)
    return [*asked, *([from_secret(JUDGE_KEY_VARIABLE, key)] if key is not None else [])]


def sketch(resource: Evaluation, world: World) -> estimate.Sketch:
    """Return the memory of a GPU with the largest of the models; they are loaded one after the other."""
    compute = resource.spec.compute
    shapes = [model_shape(each.model, resource, world) for each in resource.spec.models]
    known = [estimate.serving(shape, compute, LONGEST_TOKENS).estimate for shape in shapes if shape is not None]
    memory = [each.gpu_memory_gib for each in known if each.gpu_memory_gib is not None]
    return estimate.Sketch(Estimate(gpu_memory_gib=max(memory, default=None), disk_gib=DISK_GIB))


def judge_of(tasks: Sequence[Task]) -> Judge | None:
    """Return the one judge there may be."""
    return next((task.judge for task in tasks if task.judge is not None), None)


def _datasets(resource: Evaluation) -> dict[str, tuple[str, DatasetSource]]:
    """Return the files of the tasks that have some, with their field in the spec, by the names of the tasks."""
    named = {task.name: (place, _files(task)) for place, task in enumerate(resource.spec.tasks)}
    return {
        name: (f"{TASKS}[{place}].{found[0]}", found[1]) for name, (place, found) in named.items() if found is not None
    }


def _files(task: Task) -> tuple[str, DatasetSource] | None:
    """Return the field of a task that names files, below the task, and the reference; None for prompts in the spec."""
    if task.perplexity is not None:
        return "perplexity.dataset", task.perplexity.dataset
    if task.tokens_per_character is not None:
        return "tokensPerCharacter.dataset", task.tokens_per_character.dataset
    if task.multiple_choice is not None:
        return "multipleChoice.dataset", task.multiple_choice.dataset
    if task.judge is not None:
        return "judge.questions", DatasetSource(volume=task.judge.questions.volume)
    if task.samples is not None and task.samples.dataset is not None:
        return "samples.dataset", DatasetSource(volume=task.samples.dataset.volume)
    return None


RULES = RunKind(
    needs=needs, estimate=sketch, problem=problem, contract=contract, config=config, environment=environment
)
