"""Figures and headings as people read them."""

from typing import Any

TITLES = {
    "perplexity": "Perplexity per token",
    "perplexityPerCharacter": "Perplexity per character",
    "bitsPerByte": "Bits per byte",
    "tokensPerCharacter": "Tokens per character",
    "accuracy": "Accuracy",
    "accuracyOverSubjects": "Accuracy, mean of the subjects",
    "stopped": "Answers that ended by themselves",
    "score": "Score (0 to 10)",
    "winRate": "Better than the first model",
}
SHARES = frozenset({"accuracy", "accuracyOverSubjects", "stopped", "winRate"})
"""Metrics from 0 to 1, which are told in percent."""
NOTHING = "–"
LARGE = 1000
"""Figures from here on have no decimals."""


def figure(metric: str, value: float | None) -> str:
    """Return a figure: 36.7 %, 12.35, 0.4816."""
    if value is None:
        return "not finite"
    if metric in SHARES:
        return f"{100 * value:.1f} %"
    if metric == "score":
        return f"{value:.2f}"
    return f"{value:,.0f}" if abs(value) >= LARGE else f"{value:.4g}"


def with_interval(metric: str, entry: dict[str, Any]) -> str:
    """Return a figure with its interval: 36.7 % (34.1 – 39.3)."""
    low, high = (figure(metric, entry[name]).removesuffix(" %") for name in ("low", "high"))
    return f"{figure(metric, entry['value'])} ({low} – {high})"


def difference(metric: str, entry: dict[str, Any] | None) -> str:
    """Return a difference with its sign, its interval, and how likely chance alone makes it; shares in points."""
    if entry is None:
        return NOTHING
    value = entry["value"]
    sign = "+" if value is not None and value > 0 else ""
    told = f"{sign}{with_interval(metric, entry)}".replace(" %", " points")
    return f"{told}, p {_p(entry['p'])}"


def _p(value: float | None) -> str:
    if value is None:
        return NOTHING
    return "< 0.01" if value < 0.01 else f"= {value:.2f}"


def limits(threshold: dict[str, Any]) -> str:
    """Return what a threshold asks: ≥ 0.4 and ≤ 0.6."""
    asked = [(sign, threshold.get(name)) for sign, name in (("≥", "atLeast"), ("≤", "atMost"))]
    told = " and ".join(f"{sign} {value:g}" for sign, value in asked if value is not None)
    return f"{told}, all of the interval" if threshold.get("judgedBy") == "Interval" else told


def subject_of(threshold: dict[str, Any]) -> str:
    """Return what a threshold is about: ceval: accuracy of tuned less that of base."""
    over = f" less that of {threshold['over']}" if threshold.get("over") else ""
    return f"{threshold['task']}: {threshold['metric']} of {threshold['model']}{over}"


def facts(details: dict[str, Any]) -> str:
    """Return the plain figures of a task's details: Documents: 205, characters: 84207."""
    told = [
        f"{_spaced(name)}: {value:.4g}" if isinstance(value, float) else f"{_spaced(name)}: {value}"
        for name, value in details.items()
        if isinstance(value, str | int | float)
    ]
    text = ", ".join(told)
    return text[:1].upper() + text[1:] + "." if text else ""


def _spaced(name: str) -> str:
    """Return a name in camel case as words."""
    return "".join(f" {letter.lower()}" if letter.isupper() else letter for letter in name)
