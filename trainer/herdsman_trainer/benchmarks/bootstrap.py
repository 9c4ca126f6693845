"""Confidence intervals by the paired bootstrap: questions or documents are drawn anew, the same ones for all models.

A figure is a ratio of sums over units (losses over tokens, right answers over questions), so each draw is a vector of
counts and all figures of all models are matrix products with it. Intervals are percentiles of the draws.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from zlib import crc32

import numpy as np
import numpy.typing as npt

from herdsman.api.v1alpha1.evaluation_tasks import MetricName

LEVEL = 0.95
COUNTS_AT_ONCE = 8_000_000
"""Counts that are in memory together."""

Numbers = npt.NDArray[np.float64]


def _same(value: Numbers) -> Numbers:
    return value


@dataclass(frozen=True)
class Measured:
    """One metric of one task, for all models: `transform` of the sums of `above` over the sums of `below`."""

    metric: MetricName
    above: Numbers
    """Shape (models, units)."""
    below: Numbers
    """Shape (models, units)."""
    better: str
    """higher or lower."""
    transform: Callable[[Any], Any] = _same
    strata: npt.NDArray[np.int64] | None = None
    """The subject of each unit, where as many units of each are to be drawn as there are; None draws from all."""


@dataclass(frozen=True)
class Interval:
    """A figure and its confidence interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Difference:
    """A figure of one model less that of another."""

    value: float
    low: float
    high: float
    p: float
    """Twice the share of draws on the other side of zero: small where chance hardly explains the difference."""


class Draws:
    """A metric's figures in the draws, the same draws for all models."""

    def __init__(self, measured: Measured, resamples: int, seed: int, task: str) -> None:
        """Draw `resamples` times; the numbers follow from seed, task and metric alone."""
        self.measured = measured
        random = np.random.default_rng([seed, crc32(f"{task}/{measured.metric}".encode())])
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            self.values: Numbers = measured.transform(measured.above.sum(axis=1) / measured.below.sum(axis=1))
            self.draws: Numbers = measured.transform(_ratios(measured, resamples, random))

    def interval(self, model: int) -> Interval:
        """Return the figure of a model."""
        return Interval(float(self.values[model]), *_percentiles(self.draws[:, model]))

    def difference(self, model: int, other: int) -> Difference:
        """Return how much larger the figure of a model is than that of another."""
        draws = self.draws[:, model] - self.draws[:, other]
        beyond = min(float((draws <= 0).mean()), float((draws >= 0).mean()))
        value = float(self.values[model] - self.values[other])
        return Difference(value, *_percentiles(draws), min(1.0, 2 * beyond))


def _ratios(measured: Measured, resamples: int, random: np.random.Generator) -> Numbers:
    """Return the ratios in each draw, shape (resamples, models)."""
    units = measured.above.shape[1]
    stacked = np.concatenate([measured.above, measured.below]).T
    models = len(measured.above)
    rows = max(1, COUNTS_AT_ONCE // max(1, units))
    found = []
    for start in range(0, resamples, rows):
        sums = _counts(measured, min(rows, resamples - start), units, random) @ stacked
        found.append(sums[:, :models] / sums[:, models:])
    return np.concatenate(found)


def _counts(measured: Measured, rows: int, units: int, random: np.random.Generator) -> Numbers:
    """Return how often each unit is drawn, shape (rows, units)."""
    if measured.strata is None:
        return random.multinomial(units, np.full(units, 1 / units), size=rows).astype(np.float64)
    counts = np.zeros((rows, units))
    for stratum in np.unique(measured.strata):
        places = np.flatnonzero(measured.strata == stratum)
        share = np.full(len(places), 1 / len(places))
        counts[:, places] = random.multinomial(len(places), share, size=rows)
    return counts


def _percentiles(draws: Numbers) -> tuple[float, float]:
    low, high = np.quantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], method="inverted_cdf")
    return float(low), float(high)
