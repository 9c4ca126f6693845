"""The loss of a whole run in a line of blocks, small enough for a status: █▇▅▃▃▂▂▁."""

import math
from collections.abc import Iterable

WIDTH = 16
_BLOCKS = "▁▂▃▄▅▆▇█"


class LossCurve:
    """Means of the loss over equal parts of the run; parts that are still to come are not drawn."""

    def __init__(self, total_steps: int, known: Iterable[tuple[int, float]] = (), width: int = WIDTH) -> None:
        self._total = max(1, total_steps)
        self._width = min(width, self._total)
        self._sums = [0.0] * self._width
        self._counts = [0] * self._width
        for step, loss in known:
            self.add(step, loss)

    def add(self, step: int, loss: float) -> None:
        """Take the loss of a step, counted from 1; one that is not finite is left out."""
        if math.isfinite(loss):
            place = min(self._width - 1, max(0, step - 1) * self._width // self._total)
            self._sums[place] += loss
            self._counts[place] += 1

    def __str__(self) -> str:
        means = [total / count for total, count in zip(self._sums, self._counts, strict=True) if count]
        if not means:
            return ""
        low, high = min(means), max(means)
        scale = (len(_BLOCKS) - 1) / (high - low) if high > low else 0.0
        return "".join(_BLOCKS[round((mean - low) * scale)] for mean in means)
