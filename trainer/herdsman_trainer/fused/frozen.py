"""Products with frozen matrices, which have no gradient of their own: y = x·Wᵀ and dx = dy·W.

A matrix is kept in the type of the products, or in fewer bits: int8 (absolute maximum of a row), NF4 with double
quantisation (Dettmers et al. 2023: blocks of 64, their maxima in 8 bits in blocks of 256), made whole for each product;
or in fp8, where the product itself is computed in fp8.
"""

from collections.abc import Callable
from typing import Protocol

import torch

from herdsman.api.v1alpha1.recipes import BaseFormat

NF4_VALUES = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip
"""Quantiles of a normal distribution, scaled to ±1 (Dettmers et al. 2023, appendix E)."""
NF4_BLOCK, MAXIMA_BLOCK = 64, 256
FP8 = torch.float8_e4m3fn
FP8_LARGEST = 448.0


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


class Int8:
    """A matrix in 8 bits with a float32 scale for each row."""

    def __init__(self, weight: torch.Tensor) -> None:
        wide = weight.float()
        self._scale = (wide.abs().amax(1, keepdim=True) / 127).clamp_min(1e-30)
        self._codes = torch.round(wide / self._scale).to(torch.int8)

    def whole(self, dtype: torch.dtype) -> torch.Tensor:
        """Return the matrix as it is multiplied."""
        return self._codes * self._scale.to(dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return x·Wᵀ."""
        return x @ self.whole(x.dtype).t()

    def backward(self, dy: torch.Tensor) -> torch.Tensor:
        """Return dy·W."""
        return dy @ self.whole(dy.dtype)


class Nf4:
    """A matrix in 4.13 bits a value; its size is a multiple of 64."""

    def __init__(self, weight: torch.Tensor) -> None:
        self._shape = weight.shape
        blocks = weight.float().reshape(-1, NF4_BLOCK)
        maxima = blocks.abs().amax(1)
        self._mean, self._maxima, self._scales = _eight_bits(maxima)
        values = torch.tensor(NF4_VALUES, device=weight.device)
        edges = (values[1:] + values[:-1]) / 2
        codes = torch.bucketize(blocks / self._block_scales().clamp_min(1e-30)[:, None], edges).to(torch.uint8).view(-1)
        self._codes = codes[0::2] | codes[1::2] << 4
        self._values = values

    def whole(self, dtype: torch.dtype) -> torch.Tensor:
        """Return the matrix as it is multiplied."""
        if self._codes.is_cuda:
            from herdsman_trainer.fused.triton_ops import nf4_values

            return nf4_values(self._codes, self._values, self._block_scales(), dtype).view(self._shape)
        codes = torch.stack([self._codes & 15, self._codes >> 4], dim=1).view(-1, NF4_BLOCK)
        return (self._values[codes.int()] * self._block_scales()[:, None]).to(dtype).view(self._shape)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return x·Wᵀ."""
        return x @ self.whole(x.dtype).t()

    def backward(self, dy: torch.Tensor) -> torch.Tensor:
        """Return dy·W."""
        return dy @ self.whole(dy.dtype)

    def _block_scales(self) -> torch.Tensor:
        """Return the absolute maximum of each block, float32."""
        whole = self._maxima.view(-1, MAXIMA_BLOCK) * self._scales[:, None] + self._mean
        return whole.view(-1)[: self._shape.numel() // NF4_BLOCK]


def _eight_bits(maxima: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return their mean, what is left of each in 8 bits, and the scale of every 256 of these."""
    mean = maxima.mean()
    left = torch.nn.functional.pad(maxima - mean, (0, -len(maxima) % MAXIMA_BLOCK)).view(-1, MAXIMA_BLOCK)
    scales = (left.abs().amax(1) / 127).clamp_min(1e-30)
    return mean, torch.round(left / scales[:, None]).to(torch.int8).view(-1), scales


class Fp8:
    """A matrix in fp8 (e4m3) with scales of rows and of columns; what is multiplied with it is rounded alike."""

    def __init__(self, weight: torch.Tensor) -> None:
        self._rows, self._row_scales = _fp8(weight)
        self._columns, self._column_scales = _fp8(weight.t().contiguous())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return x·Wᵀ."""
        return _fp8_product(x, self._rows, self._row_scales)

    def backward(self, dy: torch.Tensor) -> torch.Tensor:
        """Return dy·W."""
        return _fp8_product(dy, self._columns, self._column_scales)


def _fp8(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the rows in fp8, and a float32 scale for each, (rows, 1)."""
    if values.is_cuda:
        from herdsman_trainer.fused.triton_ops import fp8_rows

        return fp8_rows(values)
    scales = (values.float().abs().amax(1, keepdim=True) / FP8_LARGEST).clamp_min(1e-30)
    return (values.float() / scales).to(FP8), scales


def _fp8_product(x: torch.Tensor, matrix: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """Return x·matrixᵀ; on the CPU, whose products have no fp8, the rounded values are multiplied in x's type."""
    rounded, own = _fp8(x)
    if x.is_cuda:
        return torch._scaled_mm(
            rounded, matrix.t(), scale_a=own, scale_b=scales.t(), out_dtype=x.dtype, use_fast_accum=True
        )
    return ((rounded.float() * own) @ (matrix.float() * scales).t()).to(x.dtype)


FORMATS: dict[BaseFormat, Callable[[torch.Tensor], Frozen]] = {"Native": Dense, "Int8": Int8, "NF4": Nf4, "FP8": Fp8}
"""What keeps a matrix in each format."""
