"""Numbers that are not finite, and a loss that runs away: what is passed over, what is gone back for, what ends a run.

The counts are notes of the state, so they go into checkpoints: a resumed run decides as one that was not disturbed.
"""

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass

from herdsman.api.v1alpha1.divergence import Divergence
from herdsman_trainer.errors import Diverged

SKIPPED = "steps_not_finite"
"""Steps that were passed over because their loss or gradient was not finite, in all."""
IN_A_ROW, SINCE = "not_finite_in_a_row", "not_finite_since_step"
"""Such steps up to now without another one between, and the first of them."""
REWINDS = "rewinds"
"""How often the run went back to a checkpoint."""
PASSED_OVER = "batches_passed_over"
"""Global batches that were consumed beyond one a step: the data is so far ahead of the steps."""

FEWEST_EARLY_STEPS = 20
"""The start of a run is its warm-up, and at least so many steps."""
RUNAWAY_IN_A_ROW = 3
GENTLER = "Lower recipe.learningRate, lengthen the warm-up, or lower recipe.maxGradNorm, in a new resource."

_log = logging.getLogger(__name__)


class RanAway(Diverged):
    """The loss is far above its start: going back to a checkpoint would end the same way."""


@dataclass(frozen=True)
class Seen:
    """What a step showed."""

    step: int
    """Its number, counted from 1."""
    loss: float
    grad_norm: float
    applied: bool
    """Whether the weights have changed."""

    @property
    def is_finite(self) -> bool:
        """Whether it was a step like any other."""
        return math.isfinite(self.loss) and self.applied

    @property
    def what(self) -> str:
        """What is wrong, for people."""
        return f"loss is {self.loss}" if not math.isfinite(self.loss) else f"gradient's norm is {self.grad_norm}"


class DivergenceWatch:
    """Looks at every step and keeps count in the notes."""

    def __init__(self, policy: Divergence, early_steps: int) -> None:
        self._policy = policy
        self._early = max(early_steps, FEWEST_EARLY_STEPS)
        self._high = 0
        self._warned = False

    def look(self, seen: Seen, notes: dict[str, float], last_loss: float | None) -> bool:
        """Return whether the step is passed over; raises Diverged where one more may not be, or the loss runs away."""
        if seen.is_finite:
            notes.pop(IN_A_ROW, None)
            notes.pop(SINCE, None)
            self._look_for_runaway(seen, notes)
            return False
        notes[SKIPPED] = notes.get(SKIPPED, 0) + 1
        notes[IN_A_ROW] = notes.get(IN_A_ROW, 0) + 1
        since = notes.setdefault(SINCE, seen.step)
        before = (
            f" The last finite loss was {last_loss:.4f}, at step {int(since) - 1}." if last_loss is not None else ""
        )
        in_a_row, limit = int(notes[IN_A_ROW]), self._policy.skip
        if in_a_row > limit:
            again = f", for the {_ordinal(in_a_row)} step in a row" if limit else ""
            raise Diverged(f"The {seen.what} at step {seen.step}{again}.{before}", hint=GENTLER)
        _log.warning(
            "The %s at step %d: it is passed over, and the weights stay as they are (%d in a row of %d that may be).%s",
            seen.what,
            seen.step,
            in_a_row,
            limit,
            before,
        )
        return True

    def may_rewind(self, notes: Mapping[str, float]) -> bool:
        """Whether the run may go back to a checkpoint once more."""
        return int(notes.get(REWINDS, 0)) < self._policy.rewinds

    def _look_for_runaway(self, seen: Seen, notes: Mapping[str, float]) -> None:
        start = max(notes.get("train_loss_first", seen.loss), notes.get("heldout_loss_before", 0.0))
        self._high = self._high + 1 if seen.step <= self._early and is_far_above(seen.loss, start) else 0
        if self._high < RUNAWAY_IN_A_ROW:
            return
        what = (
            f"The loss ran away at once: {seen.loss:.4f} at step {seen.step}, after {start:.4f} at the start. "
            "The learning rate is too high for this model and batch."
        )
        if self._policy.runaway == "Fail":
            raise RanAway(what, hint=GENTLER)
        if not self._warned:
            _log.warning("%s %s", what, GENTLER)
            self._warned = True


def is_far_above(loss: float, start: float) -> bool:
    """Whether a loss in nats a token is so far above its start that no batch explains it: twice, and by 3 at least."""
    return loss > max(2 * start, start + 3)


def in_a_streak(notes: Mapping[str, float]) -> bool:
    """Whether the last step was passed over; the weights may be past saving, so no checkpoint is made of them."""
    return notes.get(IN_A_ROW, 0) > 0


def gone_back(notes: Mapping[str, float], now: Mapping[str, float], *, step: int, to: int) -> dict[str, float]:
    """Return the notes of a run that went from `step`, which is done, back to the checkpoint of the step `to`.

    `notes` are the checkpoint's and `now` those of the run. Batches up to `step` are not seen again.
    """
    then = {name: value for name, value in notes.items() if name not in (IN_A_ROW, SINCE)}
    counted = {REWINDS: now.get(REWINDS, 0) + 1, PASSED_OVER: now.get(PASSED_OVER, 0) + step - to}
    skipped = {SKIPPED: now[SKIPPED]} if SKIPPED in now else {}
    return {**then, **skipped, **counted}


def _ordinal(number: int) -> str:
    ending = {1: "st", 2: "nd", 3: "rd"}.get(number % 10 if number % 100 not in (11, 12, 13) else 0, "th")
    return f"{number}{ending}"
