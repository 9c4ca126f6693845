"""Attention of a pass: each sequence over its own extent of the keys and values."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch.nn import functional

from herdsman_server.batching.devices import sent

log = logging.getLogger(__name__)

TOLERANCE = 2e-2
"""How far results of a kernel may be off, in 16 bits, for values around 1."""


@dataclass(frozen=True)
class Stretch:
    """Consecutive queries of a pass: the last `count` tokens of a sequence of `length`, which begins at `start`."""

    count: int
    start: int
    length: int


class Attention(Protocol):
    """Computes the attention of one pass, layer by layer."""

    def __call__(self, queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        """Return [queries, heads, width]; keys and values are those of the layer, [tokens, heads, width]."""


class Sliced:
    """One sequence after the other: nothing is padded or gathered, and nobody depends on who else is in the pass."""

    def __init__(self, stretches: Sequence[Stretch]) -> None:
        self._stretches = stretches
        self._masks: dict[tuple[int, int], torch.Tensor] = {}

    def __call__(self, queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        """Compute one layer."""
        found = torch.empty_like(queries)
        place = 0
        for stretch in self._stretches:
            end = stretch.start + stretch.length
            part = slice(place, place + stretch.count)
            found[part] = self._one(queries[part], keys[stretch.start : end], values[stretch.start : end])
            place += stretch.count
        return found

    def _one(self, queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        count, heads, width = queries.shape
        length, groups, _ = keys.shape
        k, v = keys.transpose(0, 1)[None], values.transpose(0, 1)[None]
        if count == 1:
            # Heads that share keys are queries side by side.
            q = queries.view(1, groups, heads // groups, width)
            return functional.scaled_dot_product_attention(q, k, v).reshape(1, heads, width)
        q = queries.transpose(0, 1)[None]
        mask = None if count == length else self._mask(count, length, q)
        result = functional.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=mask is None, enable_gqa=heads != groups
        )
        return result[0].transpose(0, 1)

    def _mask(self, count: int, length: int, like: torch.Tensor) -> torch.Tensor:
        if (count, length) not in self._masks:
            whole = torch.ones(count, length, dtype=torch.bool, device=like.device)
            self._masks[count, length] = whole.tril(length - count)
        return self._masks[count, length]


@dataclass(frozen=True)
class Flash:
    """All sequences in one kernel, FlashAttention's, which PyTorch brings along.

    It is meant for sequences one behind the other in one tensor. Told where each begins, and how much of it counts, it
    reads extents wherever they lie. Nothing here depends on values that only the host knows, so it can be recorded.
    """

    offsets: torch.Tensor
    """Where the queries of each sequence begin, and where the last ones end; int32."""
    starts: torch.Tensor
    """Where the keys of each sequence begin, and one number more, which is not read; int32."""
    lengths: torch.Tensor
    """How many there are; int32."""
    most_queries: int
    most_keys: int

    def __call__(self, queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        """Compute one layer."""
        return kernel(queries, keys, values, self)


def kernel(queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, where: Flash) -> torch.Tensor:
    """Call FlashAttention; the last query of a sequence sees all of its keys, the one before all but one."""
    result: torch.Tensor = torch.ops.aten._flash_attention_forward(
        queries,
        keys,
        values,
        where.offsets,
        where.starts,
        where.most_queries,
        where.most_keys,
        0.0,
        where.most_queries > 1,
        return_debug_mask=False,
        seqused_k=where.lengths,
    )[0]
    return result


def flash_works(heads: int, groups: int, width: int, dtype: torch.dtype, device: torch.device) -> bool:
    """Whether FlashAttention is there for these shapes and says what it should: it is tried out."""
    if device.type != "cuda" or dtype not in (torch.bfloat16, torch.float16):
        return False
    random = torch.Generator(device=device).manual_seed(0)

    def drawn(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, dtype=dtype, device=device, generator=random)

    keys, values = drawn(640, groups, width), drawn(640, groups, width)
    try:
        for counts in ((1, 1, 1), (17, 1, 64)):
            stretches = [Stretch(counts[0], 320, 129), Stretch(counts[1], 0, 300), Stretch(counts[2], 512, 64)]
            queries = drawn(sum(counts), heads, width)
            found = flash(stretches, 640, device)(queries, keys, values)
            difference = float((found.float() - Sliced(stretches)(queries, keys, values).float()).abs().max())
            if not difference < TOLERANCE:
                log.warning("FlashAttention is off by %.3g here; sequences are computed one by one.", difference)
                return False
    except (RuntimeError, TypeError, AttributeError) as error:
        log.warning("FlashAttention cannot be used (%s); sequences are computed one by one.", error)
        return False
    return True


def flash(stretches: Sequence[Stretch], most_keys: int, device: torch.device) -> Flash:
    """Return the attention of these stretches; their numbers go to the device in one piece."""
    counts = [stretch.count for stretch in stretches]
    offsets = [0]
    for count in counts:
        offsets.append(offsets[-1] + count)
    starts = [*(stretch.start for stretch in stretches), 0]
    numbers = [*offsets, *starts, *(stretch.length for stretch in stretches)]
    packed = sent(torch.tensor(numbers, dtype=torch.int32), device)
    size = len(counts) + 1
    return Flash(packed[:size], packed[size : 2 * size], packed[2 * size :], max(counts), most_keys)
