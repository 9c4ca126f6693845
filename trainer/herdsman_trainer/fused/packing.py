"""Packs the sequences of a batch behind each other: no padding is computed, and no sequence sees another."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from herdsman_trainer.batches import IGNORED, Batch
from herdsman_trainer.fused.dropout import token_keys


@dataclass(frozen=True)
class Packed:
    """The tokens of a batch in one row; T tokens, S sequences, M targets."""

    ids: torch.Tensor
    """(T), int64."""
    positions: torch.Tensor
    """Of each token in its sequence, (T), int64."""
    bounds: torch.Tensor
    """Where sequences begin, and T at the end, (S + 1), int32."""
    lengths: tuple[int, ...]
    predicting: torch.Tensor
    """The tokens after which a target comes, (M), int64."""
    labels: torch.Tensor
    """The targets, (M), int64."""
    cells: torch.Tensor
    """Where each target's loss stands among rows x (width − 1) of the batch, (M), int64."""
    keys: torch.Tensor
    """What dropout is decided by, (T), int32."""
    rows: int
    width: int

    @property
    def uniform(self) -> bool:
        """Whether all sequences have the same length."""
        return len(set(self.lengths)) == 1

    @property
    def longest(self) -> int:
        """The tokens of the longest sequence."""
        return max(self.lengths)


def pack(batch: Batch, device: torch.device, seed: int = 0) -> Packed:
    """Return the tokens that `batch.attention_mask` has, sequence by sequence.

    A row is one sequence, or several where `batch.starts` marks beginnings within it; the first token of a sequence is
    never a target. Without `batch.places` all dropout keys are those of the first places: for passes without dropout.
    """
    rows, width = batch.input_ids.shape
    real = batch.attention_mask.astype(bool)
    first = np.zeros_like(real)
    first[:, 0] = True
    if batch.starts is not None:
        first |= batch.starts
    starts = np.flatnonzero(first[real])
    count = int(real.sum())
    lengths = np.diff(np.append(starts, count))
    positions = np.arange(count) - np.repeat(starts, lengths)

    target = np.zeros_like(real)
    target[:, 1:] = batch.labels[:, 1:] != IGNORED
    target &= real & ~first
    row, column = np.nonzero(target)
    ordinal = np.cumsum(real.ravel()).reshape(real.shape) - 1
    places = np.arange(rows) if batch.places is None else batch.places
    keys = [token_keys(seed, int(place), int(size)) for place, size in zip(places, real.sum(axis=1), strict=True)]

    def on_device(array: npt.NDArray[Any]) -> torch.Tensor:
        tensor = torch.from_numpy(np.ascontiguousarray(array))
        return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor

    return Packed(
        ids=on_device(batch.input_ids[real]),
        positions=on_device(positions.astype(np.int64)),
        bounds=on_device(np.append(starts, count).astype(np.int32)),
        lengths=tuple(int(length) for length in lengths),
        predicting=on_device((ordinal[row, column] - 1).astype(np.int64)),
        labels=on_device(batch.labels[row, column]),
        cells=on_device((row * (width - 1) + column - 1).astype(np.int64)),
        keys=on_device(np.concatenate(keys)),
        rows=rows,
        width=width,
    )


def plain_batch(input_ids: torch.Tensor, attention_mask: torch.Tensor) -> Batch:
    """Return ids and a mask as a batch without targets."""
    ids, mask = input_ids.cpu().numpy(), attention_mask.cpu().numpy()
    return Batch(ids, np.full_like(ids, IGNORED), mask, np.zeros(ids.shape, bool))
