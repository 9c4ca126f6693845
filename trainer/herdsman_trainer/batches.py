"""Batches of token ids with labels and masks, and the stream of micro-batches that a training step consumes."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from herdsman_trainer.mixture import MixedOrder, Mixture
from herdsman_trainer.sequence_order import GlobalBatch, Indices, Order, SequenceOrder, evaluation_indices

IGNORED = -100
"""The label of a position without a target; the default ignore_index of torch's cross-entropy."""

Ids = npt.NDArray[np.integer[Any]]


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows of equal length, all arrays of shape (rows, length).

    Labels stand at the position of the token itself: a model shifts them, the first column never has a target.
    """

    input_ids: npt.NDArray[np.int64]
    labels: npt.NDArray[np.int64]
    attention_mask: npt.NDArray[np.int64]
    text_targets: npt.NDArray[np.bool_]
    """Targets that are text rather than BOS, EOS or end of turn: the ones a loss per character sums over."""

    @property
    def targets(self) -> int:
        """The number of positions with a target."""
        return int((self.labels != IGNORED).sum())


class Sequences(Protocol):
    """What can be trained or evaluated on: a number of sequences, collated by their indices."""

    def __len__(self) -> int: ...

    def collate(self, indices: Indices) -> Batch:
        """Return the batch of these sequences; NO_SEQUENCE becomes a row without targets."""
        ...

    def targets(self, indices: Indices) -> int:
        """Return the number of targets in these sequences, without collating them."""
        ...


def collate_rows(
    rows: Sequence[tuple[Ids, int]],
    pad_id: int,
    control_ids: frozenset[int] = frozenset(),
    length: int | None = None,
    multiple: int = 8,
) -> Batch:
    """Return the right-padded batch of (ids, source length) rows; the source's labels are IGNORED.

    The mask follows from the lengths, so a pad id that also occurs in the text (EOS, for example) does no harm. Rows
    are as long as the longest, rounded up to `multiple`, or `length`. An empty row keeps one position of attention,
    for a row that attends to nothing is not a number in some kernels.
    """
    lengths = np.array([len(ids) for ids, _ in rows], np.int64)
    width = length or max(1, -(-int(lengths.max(initial=1)) // multiple) * multiple)
    input_ids = np.full((len(rows), width), pad_id, np.int64)
    labels = np.full((len(rows), width), IGNORED, np.int64)
    for row, (ids, source) in enumerate(rows):
        input_ids[row, : len(ids)] = ids
        labels[row, max(source, 1) : len(ids)] = ids[max(source, 1) :]
    mask = (np.arange(width) < np.maximum(lengths, 1)[:, None]).astype(np.int64)
    text_targets = (labels != IGNORED) & ~np.isin(labels, list(control_ids))
    return Batch(input_ids, labels, mask, text_targets)


class TrainingStream:
    """The micro-batches of every optimizer step; one process and N processes consume the same global batches."""

    def __init__(self, sequences: Sequences, batch: GlobalBatch, seed: int, mixture: Mixture | None = None) -> None:
        self.sequences = sequences
        self.batch = batch
        self._order: Order = SequenceOrder(seed, len(sequences)) if mixture is None else MixedOrder(seed, mixture)

    def micro_batches(self, step: int, rank: int = 0) -> Iterator[Batch]:
        """Yield the micro-batches of `rank` in `step` (from 0: the number of steps completed before)."""
        for indices in self._order.at(self.batch.positions(step, rank)):
            yield self.sequences.collate(indices)

    def targets(self, step: int) -> int:
        """Return the targets in the whole global batch, by which the summed loss of all ranks is divided."""
        first = step * self.batch.sequences
        return self.sequences.targets(self._order.at(np.arange(first, first + self.batch.sequences, dtype=np.int64)))


def evaluation_batches(
    sequences: Sequences, micro_sequences: int, rank: int = 0, world_size: int = 1
) -> Iterator[Batch]:
    """Yield every sequence once over all ranks, in order; each rank yields equally many batches."""
    for indices in evaluation_indices(len(sequences), micro_sequences, rank, world_size):
        yield sequences.collate(indices)
