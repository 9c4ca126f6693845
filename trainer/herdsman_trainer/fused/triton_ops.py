"""The operations of a block by Triton kernels: the same as `plain_ops`, with fewer passes over memory.

`xa` and its gradients are float32 here, because pieces of them are added up.
"""

import math
from typing import Any

import torch
import triton

from herdsman_trainer.fused import kernels
from herdsman_trainer.fused.dropout import Dropout
from herdsman_trainer.fused.frozen import FP8, FP8_LARGEST, NF4_BLOCK
from herdsman_trainer.fused.lora import LoraGroup
from herdsman_trainer.fused.plain_ops import Norm

SMALLEST = 16
"""Fewer rows, columns or ranks than the matrix units take."""
LARGEST_RANK = 128
"""What fits the registers of a program."""
FEW_RANKS = 16
"""Up to here the rotation multiplies one rank after the other, faster than by the matrix units."""
BLOCKS: dict[str, dict[str, int]] = {
    "thin": {"BT": 64, "BK": 64, "STEPS": 8, "num_warps": 8},
    "down_backward": {"BT": 32, "BX": 128, "SPLIT": 8, "num_warps": 4},
    "up_backward": {"BT": 64, "BX": 128, "SPLIT": 8, "num_warps": 8},
    "widen": {"BT": 16, "BK": 256, "num_warps": 4},
    "qkv_up_rotate": {"BT": 64, "HEADS": 2, "num_warps": 4},
    "qkv_rotate_backward": {"BT": 16, "HEADS": 2, "num_warps": 4},
    "swiglu": {"BT": 16, "BK": 128, "num_warps": 4},
    "swiglu_backward": {"BT": 16, "BK": 128, "num_warps": 4},
}
"""Tokens and columns of a program, and how many pieces it does: measured on an H200 with the shapes of a 7B."""
FUSED_RANKS = 64
"""Up to here one kernel makes both gradients behind A."""


def fits(boundaries: tuple[int, ...], head_size: int, rank: int) -> bool:
    """Whether blocks of columns can be cut so that none crosses a boundary between projections."""
    heads = head_size >= 2 * SMALLEST and head_size & (head_size - 1) == 0
    return heads and _unit(boundaries) >= SMALLEST and rank <= LARGEST_RANK


