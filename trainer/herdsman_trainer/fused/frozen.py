"""Products with frozen matrices, which have no gradient of their own: y = x·Wᵀ and dx = dy·W."""

from typing import Protocol

import torch


class Frozen(Protocol):
    """A frozen matrix W of (outputs, inputs), in whatever form it is stored."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return x·Wᵀ, (T, outputs)."""
        ...

    def backward(self, dy: torch.Tensor) -> torch.Tensor:
        """Return dy·W, (T, inputs)."""
        ...


class Dense:
    """A matrix in the type of the products."""

    def __init__(self, weight: torch.Tensor) -> None:
        self.weight = weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return x·Wᵀ."""
        return x @ self.weight.t()

    def backward(self, dy: torch.Tensor) -> torch.Tensor:
        """Return dy·W."""
        return dy @ self.weight
