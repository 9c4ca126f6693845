"""The operations of a block in plain PyTorch: the CPU's way, and what the kernels are held against.

T is the number of tokens; `xa` is A·dropout(x) of a group, scaled by alpha / rank, shape (T, parts · rank).
"""

import torch

from herdsman_trainer.fused.dropout import Dropout
from herdsman_trainer.fused.lora import LoraGroup

Norm = tuple[torch.Tensor, torch.Tensor]
"""The weight of a norm and 1 / root mean square of each row."""


def rms_norm(h: torch.Tensor, weight: torch.Tensor, epsilon: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the norm of (T, d) states (Zhang & Sennrich 2019) and 1 / root mean square, (T), float32."""
    wide = h.float()
    inverse = torch.rsqrt(wide.pow(2).mean(-1) + epsilon)
    return weight * (wide * inverse[:, None]).to(h.dtype), inverse


def rms_norm_backward(
    dx: torch.Tensor, h: torch.Tensor, weight: torch.Tensor, inverse: torch.Tensor, residual: torch.Tensor | None
) -> torch.Tensor:
    """Return the gradient of `h`: that through the norm, and that of the residual stream beside it."""
    normed = h.float() * inverse[:, None]
    weighted = dx.float() * weight.float()
    dh = inverse[:, None] * (weighted - normed * (weighted * normed).mean(-1, keepdim=True))
    return (dh if residual is None else dh + residual.float()).to(h.dtype)


def lora_down(x: torch.Tensor, group: LoraGroup, dropout: Dropout | None) -> torch.Tensor:
    """Return xa."""
    return ((dropout.apply(x) if dropout else x) @ group.a.t()) * group.scale


def lora_up_(y: torch.Tensor, xa: torch.Tensor, group: LoraGroup) -> None:
    """Add B·xa to the outputs (T, n)."""
    for part in group.parts:
        y[:, part.start : part.stop] += xa[:, group.columns(part)] @ group.b_of(part).t()


def output(y: torch.Tensor, residual: torch.Tensor, xa: torch.Tensor | None, group: LoraGroup | None) -> torch.Tensor:
    """Return the residual stream (T, d) after y was added to it, with B·xa of a group of one projection."""
    if group is not None and xa is not None:
        lora_up_(y, xa, group)
    return y.add_(residual)


def lora_up_backward(dy: torch.Tensor, xa: torch.Tensor, group: LoraGroup) -> torch.Tensor:
    """Add the gradients of the Bs to the group's; returns that of A·dropout(x), scaled: (T, parts · rank)."""
    pieces = []
    for part in group.parts:
        own = dy[:, part.start : part.stop]
        group.grad_b_of(part).add_(own.t() @ xa[:, group.columns(part)])
        pieces.append(own @ group.b_of(part))
    return torch.cat(pieces, dim=1) * group.scale


def lora_down_backward_(
    dx: torch.Tensor,
    dxa: torch.Tensor,
    x: torch.Tensor,
    group: LoraGroup,
    dropout: Dropout | None,
    norm: Norm | None = None,
) -> None:
    """Add the gradient of A to the group's, and what comes to the input through A to `dx`.

    With `norm` the input is the normed x.
    """
    if norm is not None:
        weight, inverse = norm
        x = weight * (x.float() * inverse[:, None]).to(x.dtype)
    through = dxa @ group.a
    if dropout is not None:
        factor = (dropout.kept(x.shape[1]) * dropout.scale).to(x.dtype)
        x, through = x * factor, through * factor
    group.grad_a += dxa.t() @ x
    dx += through


def rotate_(states: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, heads: int) -> None:
    """Rotate the first `heads` heads of (T, all heads · head size) in place (Su et al. 2021, halves paired).

    `cos` and `sin` have the shape (T, head size); with −sin the rotation is undone.
    """
    size = cos.shape[1]
    turned = states[:, : heads * size].view(len(states), heads, size)
    first, second = turned.float().chunk(2, dim=-1)
    c, s = (table.float()[:, None, : size // 2] for table in (cos, sin))
    turned.copy_(torch.cat([first * c - second * s, second * c + first * s], dim=-1))


def qkv_up_rotate_(
    qkv: torch.Tensor,
    xa: torch.Tensor | None,
    group: LoraGroup | None,
    cos: torch.Tensor,
    sin: torch.Tensor,
    rotated_heads: int,
) -> None:
    """Add LoRA to queries, keys and values (T, n), and rotate queries and keys, the first `rotated_heads` heads."""
    if group is not None and xa is not None:
        lora_up_(qkv, xa, group)
    rotate_(qkv, cos, sin, rotated_heads)


def qkv_rotate_backward(
    gradients: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    cos: torch.Tensor,
    sin: torch.Tensor,
    rotated_heads: int,
) -> torch.Tensor:
    """Return the gradient of qkv before the rotation, (T, n), of those of queries, keys and values."""
    dqkv = torch.cat([each.reshape(len(each), -1) for each in gradients], dim=1)
    rotate_(dqkv, cos, -sin, rotated_heads)
    return dqkv


def swiglu(gate_up: torch.Tensor, xa: torch.Tensor | None, group: LoraGroup | None) -> torch.Tensor:
    """Return silu(gate)·up (Shazeer 2020), (T, f); `gate_up` (T, 2f) gains LoRA."""
    if group is not None and xa is not None:
        lora_up_(gate_up, xa, group)
    gate, up = gate_up.chunk(2, dim=1)
    return torch.nn.functional.silu(gate) * up


def swiglu_backward_(dact: torch.Tensor, gate_up: torch.Tensor) -> torch.Tensor:
    """Return the gradient of gate and up in their place, (T, 2f)."""
    gate, up = (half.float() for half in gate_up.chunk(2, dim=1))
    sigmoid = torch.sigmoid(gate)
    wide = dact.float()
    dgate = wide * up * sigmoid * (1 + gate * (1 - sigmoid))
    return torch.cat([dgate.to(gate_up.dtype), (wide * gate * sigmoid).to(gate_up.dtype)], dim=1, out=gate_up)


def cross_entropy_(
    logits: torch.Tensor, labels: torch.Tensor, vocabulary: int, scale: torch.Tensor | None
) -> torch.Tensor:
    """Return −log softmax at the labels, (M), float32; columns from `vocabulary` on do not exist.

    With a scale, `logits` (M, columns) become the gradient of scale times the sum: scale · (softmax − one-hot).
    """
    wide = logits[:, :vocabulary].float()
    total = torch.logsumexp(wide, dim=1)
    losses = total - wide.gather(1, labels[:, None])[:, 0]
    if scale is not None:
        wide = torch.exp_(wide - total[:, None])
        wide.scatter_add_(1, labels[:, None], torch.full_like(labels, -1.0, dtype=torch.float32)[:, None])
        logits[:, :vocabulary] = wide * scale
        logits[:, vocabulary:] = 0
    return losses
