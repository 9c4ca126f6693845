"""How much memory a pass takes for each token, and so how many tokens a process computes at once."""

from dataclasses import dataclass

from transformers import LlamaConfig

from herdsman.api.v1alpha1.recipes import Recompute
from herdsman_trainer.fused.head import LOGIT_BYTES

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


def kept_bytes(config: LlamaConfig, recompute: Recompute, item_bytes: int) -> int:
    """Return what all blocks keep of one token for the backward pass.

    A block keeps its input, queries, keys, values, the attention's result and the residual stream after it, gate, up
    and what is made of them; `Selective` lacks the last three, `Full` keeps the input alone.
    """
    width, feed_forward = config.hidden_size, config.intermediate_size
    head = config.head_dim
    attention = head * (config.num_attention_heads + 2 * config.num_key_value_heads) + head * config.num_attention_heads
    values = width
    if recompute != "Full":
        values += attention + width
    if recompute == "None":
        values += 3 * feed_forward
    return values * item_bytes * config.num_hidden_layers


def passing_bytes(config: LlamaConfig, recompute: Recompute, item_bytes: int) -> int:
    """Return what one token needs while a block computes its gradients: its own gradients, and what is made again."""
    width, feed_forward = config.hidden_size, config.intermediate_size
    head = config.head_dim
    attention = head * (config.num_attention_heads + 2 * config.num_key_value_heads)
    values = 4 * width + 2 * attention + feed_forward
    if recompute != "None":
        values += 3 * feed_forward
    if recompute == "Full":
        values += 2 * attention
    return values * item_bytes


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
    room = int((free - trained_bytes - LOGIT_BYTES["cuda"]) * (1 - RESERVE))
    wanted = min(WORTHWHILE, share)
    fitting, level = 0, LEVELS[-1]
    for level in LEVELS if recompute is None else (recompute,):
        each = kept_bytes(config, level, item_bytes) + passing_bytes(config, level, item_bytes)
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
