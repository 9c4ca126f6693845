"""Sequences for tests of the loop, without files and tokenizers."""

import numpy as np

from herdsman_trainer.batches import collate_rows
from herdsman_trainer.sequence_order import NO_SEQUENCE

PADDING = 0


class Rows:
    """Sequences of different lengths; the first part of each is a prompt."""

    def __init__(self, count=8, empty=()):
        random = np.random.RandomState(5)
        lengths = random.randint(6, 30, count)
        self._rows = [(random.randint(3, 400, n), n if i in empty else n // 3) for i, n in enumerate(lengths)]

    def __len__(self):
        return len(self._rows)

    def collate(self, indices):
        return collate_rows(
            [self._rows[i] if i != NO_SEQUENCE else (np.empty(0, np.int64), 0) for i in indices], PADDING
        )

    def targets(self, indices):
        return self.collate(np.asarray(indices).reshape(-1)).targets

    def lengths_of(self, indices):
        return np.array([len(self._rows[i][0]) for i in indices], np.int64)
