"""Line charts as HTML with inline SVG: the lines stretch with the page, and the words keep their size."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

Points = Sequence[tuple[float, float]]
MOST_POINTS = 400
WIDTH, HEIGHT = 1000.0, 300.0
"""The coordinates of the drawing, which is stretched to the place it has."""


@dataclass(frozen=True)
class Series:
    """One line or row of dots."""

    name: str
    points: Points
    style: str = "a"
    """The class of the line, which has its colour: a, b, faint."""
    dots: bool = False


def line_chart(title: str, series: Sequence[Series], *, marks: Sequence[tuple[float, str]] = (), unit: str = "") -> str:
    """Return a figure; nothing where no series has two points. `marks` are vertical lines with what happened there."""
    drawn = [each for each in series if each.points]
    if not any(len(each.points) > 1 for each in drawn):
        return ""
    every = [point for each in drawn for point in each.points]
    left, right = min(x for x, _ in every), max(x for x, _ in every)
    low, high, cut = _range([y for _, y in every])
    frame = _Frame(left, max(right, left + 1), low, high)
    lines = "".join(_mark(frame, x, text) for x, text in marks) + "".join(_drawn(frame, each) for each in drawn)
    grid = "".join(f'<path class="grid" d="M0 {frame.y(y):.1f}H{WIDTH:g}"/>' for y in frame.ticks)
    labels = "".join(f'<span style="top:{frame.y(y) / HEIGHT:.2%}">{_short(y)}</span>' for y in frame.ticks)
    named = [each for each in drawn if each.style != "faint"]
    legend = "".join(
        f'<li><i class="{"dot " if each.dots else ""}{each.style}"></i>{escape(each.name)}</li>'
        for each in (named if len(named) > 1 else ())
    )
    note = f"<li>peaks up to {_short(cut)} are cut</li>" if cut is not None else ""
    return (
        f'<figure class="chart"><figcaption><b>{escape(title)}</b><ul>{legend}{note}</ul></figcaption>'
        f'<div class="plot"><div class="y">{labels}</div>'
        f'<svg viewBox="0 0 {WIDTH:g} {HEIGHT:g}" preserveAspectRatio="none" role="img" '
        f'aria-label="{escape(_told(title, drawn[0].points, unit))}">{grid}{lines}</svg></div>'
        f'<div class="x"><span>step {_short(frame.left)}</span><span>{_short(frame.right)}</span></div></figure>'
    )


def smoothed(points: Points) -> list[tuple[float, float]]:
    """Return a running mean over a twentieth of the points; the points themselves where there are few."""
    window = len(points) // 20
    if window < 2:
        return list(points)
    result = []
    for place in range(len(points)):
        part = points[max(0, place - window) : place + window + 1]
        result.append((points[place][0], sum(y for _, y in part) / len(part)))
    return result


def thinned(points: Points, most: int = MOST_POINTS) -> list[tuple[float, float]]:
    """Return at most so many points, each the mean of its neighbours."""
    size = math.ceil(len(points) / most)
    if size <= 1:
        return list(points)
    parts = [points[start : start + size] for start in range(0, len(points), size)]
    return [(sum(x for x, _ in part) / len(part), sum(y for _, y in part) / len(part)) for part in parts]


@dataclass(frozen=True)
class _Frame:
    left: float
    right: float
    low: float
    high: float

    def x(self, value: float) -> float:
        return (value - self.left) / (self.right - self.left) * WIDTH

    def y(self, value: float) -> float:
        share = (min(value, self.high) - self.low) / (self.high - self.low)
        return (1 - share) * HEIGHT

    @property
    def ticks(self) -> list[float]:
        step = _nice((self.high - self.low) / 5)
        first = math.ceil(self.low / step - 1e-9)
        return [place * step for place in range(first, math.floor(self.high / step + 1e-9) + 1)]


def _range(values: Sequence[float]) -> tuple[float, float, float | None]:
    """Return the range that is drawn, and the highest value where a few peaks would flatten all the rest."""
    ordered = sorted(values)
    low, high = ordered[0], ordered[-1]
    usual = ordered[math.ceil(0.98 * (len(ordered) - 1))]
    cut = None
    if high - low > 2.5 * (usual - low) > 0:
        high, cut = low + 1.2 * (usual - low), high
    room = (high - low) * 0.04 or abs(high) * 0.1 or 1.0
    bottom = 0.0 if 0 <= low < 0.25 * high else low - room
    return bottom, high + room, cut


def _nice(step: float) -> float:
    """Return the next of 1, 2 or 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(step))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= step * (1 - 1e-9))


def _drawn(frame: _Frame, series: Series) -> str:
    points = [(frame.x(x), frame.y(y)) for x, y in series.points]
    if series.dots:
        told = [f"step {_short(step)}: {value:.4g}" for step, value in series.points]
        dots = (f'<path class="dot {series.style}" d="M{x:.1f} {y:.1f}h0">' for x, y in points)
        return "".join(f"{dot}<title>{text}</title></path>" for dot, text in zip(dots, told, strict=True))
    return f'<path class="line {series.style}" d="M{"L".join(f"{x:.1f} {y:.1f}" for x, y in points)}"/>'


def _mark(frame: _Frame, step: float, text: str) -> str:
    if not frame.left <= step <= frame.right:
        return ""
    return f'<path class="mark" d="M{frame.x(step):.1f} 0V{HEIGHT:g}"><title>{escape(text)}</title></path>'


def _told(title: str, points: Points, unit: str) -> str:
    (first, start), (last, end) = points[0], points[-1]
    least = min(y for _, y in points)
    return (
        f"{title}: from {_short(start)}{unit} at step {_short(first)} to {_short(end)}{unit} at step {_short(last)}, "
        f"at least {_short(least)}{unit}"
    )


def _short(value: float) -> str:
    """Return a figure in a few characters: 12,500, 0.25, 2e-05."""
    if value == 0:
        return "0"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}" if abs(value) >= 0.001 else f"{value:.1e}".replace("e-0", "e-")
