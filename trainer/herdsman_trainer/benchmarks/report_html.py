"""The report as one page that needs nothing else: styles and plots are in it, light and dark, wide and narrow."""

import math
from collections.abc import Iterable, Iterator, Sequence
from html import escape
from typing import Any

from herdsman_trainer.benchmarks.report import Document
from herdsman_trainer.benchmarks.svg import SERIES, Bars, Point, bar_plot, interval_plot
from herdsman_trainer.benchmarks.words import (
    SHARES,
    TITLES,
    difference,
    facts,
    figure,
    limits,
    subject_of,
    with_interval,
)

SHOWN_SAMPLES = 200
GUESS = 0.25
"""What one of four answers comes to by chance."""
_LIGHT = ("#2563ab", "#c2571a", "#2b7a4b", "#8a3ea8", "#a8283c", "#4f6b00", "#0b7285", "#6b5b4b")
_DARK = ("#7fb2ee", "#f0a06a", "#7fcf9f", "#d09ae8", "#ee8a98", "#b9cf6a", "#6cc7d8", "#c9b8a5")
_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<meta name="color-scheme" content="light dark">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<main>
{body}
</main>
</body>
</html>
"""
_STYLE = """
:root { --ground: #ffffff; --panel: #f6f7f9; --ink: #1c2330; --faint: #5b6472; --line: #d9dde4; --good: #1d6b3d;
  --bad: #a32033; %LIGHT% }
@media (prefers-color-scheme: dark) { :root { --ground: #14171c; --panel: #1d2128; --ink: #e4e7ec; --faint: #9aa3b0;
  --line: #343a45; --good: #7fcf9f; --bad: #f08a98; %DARK% } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--ground); color: var(--ink);
  font: 16px/1.5 system-ui, "Noto Sans CJK SC", "PingFang SC", "Microsoft YaHei", sans-serif; }
main { max-width: 62rem; margin: 0 auto; padding: 1.5rem 1rem 4rem; }
h1 { font-size: 1.7rem; margin: 0 0 1rem; overflow-wrap: anywhere; }
h2 { font-size: 1.25rem; margin: 2.5rem 0 .75rem; padding-top: 1rem; border-top: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 1.25rem 0 .25rem; }
.verdict { font-weight: 600; padding: .6rem .9rem; border-left: .3rem solid; background: var(--panel); }
.verdict.good, .met { color: var(--good); } .verdict.bad, .unmet { color: var(--bad); }
.wide { overflow-x: auto; }
table { border-collapse: collapse; margin: .75rem 0; font-size: .92rem; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .35rem .8rem .35rem 0; border-bottom: 1px solid var(--line); vertical-align: top; }
th { color: var(--faint); font-weight: 600; } td.number { white-space: nowrap; }
.note, .facts, footer { color: var(--faint); font-size: .92rem; }
.note { border-left: .25rem solid var(--line); padding-left: .75rem; }
.swatch { display: inline-block; width: .7em; height: .7em; border-radius: 2px; margin-right: .35em; }
.legend span { margin-right: 1rem; white-space: nowrap; }
svg { width: 100%; max-width: 42rem; height: auto; display: block; }
svg text { fill: var(--ink); font: 13px system-ui, "Noto Sans CJK SC", sans-serif; }
svg .label { text-anchor: end; } svg .tick { text-anchor: middle; fill: var(--faint); font-size: 12px; }
svg .grid { stroke: var(--line); } svg .guess { stroke: var(--faint); stroke-dasharray: 4 4; }
.sample { margin: 1rem 0; padding: .8rem 1rem; background: var(--panel); border-radius: .4rem; }
.prompt { font-weight: 600; white-space: pre-wrap; overflow-wrap: anywhere; margin: 0 0 .6rem; }
.answers { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fit, minmax(min(100%, 17rem), 1fr)); }
.answers h4 { margin: 0; font-size: .85rem; color: var(--faint); }
.answers p { margin: .2rem 0 0; white-space: pre-wrap; overflow-wrap: anywhere; }
@media (max-width: 40rem) { td.number { white-space: normal; min-width: 6rem; } }
details { margin: .75rem 0; } summary { cursor: pointer; color: var(--faint); }
"""


def page(document: Document) -> str:
    """Return the page; text of models and files is escaped, and a content policy forbids whatever runs or loads."""
    models = [model["name"] for model in document["models"]]
    title = f"Evaluation {document['evaluation']}"
    parts = [f"<h1>{escape(title)}</h1>", *_thresholds(document["thresholds"]), *_summary(document, models)]
    for task in document["tasks"]:
        parts += [f"<h2>{escape(task['name'])}</h2>", *_task(task, models)]
    parts += ["<h2>Models</h2>", *_models(document["models"])]
    style = _STYLE.replace("%LIGHT%", _colours(_LIGHT)).replace("%DARK%", _colours(_DARK))
    return _PAGE.format(title=escape(title), style=style, body="\n".join(parts))


def _colours(colours: Sequence[str]) -> str:
    return " ".join(f"--series-{number}: {colour};" for number, colour in enumerate(colours))


def _thresholds(thresholds: Sequence[dict[str, Any]]) -> Iterator[str]:
    if not thresholds:
        return
    met = sum(each["met"] for each in thresholds)
    good = met == len(thresholds)
    told = "All thresholds are met." if good else f"{met} of {len(thresholds)} thresholds are met."
    yield f'<p class="verdict {"good" if good else "bad"}">{told}</p>'
    rows = [
        [
            escape(subject_of(each)),
            escape(limits(each)),
            with_interval("", each),
            f'<span class="{"met" if each["met"] else "unmet"}">{"met" if each["met"] else "not met"}</span>',
        ]
        for each in thresholds
    ]
    yield _table(["threshold", "asked", "measured", ""], rows)


def _summary(document: Document, models: Sequence[str]) -> Iterator[str]:
    rows = []
    for task in document["tasks"]:
        metric = next(each for each in task["metrics"] if each["metric"] == task["telling"])
        name = f"{escape(task['name'])}: {TITLES[metric['metric']].lower()} ({metric['better']} is better)"
        rows.append([name, *(with_interval(metric["metric"], entry) for entry in metric["models"])])
    yield _table(["", *map(escape, models)], rows)
    level = round(100 * document["level"])
    yield (
        f'<p class="facts">In brackets: {level} % confidence intervals from {document["resamples"]} paired bootstrap '
        f"resamples (seed {document['seed']}). Differences are to {escape(models[0])}; p is how likely chance alone "
        "makes one as large.</p>"
    )


def _task(task: dict[str, Any], models: Sequence[str]) -> Iterator[str]:
    for note in task["notes"]:
        yield f'<p class="note">{escape(note)}</p>'
    for metric in task["metrics"]:
        yield f"<h3>{TITLES[metric['metric']]}</h3>"
        points = [_point(metric["metric"], entry) for entry in metric["models"]]
        yield interval_plot(points, TITLES[metric["metric"]], percent=metric["metric"] in SHARES)
        rows = [
            [
                escape(entry["model"]),
                with_interval(metric["metric"], entry),
                escape(difference(metric["metric"], entry.get("difference"))),
            ]
            for entry in metric["models"]
        ]
        yield _table(["model", "", f"less that of {escape(models[0])}"], rows)
    details = task["details"]
    if told := facts(details):
        yield f'<p class="facts">{escape(told)}</p>'
    if "groups" in details:
        yield _legend(models)
        bars = [Bars(row["name"], [row["accuracy"][model] for model in models]) for row in details["groups"]]
        yield bar_plot(bars, "Accuracy by group", GUESS)
        yield f"<details><summary>{len(details['subjects'])} subjects</summary>{_subjects(details, models)}</details>"
    yield from _samples(details.get("samples", []))


def _subjects(details: dict[str, Any], models: Sequence[str]) -> str:
    rows = [
        [escape(row["name"]), str(row["questions"]), *(figure("accuracy", row["accuracy"][model]) for model in models)]
        for row in details["subjects"]
    ]
    return _table(["subject", "questions", *map(escape, models)], rows)


def _point(metric: str, entry: dict[str, Any]) -> Point:
    value, low, high = (math.nan if entry[name] is None else float(entry[name]) for name in ("value", "low", "high"))
    return Point(entry["model"], value, low, high, with_interval(metric, entry))


def _samples(samples: Sequence[dict[str, Any]]) -> Iterator[str]:
    for sample in samples[:SHOWN_SAMPLES]:
        answers = "".join(
            f"<div><h4>{escape(model)}{'' if answer['stopped'] else ' (cut off)'}</h4>"
            f"<p>{escape(answer['text']) or '<em>nothing</em>'}</p></div>"
            for model, answer in sample["answers"].items()
        )
        yield f'<div class="sample"><p class="prompt">{escape(sample["prompt"])}</p>'
        yield f'<div class="answers">{answers}</div>'
        yield from (_verdict(verdict) for verdict in sample.get("verdicts", []))
        yield "</div>"
    if len(samples) > SHOWN_SAMPLES:
        yield f'<p class="facts">{len(samples) - SHOWN_SAMPLES} more are in the folder records.</p>'


def _verdict(verdict: dict[str, Any]) -> str:
    points = verdict["points"]
    told = "points that cannot be read" if points is None else " and ".join(f"{each:g}" for each in points)
    shown = " and ".join(map(escape, verdict["shown"]))
    return (
        f"<details><summary>The judge on {shown}: {told}</summary>"
        f'<p class="prompt" style="font-weight: 400">{escape(verdict["reply"])}</p></details>'
    )


def _models(models: Sequence[dict[str, Any]]) -> Iterator[str]:
    rows = [
        [
            _swatch(number) + escape(model["name"]),
            escape(model["template"]),
            f"{model['vocabulary']:,}",
            f"{model['contextLength']:,}",
            " + ".join(f"<code>{digest[:12]}…</code>" if digest else "plain files" for digest in model["digests"]),
        ]
        for number, model in enumerate(models)
    ]
    yield _table(["model", "prompt template", "vocabulary", "context", "digests"], rows)


def _legend(models: Sequence[str]) -> str:
    marked = (f"<span>{_swatch(number)}{escape(model)}</span>" for number, model in enumerate(models))
    return f'<p class="legend">{"".join(marked)}</p>'


def _swatch(number: int) -> str:
    return f'<i class="swatch" style="background: var(--series-{number % SERIES})"></i>'


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    body = "".join(
        f"<tr>{''.join(f'<td{_number(place)}>{cell}</td>' for place, cell in enumerate(row))}</tr>" for row in rows
    )
    named = "".join(f"<th>{cell}</th>" for cell in head)
    return f'<div class="wide"><table><thead><tr>{named}</tr></thead><tbody>{body}</tbody></table></div>'


def _number(place: int) -> str:
    return ' class="number"' if place else ""
