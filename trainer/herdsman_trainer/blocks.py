"""Blocks of a token stream: packed over the whole corpus for training, overlapping by one token for evaluation."""

from dataclasses import replace
from typing import Any

import numpy as np

from herdsman_trainer.batches import IGNORED, Batch, collate_rows
from herdsman_trainer.errors import BadInput
from herdsman_trainer.sequence_order import NO_SEQUENCE, Indices
from herdsman_trainer.token_streams import DocumentStarts, TokenArray, starts_between

Places = np.ndarray[Any, np.dtype[np.int64]]
_NO_TOKENS = np.empty(0, np.int64)


class PackedBlocks:
    """Block i is tokens[i·B : (i+1)·B] of all documents in order; only the remainder at the very end is left out.

    Blocks cross documents; with `starts` no token sees another document, and the first of a document is no target.
    """

    def __init__(self, tokens: TokenArray, block_size: int, starts: DocumentStarts | None = None) -> None:
        _check_block_size(block_size)
        if len(tokens) < block_size:
            raise BadInput(
                f"The training documents have {len(tokens)} tokens, but one block needs {block_size}.",
                hint=f"Set blockSize to {len(tokens)} or less, or add text."
                if len(tokens) > 1
                else "Add text to the dataset.",
            )
        self.block_size = block_size
        self.tokens_left_out = len(tokens) % block_size
        self._starts = starts
        self._blocks = tokens[: len(tokens) - self.tokens_left_out].reshape(-1, block_size)

    def __len__(self) -> int:
        return len(self._blocks)

    def collate(self, indices: Indices) -> Batch:
        """Return the blocks as a batch of shape (indices, block_size); every token but a block's first is a target."""
        batch = collate_rows(
            [(_NO_TOKENS if i == NO_SEQUENCE else self._blocks[i], 1) for i in indices], 0, length=self.block_size
        )
        return _separated(batch, [self._starts_in(int(i)) for i in indices])

    def targets(self, indices: Indices) -> int:
        """Return the number of targets: block_size − 1 a block, less the beginnings of documents."""
        beginnings = sum(len(self._starts_in(int(i))) for i in indices) if self._starts is not None else 0
        return int((indices != NO_SEQUENCE).sum()) * (self.block_size - 1) - beginnings

    def lengths_of(self, indices: Indices) -> np.ndarray[Any, np.dtype[np.int64]]:
        """Return the tokens of each block."""
        return np.full(indices.shape, self.block_size, np.int64)

    def _starts_in(self, index: int) -> Places:
        return _starts_within(self._starts, index, index * self.block_size, self.block_size)


class HeldOutBlocks:
    """All held-out tokens for evaluation, each a target exactly once.

    A block starts with the last token of the block before, which has no target there. So every token but the first of
    the stream is predicted once, with up to B − 1 tokens of context, and the loss per character is exact: the summed
    loss of `Batch.text_targets` over `characters`. The last block is padded. With `starts` no token sees another
    document, and the first of a document, which is BOS, is no target.
    """

    def __init__(
        self,
        tokens: TokenArray,
        block_size: int,
        characters: int,
        control_ids: frozenset[int],
        starts: DocumentStarts | None = None,
    ) -> None:
        _check_block_size(block_size)
        self._starts = starts
        self.block_size = block_size
        self.characters = characters
        self._tokens = tokens
        self._control_ids = control_ids

    def __len__(self) -> int:
        return -(-max(0, len(self._tokens) - 1) // (self.block_size - 1))

    def collate(self, indices: Indices) -> Batch:
        """Return the blocks as a batch of shape (indices, block_size)."""
        batch = collate_rows([(self._block(int(i)), 1) for i in indices], 0, self._control_ids, self.block_size)
        return _separated(batch, [self._starts_in(int(i)) for i in indices])

    def targets(self, indices: Indices) -> int:
        """Return the number of targets in these blocks."""
        return sum(max(0, len(self._block(int(i))) - 1) - len(self._starts_in(int(i))) for i in indices)

    def lengths_of(self, indices: Indices) -> np.ndarray[Any, np.dtype[np.int64]]:
        """Return the tokens of each block."""
        return np.array([len(self._block(int(i))) for i in indices], np.int64)

    def _block(self, index: int) -> np.ndarray[Any, np.dtype[np.integer[Any]]]:
        if index == NO_SEQUENCE:
            return _NO_TOKENS
        start = index * (self.block_size - 1)
        return self._tokens[start : start + self.block_size]

    def _starts_in(self, index: int) -> Places:
        return _starts_within(self._starts, index, index * (self.block_size - 1), self.block_size)


def _starts_within(starts: DocumentStarts | None, index: int, begin: int, size: int) -> Places:
    """Return where in a block documents begin, but for its first token."""
    if starts is None or index == NO_SEQUENCE:
        return _NO_TOKENS
    return starts_between(starts, begin + 1, begin + size) + 1


def _separated(batch: Batch, starts: list[Places]) -> Batch:
    """Mark the beginnings of documents, which are no targets; unchanged without any."""
    if not any(map(len, starts)):
        return batch
    marks = np.zeros(batch.input_ids.shape, bool)
    for row, columns in enumerate(starts):
        marks[row, columns] = True
    return replace(
        batch,
        labels=np.where(marks, IGNORED, batch.labels),
        text_targets=batch.text_targets & ~marks,
        starts=marks,
    )


def _check_block_size(block_size: int) -> None:
    if block_size < 2:
        raise BadInput(
            f"blockSize is {block_size}; a block needs at least 2 tokens, for the first is never predicted.",
            hint="The recipe's value is 512.",
        )
