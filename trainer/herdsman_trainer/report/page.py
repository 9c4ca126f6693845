"""The report as one HTML page that needs nothing else: no script, no font, no request."""

from collections.abc import Iterable, Sequence
from html import escape
from importlib.resources import files

from herdsman.api.v1alpha1.status import Artifact
from herdsman_trainer.report.charts import Series, line_chart, smoothed, thinned
from herdsman_trainer.report.facts import ATTEMPT_TITLES, Figure, RunFacts, Sample


def page(facts: RunFacts, artifact: Artifact) -> str:
    """Return the page."""
    title = f"{facts.kind} {facts.name}"
    sections = (
        f'<header><h1>{escape(title)}</h1><p class="lead">{escape(facts.summary())}</p></header>',
        _section("Result", f'<dl class="results">{"".join(map(_result, facts.results()))}</dl>'),
        _section("Curves", _charts(facts)),
        _section("Samples", _samples(facts.sample_list())),
        _section(
            "Trained on",
            _table(("input", "where", "SHA-256"), facts.inputs, code=(1, 2)) + _table(("data", ""), facts.data_rows()),
        ),
        _section(
            "How", f"<details><summary>The recipe</summary>{_table((), facts.setting_rows(), code=(0,))}</details>"
        ),
        _section("Attempts", _table(ATTEMPT_TITLES, facts.attempt_rows())),
        _section("Artifact", _table((), facts.artifact_rows(artifact), code=(1,))),
    )
    style = files("herdsman_trainer.report").joinpath("page.css").read_text(encoding="utf-8")
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{escape(title)}: report</title>\n<style>\n{style}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(section for section in sections if section)
        + "\n</main>\n</body>\n</html>\n"
    )


def _section(title: str, content: str) -> str:
    return f"<section><h2>{escape(title)}</h2>{content}</section>" if content else ""


def _folded(title: str, content: str) -> str:
    return f"<details><summary>{escape(title)}</summary>{content}</details>" if content else ""


def _result(figure: Figure) -> str:
    before = f'<span class="before">{escape(figure.before)} → </span>' if figure.before else ""
    return f"<div><dt>{escape(figure.name)}</dt><dd>{before}{escape(figure.after)}</dd></div>"


def _charts(facts: RunFacts) -> str:
    loss = thinned(facts.series("loss"))
    smooth = smoothed(loss)
    raw = [Series("each step", loss, "faint")] if smooth != loss else []
    held_out = Series("held out", facts.evaluations, "b", dots=True)
    charts = [
        line_chart(
            "Loss, nats a token", [*raw, Series("training", smooth, "a"), held_out], marks=facts.events, unit=" nats"
        ),
        *(
            line_chart(title, [Series(title, thinned(facts.series(name)), "a")], marks=facts.events)
            for title, name in (
                ("Learning rate", "learning_rate"),
                ("Tokens a second", "tokens_per_second"),
                ("MFU", "mfu"),
                ("Gradient's norm before clipping", "grad_norm"),
            )
        ),
    ]
    shown = "".join(charts)
    note = "".join(f"<li>step {step:g}: {escape(text)}</li>" for step, text in facts.events)
    events = f'<ul class="events">{note}</ul>' if note and shown else ""
    return f'<div class="charts">{shown}</div>{events}' if shown else ""


def _samples(samples: Sequence[Sample]) -> str:
    if not samples:
        return ""
    return '<p class="note">Written with the likeliest token each time.</p>' + "".join(map(_sample, samples))


def _sample(sample: Sample) -> str:
    rows = [(when, text, "") for when, text in sample.texts]
    rows += [("the data", sample.expected, "expected")] if sample.expected else []
    told = "".join(
        f'<div class="{style}"><dt>{escape(when)}</dt><dd>{escape(text) or "<i>nothing</i>"}</dd></div>'
        for when, text, style in rows
    )
    return f'<article class="sample"><h3>{escape(sample.prompt)}</h3><dl>{told}</dl></article>'


def _table(titles: Sequence[str], rows: Iterable[Sequence[str]], code: Sequence[int] = ()) -> str:
    """Return a table that scrolls by itself where it is wider than the page; `code` are columns of identifiers."""
    head = f"<thead><tr>{''.join(f'<th>{escape(title)}</th>' for title in titles)}</tr></thead>" if titles else ""
    body = "".join(
        "<tr>"
        + "".join(
            f"<td><code>{escape(cell)}</code></td>" if place in code else f"<td>{escape(cell)}</td>"
            for place, cell in enumerate(row)
        )
        + "</tr>"
        for row in rows
    )
    return f'<div class="wide"><table>{head}<tbody>{body}</tbody></table></div>' if body else ""
