"""What takes in a merged model, tensor by tensor, and writes one form of it."""

from typing import Protocol

import torch

from herdsman.api.job_config import FileDigest
from herdsman_trainer.weights.tensor_spec import TensorSpec


class Sink(Protocol):
    """One form of the result, written while the one pass over the model goes on.

    For every tensor, in the order of `specs` that it was made with: `begin`, then `write` with consecutive blocks of
    rows, then `end`. `finish` comes after the last tensor.
    """

    def row_multiple(self, spec: TensorSpec) -> int:
        """Return how many rows of this tensor belong together: every block but the last has a multiple of it."""
        ...

    def begin(self, spec: TensorSpec) -> None:
        """Start a tensor."""
        ...

    def write(self, block: torch.Tensor) -> None:
        """Take the next rows: float32 sums where an adapter changed the tensor, else values as they are stored.

        The sink rounds to its own type, once.
        """
        ...

    def end(self) -> None:
        """Finish the tensor; its bytes are on their way to the disk."""
        ...

    def finish(self) -> dict[str, FileDigest]:
        """Make the files durable and return size and digest of each, by path relative to the artifact."""
        ...
