"""What takes in a merged model, tensor by tensor, and writes one form of it."""

from typing import Protocol

import torch

from herdsman_trainer.weights.draft_files import DraftFiles
from herdsman_trainer.weights.tensor_spec import TensorSpec


class Sink(Protocol):
    """One form of the result, written while the one pass over the model goes on.

    For every tensor, in the order of `specs` that it was made with: `begin`, then `write` with consecutive blocks of
    rows, then `end`. `finish` comes after the last tensor. All of it happens in one thread of the sink's own.

    A sink writes front to back, through `files`, and keeps nothing else between two tensors: after a kill a new sink is
    made with files that stand where the old one was after some tensor, and the next `begin` is that of the tensor after
    it. So a header is written by the first `begin` or `write` that finds its file at position 0, never when the sink is
    made, and what a trailer needs can be computed again or read back.
    """

    @property
    def files(self) -> DraftFiles:
        """The files of this form; their names are relative to the artifact."""
        ...

    @property
    def exact(self) -> bool:
        """Whether it takes sums as they are, because it rounds to other types than the plan's."""
        ...

    @property
    def nbytes(self) -> int:
        """About how many bytes this form takes."""
        ...

    def row_multiple(self, spec: TensorSpec) -> int:
        """Return how many rows of this tensor belong together: every block but the last has a multiple of it."""
        ...

    def begin(self, spec: TensorSpec) -> None:
        """Start a tensor."""
        ...

    def write(self, block: torch.Tensor) -> None:
        """Take the next rows, in the type of the plan.

        An `exact` sink gets float32 sums where an adapter changed the tensor, else values as they are stored, and
        rounds to its own type, once. Other sinks read the same block: it must not be changed.
        """
        ...

    def end(self) -> None:
        """Finish the tensor; its bytes are on their way to the disk."""
        ...

    def finish(self) -> None:
        """Write what comes after the last tensor."""
        ...
