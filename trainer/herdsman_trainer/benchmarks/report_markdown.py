"""The report as Markdown."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from herdsman_trainer.benchmarks.report import Document
from herdsman_trainer.benchmarks.words import TITLES, difference, facts, figure, limits, subject_of, with_interval

SHOWN_SAMPLES = 20
SHOWN_CHARACTERS = 600


def markdown(document: Document) -> str:
    """Return the report; every figure of it is in report.json too."""
    models = [model["name"] for model in document["models"]]
    lines = [f"# Evaluation {document['evaluation']}", ""]
    lines += _thresholds(document["thresholds"])
    lines += ["## In one table", "", *_summary(document, models), ""]
    level = round(100 * document["level"])
    lines += [
        f"In brackets: {level} % confidence intervals from {document['resamples']} paired bootstrap resamples (seed "
        f"{document['seed']}). Differences are to {models[0]}; p is how likely chance alone makes one as large.",
        "",
    ]
    for task in document["tasks"]:
        lines += [f"## {task['name']}", "", *_task(task, models)]
    lines += ["## Models", "", *_models(document["models"])]
    return "\n".join(lines).rstrip() + "\n"


def _thresholds(thresholds: Sequence[dict[str, Any]]) -> list[str]:
    if not thresholds:
        return []
    met = sum(each["met"] for each in thresholds)
    verdict = "All thresholds are met." if met == len(thresholds) else f"{met} of {len(thresholds)} thresholds are met."
    rows = (
        [subject_of(each), limits(each), with_interval("", each), "met" if each["met"] else "**not met**"]
        for each in thresholds
    )
    return [f"**{verdict}**", "", *_table(["threshold", "asked", "measured", ""], rows), ""]


def _summary(document: Document, models: Sequence[str]) -> Iterator[str]:
    rows = []
    for task in document["tasks"]:
        metric = next(each for each in task["metrics"] if each["metric"] == task["telling"])
        told = (with_interval(metric["metric"], entry) for entry in metric["models"])
        rows.append([f"{task['name']}: {TITLES[metric['metric']].lower()} ({metric['better']} is better)", *told])
    return _table(["", *models], rows)


def _task(task: dict[str, Any], models: Sequence[str]) -> Iterator[str]:
    rows = [
        [
            TITLES[metric["metric"]],
            entry["model"],
            with_interval(metric["metric"], entry),
            difference(metric["metric"], entry.get("difference")),
        ]
        for metric in task["metrics"]
        for entry in metric["models"]
    ]
    yield from _table(["figure", "model", "", f"less that of {models[0]}"], rows)
    yield ""
    for note in task["notes"]:
        yield f"> {note}"
        yield ""
    details = task["details"]
    if told := facts(details):
        yield from (told, "")
    for what in ("groups", "subjects"):
        if what in details:
            shares = [
                [row["name"], str(row["questions"]), *(figure("accuracy", row["accuracy"][model]) for model in models)]
                for row in details[what]
            ]
            yield from _table([what[:-1], "questions", *models], shares)
            yield ""
    for number, sample in enumerate(details.get("samples", [])[:SHOWN_SAMPLES], start=1):
        yield from _sample(number, sample)


def _sample(number: int, sample: dict[str, Any]) -> Iterator[str]:
    yield f"{number}. {_inline(sample['prompt'])}"
    for model, answer in sample["answers"].items():
        cut = "" if answer["stopped"] else " *(cut off)*"
        yield f"   - **{model}**: {_inline(answer['text'])}{cut}"
    for verdict in sample.get("verdicts", []):
        points = verdict["points"]
        told = "could not be read" if points is None else ", ".join(f"{each:g}" for each in points)
        yield f"   - judge on {', '.join(verdict['shown'])}: {told}"
    yield ""


def _models(models: Sequence[dict[str, Any]]) -> Iterator[str]:
    rows = [
        [
            model["name"],
            model["template"],
            f"{model['vocabulary']:,}",
            f"{model['contextLength']:,}",
            " + ".join(f"{digest[:12]}…" if digest else "plain files" for digest in model["digests"]),
        ]
        for model in models
    ]
    yield from _table(["model", "prompt template", "vocabulary", "context", "digests"], rows)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(head)} |"
    yield f"| {' | '.join('---' for _ in head)} |"
    for row in rows:
        yield f"| {' | '.join(_cell(cell) for cell in row)} |"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _inline(text: str) -> str:
    """Return an answer on one line, whose marks are no Markdown."""
    shown = text if len(text) <= SHOWN_CHARACTERS else text[:SHOWN_CHARACTERS] + "…"
    escaped = "".join(f"\\{letter}" if letter in "\\`*_[]<>#|" else letter for letter in shown)
    return " ".join(escaped.split()) or "(nothing)"
