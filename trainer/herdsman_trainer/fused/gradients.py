"""Gradients of embedding and head in places that stay, so that a recorded pass finds them again."""

import torch


class Gradient:
    """The gradient of one trained matrix, float32; rows beyond those of the matrix belong to no token."""

    def __init__(self, parameter: torch.nn.Parameter, rows: int | None = None) -> None:
        self._parameter = parameter
        self._rows = rows or parameter.shape[0]
        self._whole: torch.Tensor | None = None

    @property
    def whole(self) -> torch.Tensor:
        """All rows; without a value before the first use."""
        if self._whole is None:
            shape = (self._rows, self._parameter.shape[1])
            self._whole = torch.empty(shape, dtype=torch.float32, device=self._parameter.device)
        return self._whole

    def attach(self) -> bool:
        """Make it the parameter's gradient where that has none; returns whether it had none."""
        missing = self._parameter.grad is None
        if missing:
            self._parameter.grad = self.whole[: self._parameter.shape[0]]
        return missing

    def add_product(self, dy: torch.Tensor, x: torch.Tensor, *, first: bool) -> None:
        """Add dyᵀ·x, summed in float32; `first` overwrites what is there."""
        if not dy.is_cuda or dy.dtype == torch.float32:
            product = (dy.t() @ x).float()
            self.whole.copy_(product) if first else self.whole.add_(product)
        elif first:
            torch.mm(dy.t(), x, out_dtype=torch.float32, out=self.whole)
        else:
            torch.addmm(self.whole, dy.t(), x, out_dtype=torch.float32, out=self.whole)
