"""How much memory a pass takes for each token, and so how many tokens a process computes at once."""

from dataclasses import dataclass

from transformers import LlamaConfig

from herdsman.api.memory import LOGIT_BYTES, BlockShape
from herdsman.api.v1alpha1.recipes import Recompute

WORTHWHILE = 4096
"""Tokens a GPU should compute at once: with fewer its products are small, and recomputing is the better bargain."""
MOST = 16384
"""Beyond them a larger micro-batch gains nothing."""
CPU_TOKENS = 2048
"""On a CPU, where the caches count."""
RESERVE = 0.06
"""The share of the free memory that is left for the allocator's gaps."""
LEVELS: tuple[Recompute, ...] = ("None", "Selective", "Full")


@dataclass(frozen=True)
class MicroBatch:
    """What a process computes at once."""

    tokens: int
    recompute: Recompute
    reason: str
    """One sentence for the log."""


def block_shape(config: LlamaConfig) -> BlockShape:
    """Return the widths of a model's blocks."""
    head = config.head_dim
    return BlockShape(
        hidden=config.hidden_size,
        queries=head * config.num_attention_heads,
        keys=head * config.num_key_value_heads,
        intermediate=config.intermediate_size,
        layers=config.num_hidden_layers,
    )


def micro_batch(
    config: LlamaConfig,
    *,
    length: int,
    share: int,
    free: int,
    item_bytes: int,
    trained_bytes: int,
    recompute: Recompute | None,
) -> MicroBatch:
    """Choose how much is computed at once on a GPU with `free` bytes left after the weights.

    `length` is that of the longest sequence, `share` the tokens of one process in an optimizer step, `trained_bytes`
    what gradients and optimizer still take. The least recomputing is chosen with which WORTHWHILE tokens fit.
    """
    room = int((free - trained_bytes - LOGIT_BYTES) * (1 - RESERVE))
    shape = block_shape(config)
    wanted = min(WORTHWHILE, share)
    fitting, level = 0, LEVELS[-1]
    for level in LEVELS if recompute is None else (recompute,):
        each = shape.kept_bytes(level, item_bytes) + shape.passing_bytes(level, item_bytes)
        fitting = max(0, room) // each
        if fitting >= wanted:
            break
    tokens = max(length, min(fitting, MOST, share) // length * length)
    return MicroBatch(
        tokens,
        level,
        f"{tokens:,} tokens at once, recomputing {level}: {max(0, room) / 1e9:.1f} GB are free for activations, "
        f"and {fitting:,} tokens would fit.",
    )
