"""From outcomes to figures: intervals, differences, whether thresholds are met, and what goes into the status."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from herdsman.api.v1alpha1.evaluation import Threshold
from herdsman.api.v1alpha1.evaluation_tasks import MetricName
from herdsman_trainer.benchmarks.bootstrap import Difference, Draws, Interval
from herdsman_trainer.benchmarks.work import Outcome

AllDraws = Mapping[tuple[str, MetricName], Draws]
"""The draws of each metric, by task and metric."""


def draw_all(outcomes: Mapping[str, Outcome], resamples: int, seed: int) -> AllDraws:
    """Return the draws of all metrics."""
    return {
        (task, measured.metric): Draws(measured, resamples, seed, task)
        for task, outcome in outcomes.items()
        for measured in outcome.measured
    }


def metric_document(draws: Draws, models: Sequence[str]) -> dict[str, Any]:
    """Return one metric of all models as the report has it; the others are compared with the first."""
    entries = []
    for place, model in enumerate(models):
        entry: dict[str, Any] = {"model": model, **_interval(draws.interval(place))}
        if place:
            entry["difference"] = _difference(draws.difference(place, 0))
        entries.append(entry)
    return {"metric": draws.measured.metric, "better": draws.measured.better, "models": entries}


def threshold_documents(
    thresholds: Sequence[Threshold], draws: AllDraws, models: Sequence[str]
) -> list[dict[str, Any]]:
    """Return each threshold with the figure it is held against, and whether it is met."""
    found = []
    for threshold in thresholds:
        figure = _tested(threshold, draws[threshold.task, threshold.metric], models)
        missed = threshold.misses(figure.value, figure.low, figure.high)
        given = threshold.to_json()
        found.append({**given, **_interval(Interval(figure.value, figure.low, figure.high)), "met": not missed})
    return found


def status_figures(
    thresholds: Sequence[Threshold], outcomes: Mapping[str, Outcome], draws: AllDraws, models: Sequence[str]
) -> dict[str, str]:
    """Return what the status tells, in this order: what thresholds are held against, in full, because the operator
    decides by it; then of each task and model the telling figure.
    """
    found: dict[str, str] = {}
    for place, threshold in enumerate(thresholds):
        figure = _tested(threshold, draws[threshold.task, threshold.metric], models)
        found[f"threshold_{place}"] = repr(figure.value)
        if threshold.judged_by == "Interval":
            found |= {f"threshold_{place}_low": repr(figure.low), f"threshold_{place}_high": repr(figure.high)}
    for task, outcome in outcomes.items():
        metric = telling(outcome)
        values = draws[task, metric].values
        found |= {f"{task}/{model}/{metric}": f"{float(values[place]):.6g}" for place, model in enumerate(models)}
    return found


def telling(outcome: Outcome) -> MetricName:
    """Return the metric that stands for a task: the first that can be compared between all models."""
    names = [measured.metric for measured in outcome.measured]
    return "perplexityPerCharacter" if "perplexityPerCharacter" in names else names[0]


def _tested(threshold: Threshold, draws: Draws, models: Sequence[str]) -> Interval | Difference:
    place = models.index(threshold.model)
    if threshold.over is None:
        return draws.interval(place)
    return draws.difference(place, models.index(threshold.over))


def _interval(figure: Interval) -> dict[str, float | None]:
    return {"value": _number(figure.value), "low": _number(figure.low), "high": _number(figure.high)}


def _difference(figure: Difference) -> dict[str, float | None]:
    return {**_interval(Interval(figure.value, figure.low, figure.high)), "p": _number(figure.p)}


def _number(value: float) -> float | None:
    """Return a figure as JSON knows it: None where it is not finite."""
    return value if math.isfinite(value) else None
