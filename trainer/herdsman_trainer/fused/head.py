"""The head and its loss: only positions with a target are computed, a piece at a time, with the gradient at once."""

from types import ModuleType

import torch

from herdsman_trainer.fused.packing import Packed

ALIGNMENT = 128
"""Rows of the head in memory are a multiple of it: the products of 49,953 rows take five times as long as of 50,048."""
LOGIT_BYTES = {"cpu": 32 << 20, "cuda": 1 << 30}
"""Memory of one piece of the logits."""


class Head:
    """Maps states to logits of the vocabulary; the matrix may be trained, or frozen."""

    def __init__(
        self, weight: torch.nn.Parameter, norm: torch.Tensor, epsilon: float, dtype: torch.dtype, ops: ModuleType
    ) -> None:
        self._weight = weight
        self._norm = norm
        self._epsilon = epsilon
        self._dtype = dtype
        self._ops = ops
        self._rows = weight.shape[0]
        self._copied = weight.dtype != dtype or (weight.is_cuda and self._rows % ALIGNMENT != 0)
        self._copy: torch.Tensor | None = None

    def refresh(self) -> None:
        """Forget what was copied of the matrix before an update."""
        if self._weight.requires_grad:
            self._copy = None

    def release(self) -> None:
        """Free the copy."""
        self._copy = None

    def losses(self, h: torch.Tensor, packed: Packed) -> torch.Tensor:
        """Return the loss of every target, (M), float32."""
        x = self._ops.rms_norm(h[packed.predicting], self._norm, self._epsilon)[0]
        weight = self._matrix()
        pieces = [
            self._ops.cross_entropy_(piece @ weight.t(), labels, self._rows, gradient=False)
            for piece, labels in self._pieces(x, packed.labels)
        ]
        return torch.cat(pieces) if pieces else h.new_zeros(0, dtype=torch.float32)

    def losses_and_gradient(self, h: torch.Tensor, packed: Packed, scale: float) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the losses, and the gradient of `scale` times their sum by `h`; the matrix's is added to its own."""
        picked = h[packed.predicting]
        x, inverse = self._ops.rms_norm(picked, self._norm, self._epsilon)
        weight = self._matrix()
        dx = torch.empty_like(x)
        losses, begin = [], 0
        for piece, labels in self._pieces(x, packed.labels):
            logits = piece @ weight.t()
            losses.append(self._ops.cross_entropy_(logits, labels, self._rows, gradient=True))
            torch.mm(logits, weight, out=dx[begin : begin + len(piece)])
            self._add_gradient(logits, piece, scale)
            begin += len(piece)
            del logits
        dx *= scale
        dpicked = self._ops.rms_norm_backward(dx, picked, self._norm, inverse, None)
        # every position predicts at most one target, so nothing is added twice
        dh = torch.zeros_like(h).index_copy_(0, packed.predicting, dpicked)
        return torch.cat(losses) if losses else h.new_zeros(0, dtype=torch.float32), dh

    def _pieces(self, x: torch.Tensor, labels: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
        most = max(1, LOGIT_BYTES[x.device.type] // (self._rows * x.element_size()))
        return list(zip(x.split(most), labels.split(most), strict=True)) if len(x) else []

    def _matrix(self) -> torch.Tensor:
        """Return the matrix in the type of the products, with rows of zeros up to the alignment."""
        if not self._copied:
            return self._weight.detach()
        if self._copy is None:
            rows = -(-self._rows // ALIGNMENT) * ALIGNMENT if self._weight.is_cuda else self._rows
            self._copy = torch.zeros(rows, self._weight.shape[1], dtype=self._dtype, device=self._weight.device)
            self._copy[: self._rows].copy_(self._weight.detach())
        return self._copy

    def _add_gradient(self, dlogits: torch.Tensor, x: torch.Tensor, scale: float) -> None:
        if not self._weight.requires_grad:
            return
        if dlogits.is_cuda and dlogits.dtype != torch.float32:
            gradient = torch.mm(dlogits.t(), x, out_dtype=torch.float32)[: self._rows]
        else:
            gradient = (dlogits.t() @ x)[: self._rows].float()
        if self._weight.grad is None:
            self._weight.grad = gradient.mul_(scale)
        else:
            self._weight.grad.add_(gradient, alpha=scale)
