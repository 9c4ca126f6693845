"""The work of a task: cut into shards that are done for each model, kept when they are done, and put together again."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from herdsman.api.v1alpha1.evaluation_tasks import Task
from herdsman_trainer.benchmarks.bootstrap import Measured
from herdsman_trainer.benchmarks.candidate import Candidate
from herdsman_trainer.benchmarks.forward import Check

T = TypeVar("T")


@dataclass(frozen=True)
class Shard:
    """A part of a task's units, in the order of the task."""

    key: str
    weight: float
    """How much work it is, in characters or what takes as long."""
    run: Callable[[Candidate, Check], list[Any]]
    """Returns the result of each unit, as JSON knows it."""


@dataclass(frozen=True)
class Outcome:
    """What a task has come to."""

    measured: Sequence[Measured]
    """Its metrics, the telling one first."""
    details: Mapping[str, Any] = field(default_factory=dict)
    """What the report tells besides, as JSON knows it."""
    notes: Sequence[str] = ()
    """What readers should know, in sentences."""
    records: Sequence[Mapping[str, Any]] = ()
    """One line for each unit, for those who want to look closer."""


class TaskWork(Protocol):
    """One task with its files read."""

    @property
    def task(self) -> Task:
        """What is asked for."""

    @property
    def shards(self) -> Sequence[Shard]:
        """Its parts, in the order of its units."""

    def check(self, candidate: Candidate) -> None:
        """Raise BadInput where a model's tokenizer or template cannot do the task; weights are not needed for it."""

    def outcome(self, models: Sequence[str], results: Sequence[Sequence[Any]]) -> Outcome:
        """Return what came out; results[model][unit]."""


def chunks(items: Sequence[T], weights: Iterable[float], most: float, count: int) -> list[list[T]]:
    """Return neighbours together until they weigh `most` or are `count`; each chunk has one item at least."""
    found: list[list[T]] = []
    filled = most
    for item, weight in zip(items, weights, strict=True):
        if not found or filled + weight > most or len(found[-1]) >= count:
            found.append([])
            filled = 0.0
        found[-1].append(item)
        filled += weight
    return found
