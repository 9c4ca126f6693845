"""The operations of a block by Triton kernels: the same as `plain_ops`, with fewer passes over memory.

`xa` and its gradients are float32 here, because pieces of them are added up.
"""

import math
from typing import Any

import torch
import triton

from herdsman_trainer.fused import kernels
from herdsman_trainer.fused.dropout import Dropout
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
    "outer": {"BT": 32, "BX": 128, "SPLIT": 8, "num_warps": 4},
    "widen": {"BT": 32, "BK": 128, "num_warps": 4},
    "qkv_up_rotate": {"BT": 64, "HEADS": 2, "num_warps": 4},
    "qkv_rotate_backward": {"BT": 32, "HEADS": 1, "num_warps": 4},
    "swiglu": {"BT": 32, "BK": 128, "num_warps": 8},
    "swiglu_backward": {"BT": 32, "BK": 128, "STEPS": 1, "num_warps": 4},
}
"""Tokens and columns of a program, and how many pieces it does: measured on an H200 with the shapes of a 7B."""


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


def lora_up_backward(dy: torch.Tensor, group: LoraGroup) -> torch.Tensor:
    """Return the gradient of A·dropout(x) for a group of one projection, scaled."""
    return _thin(dy, group.b.view(group.rank, -1), group.scale, None)


def lora_up_(y: torch.Tensor, xa: torch.Tensor, group: LoraGroup) -> None:
    """Add B·xa to the outputs of a group of one projection."""
    _widen_(y, xa, group.b.view(group.rank, -1), None)


def lora_grad_b_(dy: torch.Tensor, xa: torch.Tensor, group: LoraGroup) -> None:
    """Add the gradients of the Bs."""
    table, unit = _table(group, dy.shape[1])
    _outer_(dy, xa, group.grad_b, group.rank, None, table, unit)


def lora_grad_a_(
    dxa: torch.Tensor, x: torch.Tensor, group: LoraGroup, dropout: Dropout | None, norm: Norm | None = None
) -> None:
    """Add the gradient of A; with `norm` its input is the normed x."""
    _outer_(x, dxa, group.grad_a, dxa.shape[1], dropout, norm=norm)


def lora_input_gradient_(dx: torch.Tensor, dxa: torch.Tensor, group: LoraGroup, dropout: Dropout | None) -> None:
    """Add what comes to the input through A."""
    _widen_(dx, dxa, group.a, dropout)


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
    group: LoraGroup | None,
    cos: torch.Tensor,
    sin: torch.Tensor,
    rotated_heads: int,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return the gradient of qkv before the rotation, and that of A·dropout(x)."""
    dq, dk, dv = (each if each.stride(2) == 1 else each.contiguous() for each in gradients)
    tokens, heads, size = dq.shape
    kv_heads = dk.shape[1]
    width = (heads + 2 * kv_heads) * size
    dqkv = torch.empty(tokens, width, dtype=dq.dtype, device=dq.device)
    dxa = None if group is None else _zeros(dqkv, len(group.parts) * group.rank)
    table, unit = (None, 1) if group is None else _table(group, width)
    blocks = BLOCKS["qkv_rotate_backward"]
    kernels.qkv_rotate_backward[(triton.cdiv(tokens, blocks["BT"]), triton.cdiv(width // size, blocks["HEADS"]))](
        dq, dk, dv, dqkv, dxa, None if group is None else group.b, table, cos, sin, tokens, width,
        0 if dxa is None else dxa.shape[1], 0 if group is None else group.rank, 0.0 if group is None else group.scale,
        dq.stride(0), dq.stride(1), dk.stride(0), dk.stride(1), dv.stride(0), dv.stride(1), heads, kv_heads,
        LORA=group is not None, UNIT=unit, SIZE=size, RANK=_ranks(group), **blocks,
    )  # fmt: skip
    return dqkv, dxa


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


def swiglu_backward_(
    dact: torch.Tensor,
    gate_up: torch.Tensor,
    group: LoraGroup | None,
    ddown: torch.Tensor | None,
    down: LoraGroup | None,
    dropout: Dropout | None,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return the gradient of gate and up in the place of `gate_up`, and that of A·dropout(x)."""
    tokens, double = gate_up.shape
    width = double // 2
    dxa = None if group is None else _zeros(dact, len(group.parts) * group.rank)
    table, unit = (None, 1) if group is None else _table(group, double)
    kernels.swiglu_backward[_gate_up_grid(tokens, width, "swiglu_backward")](
        dact, gate_up, dxa, None if group is None else group.b, table, ddown, None if down is None else down.a,
        None if dropout is None else dropout.keys, tokens, width,
        0 if dxa is None else dxa.shape[1], 0 if group is None else group.rank, 0.0 if group is None else group.scale,
        0 if down is None else down.rank, *_dropping(dropout),
        LORA=group is not None, DOWN=down is not None, DROPOUT=dropout is not None, UNIT=unit,
        RANK=_ranks(group), FEW=False, DOWN_RANK=_ranks(down), **BLOCKS["swiglu_backward"],
    )  # fmt: skip
    return gate_up, dxa


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


def _outer_(
    x: torch.Tensor,
    y: torch.Tensor,
    out: torch.Tensor,
    rank: int,
    dropout: Dropout | None,
    table: torch.Tensor | None = None,
    unit: int = 1,
    norm: Norm | None = None,
) -> None:
    """Add yᵀ·dropout(x) to `out`, float32: (rank, width), or with a table the Bs of a group."""
    tokens, width = x.shape
    blocks = dict(BLOCKS["outer"])
    if table is not None:
        blocks["BX"] = min(blocks["BX"], unit)
    ranks = min(64, max(SMALLEST, _power(rank)))
    kernels.outer[(triton.cdiv(width, blocks["BX"]), blocks["SPLIT"], triton.cdiv(rank, ranks))](
        x, y, out, table, None if dropout is None else dropout.keys, *(norm or (None, None)), tokens, width,
        y.shape[1], rank, *_dropping(dropout),
        DROPOUT=dropout is not None, TABLE=table is not None, NORM=norm is not None, UNIT=unit, RANK=ranks, **blocks,
    )  # fmt: skip


def _widen_(y: torch.Tensor, xa: torch.Tensor, a: torch.Tensor, dropout: Dropout | None) -> None:
    """Add dropout(xa·a) to `y`; `a` is (rank, width)."""
    tokens, width = y.shape
    rank, blocks = a.shape[0], BLOCKS["widen"]
    kernels.widen[(triton.cdiv(tokens, blocks["BT"]), triton.cdiv(width, blocks["BK"]))](
        y, xa, a, None if dropout is None else dropout.keys, tokens, width, rank,
        *_dropping(dropout), DROPOUT=dropout is not None, RANK=min(64, max(SMALLEST, _power(rank))), **blocks,
    )  # fmt: skip


def _gate_up_grid(tokens: int, width: int, kernel: str) -> tuple[int, int]:
    blocks = BLOCKS[kernel]
    return triton.cdiv(tokens, blocks["BT"]), triton.cdiv(width, blocks["BK"] * blocks.get("STEPS", 1))


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
