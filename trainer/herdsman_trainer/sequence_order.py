"""Which sequences an optimizer step consumes: a stream over shuffled epochs that does not depend on the world size."""

from dataclasses import dataclass
from fractions import Fraction
from math import ceil
from typing import Protocol

import numpy as np
import numpy.typing as npt

from herdsman_trainer.errors import BadInput

Indices = npt.NDArray[np.int64]

NO_SEQUENCE = -1
"""Stands for an empty row, where ranks must make equally many forward passes over unequally many sequences."""


class Order(Protocol):
    """An endless stream of sequences."""

    def at(self, positions: Indices) -> Indices:
        """Return the sequence at each stream position, in the shape of `positions`."""
        ...


def order(seed: int, epoch: int, count: int, part: int | None = None) -> Indices:
    """Return the permutation of `count` sequences for one epoch; parts of a mixture have permutations of their own.

    NumPy promises this generator's stream for all its versions (RandomState), which a resumed run relies on.
    """
    words = [seed & 0xFFFFFFFF, seed >> 32 & 0xFFFFFFFF, epoch, *([] if part is None else [part])]
    return np.random.RandomState(words).permutation(count).astype(np.int64, copy=False)


@dataclass(frozen=True, slots=True)
class GlobalBatch:
    """How `sequences` of one optimizer step are spread over ranks and micro-batches."""

    sequences: int
    micro_sequences: int
    world_size: int = 1

    def __post_init__(self) -> None:
        if self.sequences % self.world_size:
            below = self.sequences // self.world_size * self.world_size
            nearest = [str(value) for value in (below, below + self.world_size) if value]
            raise BadInput(
                f"globalSequences is {self.sequences}, which {self.world_size} processes cannot share equally.",
                hint=f"Set it to {' or '.join(nearest)}, or use another number of processes.",
            )
        if self.sequences // self.world_size % self.micro_sequences:
            best = largest_micro_batch(self.sequences, self.world_size, self.micro_sequences)
            raise BadInput(
                f"A process's {self.sequences // self.world_size} sequences cannot be cut into micro-batches of "
                f"{self.micro_sequences}.",
                hint=f"Set microSequences to {best}.",
            )

    @property
    def accumulation(self) -> int:
        """Micro-batches of one rank in one optimizer step."""
        return self.sequences // self.world_size // self.micro_sequences

    def positions(self, step: int, rank: int) -> Indices:
        """Return the stream positions of `rank` in `step` (both from 0), shape (accumulation, micro_sequences).

        Step s consumes positions s·G to (s+1)·G − 1 for every world size, so the step number is the whole cursor.
        """
        own = np.arange(self.sequences, dtype=np.int64).reshape(
            self.accumulation, self.world_size, self.micro_sequences
        )
        return own[:, rank, :] + step * self.sequences


def largest_micro_batch(global_sequences: int, world_size: int, at_most: int) -> int:
    """Return the largest micro-batch up to `at_most` that divides a rank's share of the global batch."""
    share = global_sequences // world_size
    return max(size for size in range(1, max(1, min(at_most, share)) + 1) if share % size == 0)


class SequenceOrder:
    """The endless stream of sequences: epoch after epoch, each in its own order.

    A global batch at the end of an epoch goes on into the next one: nothing is dropped and nothing is padded.
    """

    def __init__(self, seed: int, count: int, part: int | None = None) -> None:
        self.seed = seed
        self.count = count
        self.part = part
        self._epochs: dict[int, Indices] = {}

    def at(self, positions: Indices) -> Indices:
        """Return the sequence at each stream position, in the shape of `positions`."""
        epochs, places = np.divmod(positions, self.count)
        result = np.empty_like(positions)
        needed = [int(epoch) for epoch in np.unique(epochs)]
        self._epochs = {epoch: self._epoch(epoch) for epoch in needed}
        for epoch in needed:
            inside = epochs == epoch
            result[inside] = self._epochs[epoch][places[inside]]
        return result

    def _epoch(self, epoch: int) -> Indices:
        known = self._epochs.get(epoch)
        return order(self.seed, epoch, self.count, self.part) if known is None else known


def total_steps(count: int, global_sequences: int, *, epochs: float = 1.0, max_steps: int | None = None) -> int:
    """Return the number of optimizer steps: `max_steps` where given, else the fewest that consume all of `epochs`.

    Rounding is up, so every sequence is consumed; the surplus of the last step comes from the next epoch's order.
    """
    if max_steps is not None:
        return max_steps
    return ceil(Fraction(str(epochs)) * count / global_sequences)


def evaluation_indices(count: int, micro_sequences: int, rank: int = 0, world_size: int = 1) -> Indices:
    """Return each evaluation sequence once over all ranks, shape (batches, micro_sequences), filled with NO_SEQUENCE.

    Every rank gets equally many batches, as collective operations inside the forward pass need.
    """
    per_round = micro_sequences * world_size
    rounds = -(-count // per_round)
    indices = np.full(rounds * per_round, NO_SEQUENCE, np.int64)
    indices[:count] = np.arange(count)
    return indices.reshape(rounds, world_size, micro_sequences)[:, rank, :]
