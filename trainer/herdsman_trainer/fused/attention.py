"""Causal attention within each packed sequence, by PyTorch's own kernels, and its gradient."""

from dataclasses import dataclass

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from herdsman_trainer.fused.packing import Packed

BACKENDS = [
    SDPBackend.CUDNN_ATTENTION,
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.MATH,
]
"""Those that fit are tried in this order: on Hopper cuDNN's is the fastest for sequences of equal length."""


@dataclass(frozen=True)
class Attended:
    """The result, (T, heads · size), and what its gradient needs: the states and PyTorch's own graph between them."""

    result: torch.Tensor
    states: tuple[torch.Tensor, torch.Tensor, torch.Tensor]

    def backward(self, gradient: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return the gradients of queries, keys and values, each (T, heads, size)."""
        return torch.autograd.grad(self.result, self.states, gradient)  # type: ignore[return-value]


def attend(qkv: torch.Tensor, packed: Packed, heads: int, kv_heads: int, *, keep: bool) -> Attended:
    """Attend with the queries, keys and values of (T, (heads + 2 · kv_heads) · size); `keep` for a gradient."""
    size = qkv.shape[1] // (heads + 2 * kv_heads)
    split = torch.split(qkv.detach().view(len(qkv), -1, size), [heads, kv_heads, kv_heads], dim=1)
    states = tuple(each.detach().requires_grad_(keep) for each in split)
    query, key, value = states
    with torch.set_grad_enabled(keep):
        if packed.uniform:
            result = _equal(query, key, value, len(packed.lengths))
        elif qkv.is_cuda and qkv.dtype != torch.float32:
            result = _packed(query, key, value, packed)
        else:
            result = _one_by_one(query, key, value, packed.lengths)
        result = result.reshape(len(qkv), heads * size)
    return Attended(result, (query, key, value))


def _equal(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, sequences: int) -> torch.Tensor:
    """Attend in sequences of equal length."""
    query, key, value = (
        each.view(sequences, -1, each.shape[1], each.shape[2]).transpose(1, 2) for each in (query, key, value)
    )
    grouped = query.shape[1] != key.shape[1]
    if not query.is_cuda:
        return scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=grouped).transpose(1, 2)
    with sdpa_kernel(BACKENDS, set_priority=True):
        return scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=grouped).transpose(1, 2)


def _packed(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, packed: Packed) -> torch.Tensor:
    """Attend in sequences of any length with PyTorch's varlen kernel."""
    from torch.nn.attention.varlen import varlen_attn

    longest = packed.longest
    result = varlen_attn(query, key, value, packed.bounds, packed.bounds, longest, longest, window_size=(-1, 0))
    return result[0] if isinstance(result, tuple) else result


def _one_by_one(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, lengths: tuple[int, ...]) -> torch.Tensor:
    """Attend in one sequence after the other, where there is no kernel for all."""
    pieces = zip(*(torch.split(each, list(lengths)) for each in (query, key, value)), strict=True)
    return torch.cat([_equal(q, k, v, 1)[0] for q, k, v in pieces])