def rms_norm(h: torch.Tensor, weight: torch.Tensor, epsilon: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the norm and 1 / root mean square."""
    rows, width = h.shape
    x = torch.empty_like(h)
    inverse = torch.empty(rows, dtype=torch.float32, device=h.device)
    kernels.rms_norm[(rows,)](h, weight, x, inverse, width, epsilon, BLOCK=_power(width), num_warps=8)
    return x, inverse


def rms_norm_backward(
    dx: torch.Tensor, h: torch.Tensor, weight: torch.Tensor, inverse: torch.Tensor, residual: torch.Tensor | None
) -> torch.Tensor:
    """Return the gradient of `h`, in the place of `dx`."""
    rows, width = h.shape
    kernels.rms_norm_backward[(rows,)](
        dx, h, weight, inverse, residual, dx, width, RESIDUAL=residual is not None, BLOCK=_power(width), num_warps=8
    )
    return dx


def lora_down(x: torch.Tensor, group: LoraGroup, dropout: Dropout | None) -> torch.Tensor:
    """Return xa."""
    return _thin(x, group.a, group.scale, dropout)


def output(y: torch.Tensor, residual: torch.Tensor, xa: torch.Tensor | None, group: LoraGroup | None) -> torch.Tensor:
    """Return the residual stream after y was added to it, with LoRA of one projection, in the place of y."""
    if group is None or xa is None:
        return y.add_(residual)
    _widen_(y, xa, group.b.view(group.rank, -1), None, residual)
    return y


def lora_up_backward(dy: torch.Tensor, xa: torch.Tensor, group: LoraGroup) -> torch.Tensor:
    """Add the gradients of the Bs; returns that of A·dropout(x), scaled."""
    tokens, width = dy.shape
    dxa = torch.zeros_like(xa)
    table, unit = _table(group, width)
    blocks = dict(BLOCKS["up_backward"])
    blocks["BX"] = min(blocks["BX"], unit)
    kernels.up_backward[(triton.cdiv(width, blocks["BX"]), blocks["SPLIT"])](
        dy, xa, group.grad_b, group.b, dxa, table, tokens, width, xa.shape[1], group.rank, group.scale,
        UNIT=unit, RANK=_ranks(group), **blocks,
    )  # fmt: skip
    return dxa


def lora_down_backward_(
    dx: torch.Tensor,
    dxa: torch.Tensor,
    x: torch.Tensor,
    group: LoraGroup,
    dropout: Dropout | None,
    norm: Norm | None = None,
) -> None:
    """Add the gradient of A, and what comes to the input through A to `dx`; with `norm` the input is the normed x."""
    tokens, width = x.shape
    rank = dxa.shape[1]
    fused = rank <= FUSED_RANKS
    if not fused:
        _widen_(dx, dxa, group.a, dropout)
    blocks, ranks = BLOCKS["down_backward"], min(FUSED_RANKS, max(SMALLEST, _power(rank)))
    kernels.down_backward[(triton.cdiv(width, blocks["BX"]), blocks["SPLIT"], triton.cdiv(rank, ranks))](
        x, dxa, group.grad_a, group.a, dx, None if dropout is None else dropout.keys, *(norm or (None, None)),
        tokens, width, rank, *_dropping(dropout),
        DROPOUT=dropout is not None, NORM=norm is not None, INPUT=fused, RANK=ranks, **blocks,
    )  # fmt: skip


def qkv_up_rotate_(
    qkv: torch.Tensor,
    xa: torch.Tensor | None,
    group: LoraGroup | None,
    cos: torch.Tensor,
    sin: torch.Tensor,
    rotated_heads: int,
) -> None:
    """Add LoRA to queries, keys and values, and rotate queries and keys."""
    tokens, width = qkv.shape
    size, blocks = cos.shape[1], BLOCKS["qkv_up_rotate"]
    heads = width // size
    table, unit = (None, 1) if group is None else _table(group, width)
    kernels.qkv_up_rotate[(triton.cdiv(tokens, blocks["BT"]), triton.cdiv(heads, blocks["HEADS"]))](
        qkv, xa, None if group is None else group.b, table, cos, sin, tokens, width,
        0 if xa is None else xa.shape[1], 0 if group is None else group.rank, rotated_heads, heads,
        LORA=group is not None, UNIT=unit, SIZE=size, RANK=_ranks(group), FEW=_few(group), **blocks,
    )  # fmt: skip


def qkv_rotate_backward(
    gradients: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    cos: torch.Tensor,
    sin: torch.Tensor,
    rotated_heads: int,
) -> torch.Tensor:
    """Return the gradient of qkv before the rotation."""
    dq, dk, dv = (each if each.stride(2) == 1 else each.contiguous() for each in gradients)
    tokens, heads, size = dq.shape
    width = (heads + 2 * dk.shape[1]) * size
    dqkv = torch.empty(tokens, width, dtype=dq.dtype, device=dq.device)
    blocks = BLOCKS["qkv_rotate_backward"]
    kernels.qkv_rotate_backward[(triton.cdiv(tokens, blocks["BT"]), triton.cdiv(width // size, blocks["HEADS"]))](
        dq, dk, dv, dqkv, cos, sin, tokens, width, dq.stride(0), dq.stride(1), dk.stride(0), dk.stride(1),
        dv.stride(0), dv.stride(1), heads, rotated_heads - heads, SIZE=size, **blocks,
    )  # fmt: skip
    return dqkv


def swiglu(gate_up: torch.Tensor, xa: torch.Tensor | None, group: LoraGroup | None) -> torch.Tensor:
    """Return silu(gate)·up; `gate_up` gains LoRA."""
    tokens, double = gate_up.shape
    width = double // 2
    act = torch.empty(tokens, width, dtype=gate_up.dtype, device=gate_up.device)
    table, unit = (None, 1) if group is None else _table(group, double)
    kernels.swiglu[_gate_up_grid(tokens, width, "swiglu")](
        gate_up, act, xa, None if group is None else group.b, table, tokens, width,
        0 if xa is None else xa.shape[1], 0 if group is None else group.rank,
        LORA=group is not None, UNIT=unit, RANK=_ranks(group), **BLOCKS["swiglu"],
    )  # fmt: skip
    return act


def swiglu_backward_(dact: torch.Tensor, gate_up: torch.Tensor) -> torch.Tensor:
    """Return the gradient of gate and up in their place."""
    tokens, width = dact.shape
    kernels.swiglu_backward[_gate_up_grid(tokens, width, "swiglu_backward")](
        dact, gate_up, tokens, width, **BLOCKS["swiglu_backward"]
    )
    return gate_up


def cross_entropy_(
    logits: torch.Tensor, labels: torch.Tensor, vocabulary: int, scale: torch.Tensor | None
) -> torch.Tensor:
    """Return −log softmax at the labels; with a scale, the logits become the gradient."""
    rows, width = logits.shape
    losses = torch.empty(rows, dtype=torch.float32, device=logits.device)
    kernels.cross_entropy[(rows,)](
        logits, labels, losses, scale, vocabulary, width,
        GRADIENT=scale is not None, BLOCK=min(8192, _power(width)), num_warps=16,
    )  # fmt: skip
    return losses


def nf4_values(codes: torch.Tensor, values: torch.Tensor, scales: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return what NF4 codes stand for, in one dimension."""
    out = torch.empty(2 * len(codes), dtype=dtype, device=codes.device)
    kernels.nf4_values[(triton.cdiv(len(codes), 1024),)](
        codes, values, scales, out, len(codes), PAIRS=1024, BLOCK=NF4_BLOCK
    )
    return out


def fp8_rows(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the rows in fp8 and their scales."""
    rows, width = x.shape
    out = torch.empty(x.shape, dtype=FP8, device=x.device)
    scales = torch.empty(rows, 1, dtype=torch.float32, device=x.device)
    kernels.fp8_rows[(rows,)](x, out, scales, width, LARGEST=FP8_LARGEST, BLOCK=_power(width), num_warps=16)
    return out, scales


def _thin(x: torch.Tensor, a: torch.Tensor, scale: float, dropout: Dropout | None) -> torch.Tensor:
    """Return scale · dropout(x)·aᵀ, (tokens, rank), float32."""
    tokens, width = x.shape
    rank = a.shape[0]
    out = _zeros(x, rank)
    blocks, ranks = BLOCKS["thin"], min(64, max(SMALLEST, _power(rank)))
    pieces = triton.cdiv(width, blocks["BK"] * blocks["STEPS"])
    kernels.thin[(triton.cdiv(tokens, blocks["BT"]), pieces, triton.cdiv(rank, ranks))](
        x, a, out, None if dropout is None else dropout.keys, tokens, width, rank, scale,
        *_dropping(dropout), DROPOUT=dropout is not None, RANK=ranks, **blocks,
    )  # fmt: skip
    return out


def _widen_(
    y: torch.Tensor, xa: torch.Tensor, a: torch.Tensor, dropout: Dropout | None, residual: torch.Tensor | None = None
) -> None:
    """Add dropout(xa·a), and the residual where it is given, to `y`; `a` is (rank, width)."""
    tokens, width = y.shape
    rank, blocks = a.shape[0], BLOCKS["widen"]
    kernels.widen[(triton.cdiv(tokens, blocks["BT"]), triton.cdiv(width, blocks["BK"]))](
        y, xa, a, residual, None if dropout is None else dropout.keys, tokens, width, rank, *_dropping(dropout),
        DROPOUT=dropout is not None, RESIDUAL=residual is not None,
        RANK=min(64, max(SMALLEST, _power(rank))), **blocks,
    )  # fmt: skip


def _gate_up_grid(tokens: int, width: int, kernel: str) -> tuple[int, int]:
    blocks = BLOCKS[kernel]
    return triton.cdiv(tokens, blocks["BT"]), triton.cdiv(width, blocks["BK"])


def _dropping(dropout: Dropout | None) -> tuple[float, int, int]:
    """Return scale, site and threshold."""
    return (1.0, 0, 0) if dropout is None else (dropout.scale, dropout.site, dropout.threshold)


def _table(group: LoraGroup, width: int) -> tuple[torch.Tensor, int]:
    """Return which projection every `unit` columns belong to, and the unit; made once for a group."""
    known: dict[int, tuple[torch.Tensor, int]] = group.__dict__.setdefault("tables", {})
    if width not in known:
        unit = _unit((width, *(edge for part in group.parts for edge in (part.start, part.stop))))
        rows = [[-1, 0, 0]] * (width // unit)
        for part in group.parts:
            entry = [part.index, group.b_offset(part) - part.start, part.stop - part.start]
            rows[part.start // unit : part.stop // unit] = [entry] * ((part.stop - part.start) // unit)
        known[width] = torch.tensor(rows, dtype=torch.int32, device=group.a.device), unit
    return known[width]


def _unit(boundaries: tuple[int, ...]) -> int:
    """Return the largest power of two that divides all boundaries."""
    common = math.gcd(*boundaries)
    return common & -common


def _ranks(group: LoraGroup | None) -> int:
    return SMALLEST if group is None else max(SMALLEST, _power(group.rank))


def _few(group: LoraGroup | None) -> bool:
    return group is None or group.rank <= FEW_RANKS


def _power(number: int) -> int:
    result: Any = triton.next_power_of_2(number)
    return int(result)


def _zeros(like: torch.Tensor, columns: int) -> torch.Tensor:
    return torch.zeros(like.shape[0], columns, dtype=torch.float32, device=like.device)
