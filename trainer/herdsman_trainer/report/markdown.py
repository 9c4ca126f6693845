"""The report as Markdown, for a terminal and for a repository's README."""

from collections.abc import Iterable, Sequence

from herdsman.api.v1alpha1.status import Artifact
from herdsman_trainer.loss_curve import LossCurve
from herdsman_trainer.report.facts import ATTEMPT_TITLES, RunFacts, Sample

CURVE_WIDTH = 60


def markdown(facts: RunFacts, artifact: Artifact) -> str:
    """Return the report; curves are lines of blocks."""
    results = [(figure.name, figure.before, figure.after) for figure in facts.results()]
    losses = facts.series("loss")
    curve = str(
        LossCurve(int(facts.figures.get("steps", 0)), ((int(step), loss) for step, loss in losses), CURVE_WIDTH)
    )
    parts = [
        f"# {_text(facts.kind)} {_text(facts.name)}",
        _text(facts.summary()),
        "## Result",
        _table(("", "before", "after"), results),
        *(["## Loss", f"`{curve}`", *_ends(losses)] if curve else []),
        _table(("step", "held-out loss"), _evaluations(facts)),
        *(
            [_table(("step", "what happened"), [(f"{step:g}", text) for step, text in facts.events])]
            * bool(facts.events)
        ),
        *_samples(facts.sample_list()),
        "## Trained on",
        _table(("input", "where", "SHA-256"), facts.inputs),
        _table(("data", ""), facts.data_rows()),
        "## How",
        _table(("setting", "value"), facts.setting_rows()),
        "## Attempts",
        _table(ATTEMPT_TITLES, facts.attempt_rows()),
        "## Artifact",
        _table(("", ""), facts.artifact_rows(artifact)),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _ends(losses: Sequence[tuple[float, float]]) -> list[str]:
    (first, start), (last, end) = losses[0], losses[-1]
    return [f"From {start:.4g} at step {first:g} to {end:.4g} at step {last:g}."]


def _evaluations(facts: RunFacts) -> list[tuple[str, str]]:
    return [(f"{step:g}", f"{loss:.4g}") for step, loss in facts.evaluations]


def _samples(samples: Sequence[Sample]) -> list[str]:
    if not samples:
        return []
    parts = [
        "## Samples",
        "Written with the likeliest token each time.",
    ]
    for sample in samples:
        parts.append(f"**{_text(sample.prompt)}**")
        rows = [(when, text) for when, text in sample.texts]
        parts.append(_table(("", "text"), [*rows, *([("the data", sample.expected)] if sample.expected else [])]))
    return parts


def _table(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(_text(cell) for cell in row)} |" for row in rows]
    if not lines:
        return ""
    return "\n".join([f"| {' | '.join(titles)} |", f"|{' --- |' * len(titles)}", *lines])


def _text(text: str) -> str:
    """Return text that means itself in Markdown, on one line."""
    escaped = "".join(f"\\{each}" if each in "\\`*_[]<>|#" else each for each in text)
    return " ".join(escaped.split())
