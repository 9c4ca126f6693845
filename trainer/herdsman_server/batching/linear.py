"""Linear layers as the server computes them: as they are, or with weights in 8 or 4 bits.

The packed products are PyTorch's own, for the CPU and for CUDA; there is no other package to install. Which of them
works is tried out once for each device and type, and where none does the weights are unpacked for each product: slower,
and in the same memory.
"""

import logging
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch.nn import functional

log = logging.getLogger(__name__)

GROUP = 64
"""Input values that share a scale in 4 bits."""
TILES = 8
"""How CUDA's packed product wants its weights laid out."""


class Linear:
    """y = x W' + b."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        self.weight = weight
        self.bias = bias

    @property
    def nbytes(self) -> int:
        """Bytes of the weights."""
        return self.weight.nbytes

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Return the product."""
        return functional.linear(x, self.weight, self.bias)


class Int8Linear:
    """A scale for each output: half the memory of 16 bits, a quarter of 32."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        rows = weight.float()
        scale = rows.abs().amax(dim=1).clamp_min(torch.finfo(torch.float32).tiny) / 127
        self.weight = (rows / scale[:, None]).round_().clamp_(-127, 127).to(torch.int8)
        self.bias = bias
        self._scale = scale.to(weight.dtype)
        self._packed = _int8_works(weight.device, weight.dtype)

    @property
    def nbytes(self) -> int:
        """Bytes of the weights and the scales."""
        return self.weight.nbytes + self._scale.nbytes

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Return the product."""
        if self._packed:
            y: torch.Tensor = torch.ops.aten._weight_int8pack_mm(x, self.weight, self._scale)
        else:
            y = functional.linear(x, self.weight.to(x.dtype)) * self._scale
        return y if self.bias is None else y + self.bias


class Int4Linear:
    """A scale and a zero for each GROUP inputs of an output: 4.5 bits a weight."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        outputs, inputs = weight.shape
        self.bias = bias
        groups = weight.float().view(outputs, inputs // GROUP, GROUP)
        low, high = groups.amin(dim=2), groups.amax(dim=2)
        scale = ((high - low) / 15).clamp_min(1e-6)
        numbers = ((groups - low[..., None]) / scale[..., None]).round_().clamp_(0, 15).to(torch.int32)
        # PyTorch's product means (number - 8) * scale + zero.
        zero = low + 8 * scale
        self._shape = (outputs, inputs)
        self._figures = torch.stack((scale, zero), dim=2).to(weight.dtype).transpose(0, 1).contiguous()
        self._packed = _int4_works(weight.device, weight.dtype) and outputs % 16 == 0 and inputs % 128 == 0
        numbers = numbers.view(outputs, inputs)
        self.weight = _pack4(numbers) if self._packed else _two_a_byte(numbers)

    @property
    def nbytes(self) -> int:
        """Bytes of the weights and the scales."""
        return self.weight.nbytes + self._figures.nbytes

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Return the product."""
        y = _multiply4(x, self.weight, self._figures) if self._packed else functional.linear(x, self._unpacked())
        return y if self.bias is None else y + self.bias

    def _unpacked(self) -> torch.Tensor:
        outputs, inputs = self._shape
        numbers = torch.stack((self.weight & 15, self.weight >> 4), dim=2).view(outputs, inputs // GROUP, GROUP)
        scale, zero = self._figures.transpose(0, 1).unbind(2)
        return ((numbers.to(scale.dtype) - 8) * scale[..., None] + zero[..., None]).view(outputs, inputs)


AnyLinear = Linear | Int8Linear | Int4Linear


def linear_of(module: Any, quantisation: str | None) -> AnyLinear:
    """Take the weights out of a module."""
    return fused([module], quantisation)


def fused(modules: Sequence[Any], quantisation: str | None) -> AnyLinear:
    """Take the weights out of modules that read the same input, and make one product of them."""
    weights = [module.weight.detach() for module in modules]
    biases = [module.bias.detach() if module.bias is not None else None for module in modules]
    weight = torch.cat(weights) if len(weights) > 1 else weights[0]
    bias = None
    if any(each is not None for each in biases):
        pairs = zip(weights, biases, strict=True)
        bias = torch.cat([each if each is not None else w.new_zeros(w.shape[0]) for w, each in pairs])
    for module in modules:
        module.weight = None
    if quantisation == "int8":
        return Int8Linear(weight, bias)
    if quantisation == "int4" and weight.shape[1] % GROUP == 0:
        return Int4Linear(weight, bias)
    return Int8Linear(weight, bias) if quantisation == "int4" else Linear(weight, bias)


def _pack4(numbers: torch.Tensor) -> torch.Tensor:
    if numbers.device.type == "cpu":
        packed: torch.Tensor = torch.ops.aten._convert_weight_to_int4pack_for_cpu(numbers, 1)
        return packed
    bytes_ = (numbers[:, ::2] << 4 | numbers[:, 1::2]).to(torch.uint8)
    packed = torch.ops.aten._convert_weight_to_int4pack(bytes_, TILES)
    return packed


def _multiply4(x: torch.Tensor, weight: torch.Tensor, figures: torch.Tensor) -> torch.Tensor:
    if x.device.type == "cpu":
        result: torch.Tensor = torch.ops.aten._weight_int4pack_mm_for_cpu(x, weight, GROUP, figures)
        return result
    result = torch.ops.aten._weight_int4pack_mm(x, weight, GROUP, figures)
    return result


def _two_a_byte(numbers: torch.Tensor) -> torch.Tensor:
    return (numbers[:, ::2] | numbers[:, 1::2] << 4).to(torch.uint8)


@lru_cache
def _int8_works(device: torch.device, dtype: torch.dtype) -> bool:
    def tried() -> torch.Tensor:
        x = torch.ones(3, 64, device=device, dtype=dtype)
        weight = torch.full((32, 64), 2, device=device, dtype=torch.int8)
        found: torch.Tensor = torch.ops.aten._weight_int8pack_mm(x, weight, torch.ones(32, device=device, dtype=dtype))
        return found / 128

    return _works("8", device, tried)


@lru_cache
def _int4_works(device: torch.device, dtype: torch.dtype) -> bool:
    def tried() -> torch.Tensor:
        x = torch.ones(3, 128, device=device, dtype=dtype)
        weight = _pack4(torch.full((32, 128), 9, device=device, dtype=torch.int32))
        figures = torch.tensor([1.0, 0.0], device=device, dtype=dtype).repeat(128 // GROUP, 32, 1)
        return _multiply4(x, weight, figures) / 128

    return _works("4", device, tried)


def _works(bits: str, device: torch.device, tried: Any) -> bool:
    try:
        if bool((tried().float() - 1).abs().max() < 1e-2):
            return True
        said: object = "its results are wrong"
    except (RuntimeError, AttributeError, NotImplementedError) as error:
        said = str(error).splitlines()[0]
    log.warning("The product of weights in %s bits cannot be used on %s (%s); they are unpacked.", bits, device, said)
    return False
