"""Plots as inline SVG, without a library: lines of figures with intervals, and groups of bars.

Colours come from the page by CSS variables (--series-0, --series-1, ...), so that one plot is light and dark.
"""

import math
from collections.abc import Sequence
from html import escape
from typing import NamedTuple

WIDTH, LEFT, RIGHT, ROW, TOP, BOTTOM = 640, 150, 60, 30, 8, 26
SERIES = 8
"""Colours there are; more models begin anew."""


class Point(NamedTuple):
    """A figure with its interval, at one line of a plot."""

    label: str
    value: float
    low: float
    high: float
    told: str
    """The figure as text."""


def interval_plot(points: Sequence[Point], title: str, *, percent: bool = False) -> str:
    """Return a plot with one line a figure: a dot for the estimate, a bar for the interval; shares in percent."""
    known = [point for point in points if all(map(math.isfinite, point[1:4]))]
    if not known:
        return ""
    low, high = min(point.low for point in known), max(point.high for point in known)
    marks = ticks(low, high)
    scale = _Scale(min(low, marks[0]), max(high, marks[-1]))
    height = TOP + ROW * len(known) + BOTTOM
    parts = [_axis(scale, marks, height, percent=percent)]
    for line, point in enumerate(known):
        y = TOP + ROW * line + ROW / 2
        colour = f"var(--series-{line % SERIES})"
        x1, x2, x = scale.at(point.low), scale.at(point.high), scale.at(point.value)
        parts += [
            f'<text x="{LEFT - 10}" y="{y + 4:.1f}" class="label">{escape(point.label)}</text>',
            f'<line x1="{x1:.1f}" x2="{x2:.1f}" y1="{y:.1f}" y2="{y:.1f}" stroke="{colour}" stroke-width="3" '
            'stroke-linecap="round"/>',
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="5" fill="{colour}"><title>{escape(point.told)}</title></circle>',
        ]
    return _svg(parts, height, title)


class Bars(NamedTuple):
    """One group of bars: a subject and each model's share, 0 to 1."""

    label: str
    shares: Sequence[float]


def bar_plot(groups: Sequence[Bars], title: str, guess: float | None = None) -> str:
    """Return horizontal bars by group, one a series, from 0 to 1; `guess` is marked by a dashed line."""
    series = max(len(group.shares) for group in groups)
    thick = 9.0
    row = thick * series + 12
    height = round(TOP + row * len(groups) + BOTTOM)
    scale = _Scale(0.0, 1.0)
    parts = [_axis(scale, [0.0, 0.25, 0.5, 0.75, 1.0], height, percent=True)]
    for line, group in enumerate(groups):
        y = TOP + row * line + 6
        middle = y + thick * series / 2 + 4
        parts.append(f'<text x="{LEFT - 10}" y="{middle:.1f}" class="label">{escape(group.label)}</text>')
        for number, share in enumerate(group.shares):
            length = scale.at(share) - scale.at(0)
            told = f"{escape(group.label)}: {100 * share:.1f} %"
            parts.append(
                f'<rect x="{LEFT}" y="{y + thick * number:.1f}" width="{max(length, 0.5):.1f}" height="{thick - 1}" '
                f'fill="var(--series-{number % SERIES})"><title>{told}</title></rect>'
            )
    if guess is not None:
        x = scale.at(guess)
        parts.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{height - BOTTOM}" class="guess"/>')
    return _svg(parts, height, title)


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Return round numbers that span from `low` to `high`, about `count` of them."""
    if not high > low:
        low, high = low - (abs(low) or 1) * 0.05, high + (abs(high) or 1) * 0.05
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(step * number, 12) for number in range(first, last + 1)]


class _Scale(NamedTuple):
    low: float
    high: float

    def at(self, value: float) -> float:
        """Return the place of a value across the plot."""
        return LEFT + (value - self.low) / ((self.high - self.low) or 1) * (WIDTH - LEFT - RIGHT)


def _axis(scale: _Scale, marks: Sequence[float], height: int, *, percent: bool = False) -> str:
    parts = []
    for mark in marks:
        x = scale.at(mark)
        told = f"{100 * mark:g} %" if percent else f"{mark:g}"
        parts.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{height - BOTTOM}" class="grid"/>')
        parts.append(f'<text x="{x:.1f}" y="{height - 8}" class="tick">{told}</text>')
    return "".join(parts)


def _svg(parts: Sequence[str], height: int, title: str) -> str:
    return (
        f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(title, quote=True)}">'
        f"{''.join(parts)}</svg>"
    )
