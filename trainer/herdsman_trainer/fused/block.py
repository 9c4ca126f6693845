"""One block of a Llama: its forward pass, and its backward pass written out."""

from dataclasses import dataclass, replace
from types import ModuleType

import torch

from herdsman.api.v1alpha1.recipes import Recompute
from herdsman_trainer.fused.attention import Attended, attend
from herdsman_trainer.fused.dropout import Dropout, site_hash
from herdsman_trainer.fused.frozen import Frozen
from herdsman_trainer.fused.lora import LoraGroup
from herdsman_trainer.fused.packing import Packed
from herdsman_trainer.fused.plain_ops import Norm

QKV, OUT, GATE_UP, DOWN = range(4)
"""The four inputs of a block that LoRA reads, OUT that of attention's last projection; projections that share one share
its dropout mask."""


@dataclass(frozen=True)
class Pass:
    """What all blocks of one forward and backward pass share."""

    packed: Packed
    cos: torch.Tensor
    """(T, head size)."""
    sin: torch.Tensor
    threshold: int
    """Of LoRA's dropout; 0 drops nothing."""


@dataclass(frozen=True)
class Way:
    """What lies between the states before a block and those after it."""

    inverse: torch.Tensor
    """1 / root mean square of the states before."""
    attended: Attended
    after: torch.Tensor
    """The residual stream after attention."""
    after_inverse: torch.Tensor
    xa: tuple[torch.Tensor | None, ...]
    """A·dropout(x) of every input."""
    gate_up: torch.Tensor | None
    act: torch.Tensor | None


@dataclass(frozen=True)
class Kept:
    """What the backward pass of a block needs; what is None is computed again."""

    h: torch.Tensor
    way: Way | None = None


@dataclass(frozen=True)
class Block:
    """The weights of one block."""

    layer: int
    heads: int
    kv_heads: int
    epsilon: float
    norm: torch.Tensor
    after_norm: torch.Tensor
    weights: tuple[Frozen, Frozen, Frozen, Frozen]
    """QKV, OUT, GATE_UP and DOWN."""
    lora: tuple[LoraGroup | None, ...]
    ops: ModuleType
    """plain_ops or triton_ops."""

    def forward(self, h: torch.Tensor, run: Pass, keep: Recompute | None) -> tuple[torch.Tensor, Kept]:
        """Return the states (T, d) after the block, and what `keep` keeps of the way; None keeps nothing."""
        ops, packed = self.ops, run.packed
        x, inverse = ops.rms_norm(h, self.norm, self.epsilon)
        xa_qkv = self._down(x, QKV, run)
        qkv = self.weights[QKV].forward(x)
        del x
        ops.qkv_up_rotate_(qkv, xa_qkv, self.lora[QKV], run.cos, run.sin, self.heads + self.kv_heads)
        attended = attend(qkv, packed, self.heads, self.kv_heads, keep=keep in ("None", "Selective"))
        del qkv
        context = attended.result.detach()
        xa_o = self._down(context, OUT, run)
        after = ops.output(self.weights[OUT].forward(context), h, xa_o, self.lora[OUT])

        x, after_inverse = ops.rms_norm(after, self.after_norm, self.epsilon)
        xa_gate_up = self._down(x, GATE_UP, run)
        gate_up = self.weights[GATE_UP].forward(x)
        del x
        act = ops.swiglu(gate_up, xa_gate_up, self.lora[GATE_UP])
        xa_down = self._down(act, DOWN, run)
        result = ops.output(self.weights[DOWN].forward(act), after, xa_down, self.lora[DOWN])
        xa = (xa_qkv, xa_o, xa_gate_up, xa_down)
        way = Way(inverse, attended, after, after_inverse, xa, gate_up, act)
        if keep == "None":
            return result, Kept(h, way)
        if keep == "Selective":
            return result, Kept(h, replace(way, gate_up=None, act=None))
        return result, Kept(h)

    def backward(self, dh: torch.Tensor, kept: Kept, run: Pass) -> torch.Tensor:
        """Return the gradient of the states before the block; LoRA's gradients are added to its groups."""
        ops = self.ops
        way = kept.way or self.forward(kept.h, run, "None")[1].way
        assert way is not None, "asked for"
        gate_up, act = self._gate_up(way)

        dact = self.weights[DOWN].backward(dh)
        self._lora_backward(dh, dact, act, DOWN, way, run)
        dgate_up = ops.swiglu_backward_(dact, gate_up)
        del dact, gate_up, act
        dx = self.weights[GATE_UP].backward(dgate_up)
        norm = self.after_norm, way.after_inverse
        self._lora_backward(dgate_up, dx, way.after, GATE_UP, way, run, norm)
        del dgate_up
        dafter = ops.rms_norm_backward(dx, way.after, *norm, dh)

        dcontext = self.weights[OUT].backward(dafter)
        self._lora_backward(dafter, dcontext, way.attended.result.detach(), OUT, way, run)
        gradients = way.attended.backward(dcontext)
        dqkv = ops.qkv_rotate_backward(gradients, run.cos, run.sin, self.heads + self.kv_heads)
        del dcontext, gradients
        dx = self.weights[QKV].backward(dqkv)
        norm = self.norm, way.inverse
        self._lora_backward(dqkv, dx, kept.h, QKV, way, run, norm)
        result: torch.Tensor = ops.rms_norm_backward(dx, kept.h, *norm, dafter)
        return result

    def _gate_up(self, way: Way) -> tuple[torch.Tensor, torch.Tensor]:
        """Return gate and up, and what is made of them: as they were kept, or made again."""
        if way.gate_up is not None and way.act is not None:
            return way.gate_up, way.act
        x = self.ops.rms_norm(way.after, self.after_norm, self.epsilon)[0]
        gate_up = self.weights[GATE_UP].forward(x)
        return gate_up, self.ops.swiglu(gate_up, way.xa[GATE_UP], self.lora[GATE_UP])

    def _dropout(self, site: int, run: Pass) -> Dropout | None:
        if not run.threshold or self.lora[site] is None:
            return None
        return Dropout(run.packed.keys, site_hash(self.layer, site), run.threshold)

    def _down(self, x: torch.Tensor, site: int, run: Pass) -> torch.Tensor | None:
        group = self.lora[site]
        if group is None:
            return None
        result: torch.Tensor = self.ops.lora_down(x, group, self._dropout(site, run))
        return result

    def _lora_backward(
        self,
        dy: torch.Tensor,
        dx: torch.Tensor,
        x: torch.Tensor,
        site: int,
        way: Way,
        run: Pass,
        norm: Norm | None = None,
    ) -> None:
        """Add LoRA's gradients to its groups, and its part of the input's to `dx`; with `norm` the input is normed."""
        group = self.lora[site]
        if group is not None:
            dxa = self.ops.lora_up_backward(dy, way.xa[site], group)
            self.ops.lora_down_backward_(dx, dxa, x, group, self._dropout(site, run), norm)
