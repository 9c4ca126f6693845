"""Thresholds: whether what an Evaluation measured is what its spec asks for."""

from collections.abc import Mapping, Sequence

from herdsman.api.v1alpha1.evaluation import Evaluation, Threshold
from herdsman.api.v1alpha1.registry import AnyResource
from herdsman.api.v1alpha1.status import Failure, Metric, Reason
from herdsman.core.conditions import shortened

HINT = (
    "The report has all figures, by subject and document. A better model, or other thresholds, need a new Evaluation: "
    "delete this one and apply it again, or give it another name."
)


def figure_name(place: int, part: str = "") -> str:
    """Return the name of the figure that spec.thresholds[place] is held against; `part` is low or high."""
    return f"threshold_{place}{f'_{part}' if part else ''}"


def failure(resource: AnyResource, report: Sequence[Metric]) -> Failure | None:
    """Return which thresholds of a finished Evaluation are not met, with the numbers; None for all others."""
    if not isinstance(resource, Evaluation):
        return None
    figures = {metric.name: metric.value for metric in report}
    unmet = [
        sentence
        for place, threshold in enumerate(resource.spec.thresholds)
        if (sentence := _unmet(place, threshold, figures)) is not None
    ]
    if not unmet:
        return None
    count = f"{len(unmet)} of {len(resource.spec.thresholds)} thresholds not met"
    message = shortened(f"{count}. {' '.join(unmet)}", 2048)
    return Failure(reason=Reason.THRESHOLD_NOT_MET, message=message, hint=HINT)


def _unmet(place: int, threshold: Threshold, figures: Mapping[str, str]) -> str | None:
    """Return how a figure misses its limits, or None."""
    what = f"{threshold.task}: {threshold.metric} of {threshold.model}"
    if threshold.over is not None:
        what += f" less that of {threshold.over}"
    estimate = _number(figures.get(figure_name(place)))
    if estimate is None:
        return f"{what} was not told by the run (spec.thresholds[{place}])."
    low = _or(_number(figures.get(figure_name(place, "low"))), float("-inf"))
    high = _or(_number(figures.get(figure_name(place, "high"))), float("inf"))
    misses = threshold.misses(estimate, low, high)
    if not misses:
        return None
    said = f"{estimate:.6g}"
    if threshold.judged_by == "Interval":
        said += f" (95 % interval {low:.6g} to {high:.6g})"
    whole = " for all of the interval" if threshold.judged_by == "Interval" else ""
    return f"{what} is {said}, and {' and '.join(misses)} is asked{whole} (spec.thresholds[{place}])."


def _number(text: str | None) -> float | None:
    try:
        return float(text) if text is not None else None
    except ValueError:
        return None


def _or(number: float | None, otherwise: float) -> float:
    return otherwise if number is None else number
