"""Evaluation: measures models beside each other, and is a gate for what comes after: docs/decisions/0020."""

from typing import ClassVar, Literal, Self

from pydantic import ConfigDict, Field, model_validator
from pydantic.alias_generators import to_camel

from herdsman.api.meta import ApiModel, Resource
from herdsman.api.v1alpha1.compute import RunPolicy
from herdsman.api.v1alpha1.evaluation_tasks import METRICS, Label, MetricName, Task
from herdsman.api.v1alpha1.recipes import Template
from herdsman.api.v1alpha1.schema import cel
from herdsman.api.v1alpha1.sources import AdapterRef, ModelRef
from herdsman.api.v1alpha1.status import Status

MAX_MODELS, MAX_TASKS = 8, 16
MAX_THRESHOLDS = 12
"""So many that what they are held against fits into the last words of a run, and into status.report."""


class EvaluatedModel(ApiModel):
    """One of the models that are compared."""

    name: Label
    """What it is called in the report and in thresholds."""
    model: ModelRef
    """The model."""
    adapters: list[AdapterRef] = Field(default_factory=list, max_length=8)
    """Adapters applied to it in memory, in this order."""
    template: Template | None = None
    """The prompt template in which samples and questions for a judge are put; unless set, the one the model was tuned
    with."""


_LIMIT = "set atLeast, atMost or both"


class Threshold(ApiModel):
    """What a figure has to be."""

    model_config = ConfigDict(json_schema_extra=cel(("has(self.atLeast) || has(self.atMost)", _LIMIT)))

    task: Label
    """The task that measures it."""
    metric: MetricName
    """The figure."""
    model: Label
    """The model it is about."""
    over: Label | None = None
    """Another model: the limits are then those of the difference, the figure of `model` less that of this one."""
    at_least: float | None = Field(default=None, ge=-1e9, le=1e9)
    """The figure, or the difference, is this or more."""
    at_most: float | None = Field(default=None, ge=-1e9, le=1e9)
    """The figure, or the difference, is this or less."""
    judged_by: Literal["Estimate", "Interval"] = "Estimate"
    """What meets the limits: the figure itself, or all of its 95 % confidence interval, so that no luck is in it."""

    @model_validator(mode="after")
    def _rules(self) -> Self:
        if self.at_least is None and self.at_most is None:
            raise ValueError(_LIMIT)
        return self

    def misses(self, value: float, low: float, high: float) -> list[str]:
        """Return the limits that a figure with this confidence interval does not keep: at least 0.4; what is no number
        keeps none.
        """
        smallest, largest = (low, high) if self.judged_by == "Interval" else (value, value)
        missed = []
        if self.at_least is not None and not smallest >= self.at_least:
            missed.append(f"at least {self.at_least:g}")
        if self.at_most is not None and not largest <= self.at_most:
            missed.append(f"at most {self.at_most:g}")
        return missed


def _measured_rule() -> str:
    """Return the CEL text that holds where every threshold's task is there and measures its metric."""
    kinds = (
        f"(has(k.{to_camel(kind)}) && t.metric in [{', '.join(repr(name) for name in names)}])"
        for kind, names in METRICS.items()
    )
    return f"self.thresholds.all(t, self.tasks.exists(k, k.name == t.task && ({' || '.join(kinds)})))"


_MODELS = "each name may stand in models once"
_TASKS = "each name may stand in tasks once"
_MEASURED = "each threshold names a task, and a metric that this task measures"
_KNOWN = "each threshold names models of this Evaluation, and `over` another one than `model`"
_JUDGE = "one task may have a judge"
_ONE_PROCESS = "an Evaluation is one process: compute.nodes is 1, and gpusPerNode and processesPerNode at most 1"


class EvaluationSpec(RunPolicy):
    """What is measured of which models, and what has to come out."""

    model_config = ConfigDict(
        json_schema_extra=cel(
            ("self.models.all(a, self.models.exists_one(b, b.name == a.name))", _MODELS),
            ("self.tasks.all(a, self.tasks.exists_one(b, b.name == a.name))", _TASKS),
            (_measured_rule(), _MEASURED),
            (
                "self.thresholds.all(t, self.models.exists(m, m.name == t.model) && (!has(t.over) ||"
                " (t.over != t.model && self.models.exists(m, m.name == t.over))))",
                _KNOWN,
            ),
            ("self.tasks.filter(t, has(t.judge)).size() <= 1", _JUDGE),
            (
                "self.compute.nodes == 1 && self.compute.gpusPerNode <= 1"
                " && (!has(self.compute.processesPerNode) || self.compute.processesPerNode == 1)",
                _ONE_PROCESS,
            ),
        )
    )

    models: list[EvaluatedModel] = Field(min_length=1, max_length=MAX_MODELS)
    """The models; the others are compared with the first."""
    tasks: list[Task] = Field(min_length=1, max_length=MAX_TASKS)
    """What is measured."""
    thresholds: list[Threshold] = Field(default_factory=list, max_length=MAX_THRESHOLDS)
    """What has to come out: the Evaluation is Complete only where all of them are met, and Failed (ThresholdNotMet)
    where not, with the report in either case. What names it in `after` waits for that."""
    resamples: int = Field(default=1000, ge=100, le=100000)
    """How often questions and documents are drawn anew for the confidence intervals (paired bootstrap)."""
    seed: int = Field(default=42, ge=0, le=4294967295)
    """The seed of that."""

    @model_validator(mode="after")
    def _rules(self) -> Self:
        models, tasks = [model.name for model in self.models], {task.name: task for task in self.tasks}
        if len(set(models)) < len(models):
            raise ValueError(_MODELS)
        if len(tasks) < len(self.tasks):
            raise ValueError(_TASKS)
        for threshold in self.thresholds:
            if threshold.task not in tasks or threshold.metric not in tasks[threshold.task].metrics:
                raise ValueError(_MEASURED)
            named = [threshold.model, *([threshold.over] if threshold.over is not None else [])]
            if len(set(named)) < len(named) or not set(named) <= set(models):
                raise ValueError(_KNOWN)
        if sum(task.judge is not None for task in self.tasks) > 1:
            raise ValueError(_JUDGE)
        if self.compute.nodes != 1 or self.compute.gpus_per_node > 1 or self.compute.processes != 1:
            raise ValueError(_ONE_PROCESS)
        return self


class Evaluation(Resource):
    """Measures models beside each other; thresholds make it a gate that others wait for."""

    KIND: ClassVar[str] = "Evaluation"
    kind: Literal["Evaluation"] = "Evaluation"
    spec: EvaluationSpec
    status: Status | None = None
