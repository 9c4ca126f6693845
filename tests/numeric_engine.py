"""An engine with four weights whose every update depends on the data, its order and all updates before.

So two runs end with the same weights only where they have learnt from the same batches in the same order, from the same
optimizer's state: as much as the real engines show, in microseconds.
"""

import math

import numpy as np
import torch

from herdsman_trainer.batches import Batch
from herdsman_trainer.engines import Update
from herdsman_trainer.training_state import MOMENTS, PARAMETER, StateReader


class Numbered:
    """Sequences whose first token is their number, so that an engine knows what it is given."""

    def __init__(self, count):
        self._count = count

    def __len__(self):
        return self._count

    def collate(self, indices):
        ids = np.array([[int(index) + 10, 1] for index in indices], np.int64)
        return Batch(ids, np.array([[-100, 1]] * len(indices), np.int64), np.ones_like(ids), ids > 0)

    def targets(self, indices):
        return int(np.size(indices))


class NumericEngine:
    """Trains four weights; what it is given for `poisoned` sequences is not a number, and `seen` keeps what it saw."""

    skips_overflows = False

    def __init__(self, poisoned=(), spoilt_after=None):
        self.shapes = {"w": torch.Size([4])}
        self.poisoned = set(poisoned)
        self.spoilt_after = spoilt_after
        """A sequence after whose update every loss is not a number, until the weights are brought back."""
        self.seen = []
        self._state = {PARAMETER: torch.zeros(4), **{entry: torch.zeros(4) for entry in MOMENTS}}
        self._updates = 0
        self._gradient = torch.zeros(4)
        self._numbers = []

    @property
    def weights(self):
        return self._state[PARAMETER].clone()

    def accumulate(self, batch, targets):
        numbers = batch.input_ids[:, 0] - 10
        self._numbers += numbers.tolist()
        for number in numbers.tolist():
            turn = torch.tensor([1.0, 2.0, 3.0, 4.0]) * (number + 1)
            self._gradient += torch.sin(turn + self._state[PARAMETER]) / targets
        bad = self.poisoned.intersection(numbers.tolist()) or not self._state[PARAMETER].abs().max() < 1e6
        return math.nan if bad else float(2.0 + self._gradient.sum() / 100) * len(numbers)

    def update(self, rate):
        numbers, self._numbers = self._numbers, []
        gradient, self._gradient = self._gradient, torch.zeros(4)
        if self.poisoned.intersection(numbers) or not self._state[PARAMETER].abs().max() < 1e6:
            return Update(math.nan, applied=False)
        self.seen.append(tuple(numbers))
        self._updates += 1
        first, second = (self._state[entry] for entry in MOMENTS)
        first.mul_(0.9).add_(gradient, alpha=0.1)
        second.mul_(0.99).addcmul_(gradient, gradient, value=0.01)
        self._state[PARAMETER].sub_((1 + rate) * first / (second.sqrt() + 0.1) / self._updates)
        if self.spoilt_after in numbers:
            self._state[PARAMETER].fill_(1e9)
        return Update(float(gradient.norm()), applied=True)

    def gather(self, entry, name):
        assert name == "w"
        return self._state[entry]

    def scalars(self):
        return {"updates": float(self._updates)}

    def load(self, directory):
        state = StateReader(directory)
        self._state = {entry: state.tensor(entry, "w") for entry in (PARAMETER, *MOMENTS)}
        self._updates = int(state.scalar("updates"))
