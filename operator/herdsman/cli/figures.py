"""Figures for people: durations, speeds, steps, bars."""

import math
from datetime import datetime

from herdsman.api.durations import duration
from herdsman.api.v1alpha1.status import Attempt, Progress, Status


def took(status: Status) -> float | None:
    """Return how long the attempts worked in all, in seconds; None where none has ended."""
    spans = [span(attempt) for attempt in status.attempts]
    known = [seconds for seconds in spans if seconds is not None]
    return sum(known) if known else None


def age(created: datetime | None, now: datetime) -> str:
    """Return how old something is."""
    return duration((now - created).total_seconds()) if created else ""


def loss(progress: Progress | None) -> str:
    """Return the loss with three decimals; empty where there is none."""
    found = next((item.value for item in progress.metrics if item.name == "loss"), None) if progress else None
    if found is None:
        return ""
    try:
        return f"{float(found):.3f}"
    except ValueError:
        return found


def shorter(value: str) -> str:
    """Return a decimal figure as people read it: 5.312, 0.0421, 12,345."""
    try:
        number = float(value)
    except ValueError:
        return value
    if not math.isfinite(number):
        return value
    if number == int(number) and abs(number) < 1e15:
        return f"{int(number):,}"
    if abs(number) >= 1000:
        return f"{number:,.0f}"
    return f"{number:.4g}" if abs(number) >= 1e-4 else f"{number:.2e}"


def speed(tokens_per_second: int | None) -> str:
    """Return 347 or 12.3k."""
    if tokens_per_second is None:
        return ""
    return f"{tokens_per_second / 1000:.1f}k" if tokens_per_second >= 10_000 else str(tokens_per_second)


def size(count: float) -> str:
    """Return bytes as 512 B, 1.5 MB or 13.5 GB."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def bar(percent: int, width: int) -> tuple[str, str]:
    """Return the done and the open part of a progress bar of `width` characters."""
    halves = round(percent / 100 * width * 2)
    done = "━" * (halves // 2) + ("╸" if halves % 2 else "")
    return done, "─" * (width - len(done))


def span(attempt: Attempt) -> float | None:
    """Return how long one attempt worked, in seconds; None while it has not ended."""
    return (attempt.ended - attempt.started).total_seconds() if attempt.started and attempt.ended else None
