"""The head and its loss: only positions with a target are computed, a piece at a time, with the gradient at once."""

from types import ModuleType

import torch

from herdsman.api.memory import LOGIT_BYTES
from herdsman_trainer.fused.gradients import Gradient
from herdsman_trainer.fused.packing import Packed

ALIGNMENT = 128
"""Rows of the head in memory are a multiple of it: the products of 49,953 rows take five times as long as of 50,048."""
PIECE_BYTES = {"cpu": 32 << 20, "cuda": LOGIT_BYTES}
"""Memory of one piece of the logits."""


class Head:
    """Maps states to logits of the vocabulary; the matrix may be trained, or frozen."""

    def __init__(
        self,
        weight: torch.nn.Parameter,
        gradient: Gradient | None,
        norm: torch.Tensor,
        epsilon: float,
        dtype: torch.dtype,
        ops: ModuleType,
    ) -> None:
        self._weight = weight
        self._gradient = gradient
        self._norm = norm
        self._epsilon = epsilon
        self._ops = ops
        self._rows = weight.shape[0]
        self._copy: torch.Tensor | None = None
        if weight.dtype != dtype or aligned_rows(weight) != self._rows:
            self._copy = torch.zeros(aligned_rows(weight), weight.shape[1], dtype=dtype, device=weight.device)
            self.refresh()

    def refresh(self) -> None:
        """Copy the matrix in the type of the products, with rows of zeros up to the alignment."""
        if self._copy is not None:
            self._copy[: self._rows].copy_(self._weight.detach())

    def logits(self, h: torch.Tensor) -> torch.Tensor:
        """Return the logits after each of the states, (T, vocabulary)."""
        found: torch.Tensor = self._ops.rms_norm(h, self._norm, self._epsilon)[0] @ self._matrix.t()
        return found[:, : self._rows]

    def losses(self, h: torch.Tensor, packed: Packed) -> torch.Tensor:
        """Return the loss of every target, (M), float32."""
        x = self._ops.rms_norm(h[packed.predicting], self._norm, self._epsilon)[0]
        pieces = [
            self._ops.cross_entropy_(piece @ self._matrix.t(), labels, self._rows, None)
            for piece, labels in self._pieces(x, packed.labels)
        ]
        return torch.cat(pieces) if pieces else h.new_zeros(0, dtype=torch.float32)

    def losses_and_gradient(
        self, h: torch.Tensor, packed: Packed, scale: torch.Tensor, *, first: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the losses, and the gradient of `scale` times their sum by `h`; the matrix's is added to its own.

        `first`: the matrix's gradient has no value yet.
        """
        picked = h[packed.predicting]
        x, inverse = self._ops.rms_norm(picked, self._norm, self._epsilon)
        dx = torch.empty_like(x)
        losses, begin = [], 0
        for piece, labels in self._pieces(x, packed.labels):
            logits = piece @ self._matrix.t()
            losses.append(self._ops.cross_entropy_(logits, labels, self._rows, scale))
            torch.mm(logits, self._matrix, out=dx[begin : begin + len(piece)])
            if self._gradient is not None:
                self._gradient.add_product(logits, piece, first=first and begin == 0)
            begin += len(piece)
            del logits
        if first and not losses and self._gradient is not None:
            self._gradient.whole.zero_()
        dpicked = self._ops.rms_norm_backward(dx, picked, self._norm, inverse, None)
        # every position predicts at most one target, so nothing is added twice
        dh = torch.zeros_like(h).index_copy_(0, packed.predicting, dpicked)
        return torch.cat(losses) if losses else h.new_zeros(0, dtype=torch.float32), dh

    @property
    def _matrix(self) -> torch.Tensor:
        return self._weight.detach() if self._copy is None else self._copy

    def _pieces(self, x: torch.Tensor, labels: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
        most = max(1, PIECE_BYTES[x.device.type] // (self._rows * x.element_size()))
        return list(zip(torch.split(x, most), torch.split(labels, most), strict=True)) if len(x) else []


def aligned_rows(weight: torch.Tensor) -> int:
    """Return the rows that a matrix of so many has in memory."""
    rows = weight.shape[0]
    return -(-rows // ALIGNMENT) * ALIGNMENT if weight.is_cuda else rows
