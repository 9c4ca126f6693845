"""The objective: negative log-likelihood of the target tokens, in nats."""

import torch
from torch.nn.functional import cross_entropy

from herdsman_trainer.batches import IGNORED, Batch


def token_nll(module: torch.nn.Module, batch: Batch, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    """Return the loss of every target, shape (rows, length − 1), float32; positions without a target are zero.

    Column t is the loss of the token at t + 1. Matrix products run in `dtype` (autocast), the softmax in float32.
    """
    input_ids = torch.from_numpy(batch.input_ids).to(device)
    labels = torch.from_numpy(batch.labels).to(device)
    # Rows without padding need no mask; the causal kernel is faster than a masked one.
    mask = None if batch.attention_mask.all() else torch.from_numpy(batch.attention_mask).to(device)
    with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
        logits = module(input_ids=input_ids, attention_mask=mask, use_cache=False).logits
    losses = cross_entropy(
        logits[:, :-1].float().flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORED, reduction="none"
    )
    return losses.view(len(labels), -1)
