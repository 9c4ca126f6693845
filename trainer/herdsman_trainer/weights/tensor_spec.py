"""Name, type and shape of a stored tensor, its bytes, and the types the safetensors format knows."""

from dataclasses import dataclass
from math import prod
from typing import Any

import torch

DTYPES: dict[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
"""The format's type codes; its 8-bit floats are left out: no LLaMA checkpoint to be trained or merged uses them."""

CODES: dict[torch.dtype, str] = {dtype: code for code, dtype in DTYPES.items()}

FLOAT_NAMES: dict[str, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
"""The floating-point types of a model, as config.json and the artifact contract spell them."""


@dataclass(frozen=True)
class TensorSpec:
    """What is known of a tensor without reading its values."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Size of the values in bytes."""
        return prod(self.shape) * self.dtype.itemsize


def dtype_name(dtype: torch.dtype) -> str:
    """Return the name config.json uses for a type: float32, bfloat16, ..."""
    return str(dtype).removeprefix("torch.")


def shape_text(shape: tuple[int, ...]) -> str:
    """Return a shape as people write it: 49953 x 4096."""
    return " x ".join(str(size) for size in shape) or "scalar"


def tensor_bytes(tensor: torch.Tensor) -> memoryview:
    """Return the little-endian values of a tensor, row by row, without copying a contiguous one."""
    array: Any = tensor.contiguous().reshape(-1).view(torch.uint8).numpy()
    return memoryview(array)
