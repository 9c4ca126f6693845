"""The figures of a finished run in a line or two: what changed first, the rest in `herdsman describe`."""

from collections.abc import Iterator, Mapping

from herdsman.api.v1alpha1.status import Status
from herdsman.cli.figures import shorter

_CHANGES = (("_before", "_after"), ("_first", "_last"))
"""Endings of two figures that belong together."""
_OTHERS = 4
"""Figures shown beside those that changed."""


def report_line(status: Status) -> str:
    """Return what changed, as "loss 5.1 → 4.2 (base 6.0)", and a few of the other figures.

    Of an Evaluation: each task with its figure of each model, and not what thresholds are held against.
    """
    figures = {item.name: item.value for item in status.report}
    if compared := _compared(figures):
        return " · ".join(f"{task}: {', '.join(told)}" for task, told in compared.items())
    changes = list(_changes(figures))
    paired = {name for names, _ in changes for name in names}
    others = [f"{_words(name)} {shorter(value)}" for name, value in figures.items() if name not in paired]
    return " · ".join([*(text for _, text in changes), *others[:_OTHERS]])


def _changes(figures: Mapping[str, str]) -> Iterator[tuple[tuple[str, ...], str]]:
    """Yield the names of figures that belong together, and their text."""
    for before, after in _CHANGES:
        for name, value in figures.items():
            stem = name.removesuffix(before)
            if stem == name or f"{stem}{after}" not in figures:
                continue
            base = f"{stem}_base"
            told = f" (base {shorter(figures[base])})" if base in figures else ""
            text = f"{_words(stem)} {shorter(value)} → {shorter(figures[f'{stem}{after}'])}{told}"
            yield (name, f"{stem}{after}", base), text


def _compared(figures: Mapping[str, str]) -> dict[str, list[str]]:
    """Return, by task and metric, "model figure" of each figure that is called task/model/metric."""
    found: dict[str, list[str]] = {}
    for name, value in figures.items():
        parts = name.split("/")
        if len(parts) == 3:
            task, model, metric = parts
            found.setdefault(f"{task} {metric}", []).append(f"{model} {shorter(value)}")
    return found


def _words(name: str) -> str:
    return name.replace("_", " ")
