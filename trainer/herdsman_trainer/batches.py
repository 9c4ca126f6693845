"""Batches of token ids with labels and masks, and the stream of micro-batches that a training step consumes."""

import heapq
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
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
    places: npt.NDArray[np.int64] | None = None
    """The place of each row in the stream of all sequences, (rows); decides what dropout drops."""
    starts: npt.NDArray[np.bool_] | None = None
    """Where within a row another document begins, which sees nothing of the one before; None: nowhere."""

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

    def lengths_of(self, indices: Indices) -> npt.NDArray[np.int64]:
        """Return the tokens of each of these sequences, without collating them."""
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
    """The micro-batches of every optimizer step; one process and N processes consume the same global batches.

    With `micro_tokens` a micro-batch is as many sequences as have so many tokens together, and the sequences of a
    global batch go to the ranks so that all have about equally many tokens; the ranks may have different numbers of
    micro-batches then. Otherwise a micro-batch is `batch.micro_sequences` sequences.
    """

    def __init__(
        self,
        sequences: Sequences,
        batch: GlobalBatch,
        seed: int,
        micro_tokens: int | None = None,
        mixture: Mixture | None = None,
    ) -> None:
        self.sequences = sequences
        self.batch = batch
        self.micro_tokens = micro_tokens
        self._order: Order = SequenceOrder(seed, len(sequences)) if mixture is None else MixedOrder(seed, mixture)

    def micro_batches(self, step: int, rank: int = 0) -> Iterator[Batch | None]:
        """Yield the micro-batches of `rank` in `step` (from 0: the number of steps completed before).

        Every rank gets equally many, the last ones None where another rank has more.
        """
        for places in self._cut(step, rank):
            yield replace(self.sequences.collate(self._order.at(places)), places=places) if len(places) else None

    @property
    def longest(self) -> int:
        """The tokens of the longest sequence."""
        return int(self.sequences.lengths_of(np.arange(len(self.sequences))).max())

    def targets(self, step: int) -> int:
        """Return the targets in the whole global batch, by which the summed loss of all ranks is divided."""
        return self.sequences.targets(self._order.at(self._places(step)))

    def _places(self, step: int) -> Indices:
        first = step * self.batch.sequences
        return np.arange(first, first + self.batch.sequences, dtype=np.int64)

    def _cut(self, step: int, rank: int) -> Iterable[Indices]:
        if self.micro_tokens is None:
            return self.batch.positions(step, rank)
        places = self._places(step)
        lengths = self.sequences.lengths_of(self._order.at(places))
        shares = shared_evenly(lengths, self.batch.world_size)
        cuts = [[share[part] for part in filled(lengths[share], self.micro_tokens)] for share in shares]
        none = np.empty(0, np.int64)
        return [places[part] for part in (*cuts[rank], *[none] * (max(map(len, cuts)) - len(cuts[rank])))]


def shared_evenly(lengths: npt.NDArray[np.int64], ranks: int) -> list[Indices]:
    """Return each rank's sequences: the longest first, each to the rank with the fewest tokens yet (Graham 1969)."""
    if ranks == 1:
        return [np.arange(len(lengths))]
    shares: list[list[int]] = [[] for _ in range(ranks)]
    loads = [(0, rank) for rank in range(ranks)]
    for index in np.argsort(-lengths, kind="stable"):
        load, rank = heapq.heappop(loads)
        shares[rank].append(int(index))
        heapq.heappush(loads, (load + int(lengths[index]), rank))
    return [np.array(sorted(share), np.int64) for share in shares]


def filled(lengths: npt.NDArray[np.int64], most: int) -> list[Indices]:
    """Return consecutive parts with about equally many tokens each, `most` at most; a longer sequence is alone."""
    if not len(lengths):
        return []
    whole = int(lengths.sum())
    wanted = whole / -(-whole // most)
    parts: list[list[int]] = [[]]
    size = 0
    for index, length in enumerate(lengths.tolist()):
        if parts[-1] and (size + length > most or size + length / 2 > wanted):
            parts.append([])
            size = 0
        parts[-1].append(index)
        size += length
    return [np.array(part, np.int64) for part in parts]


def evaluation_batches(
    sequences: Sequences, micro_sequences: int, rank: int = 0, world_size: int = 1
) -> Iterator[Batch]:
    """Yield every sequence once over all ranks, in order; each rank yields equally many batches."""
    for indices in evaluation_indices(len(sequences), micro_sequences, rank, world_size):
        yield sequences.collate(indices)
