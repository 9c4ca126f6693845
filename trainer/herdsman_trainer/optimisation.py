"""AdamW, its two groups of parameters, and the learning rate of each step."""

import math
from collections.abc import Mapping
from typing import Any

import torch

from herdsman.api.v1alpha1.recipes import Schedule

BETAS = (0.9, 0.999)
EPSILON = 1e-8


def learning_rate(step: int, total_steps: int, peak: float, schedule: Schedule) -> float:
    """Return the learning rate of `step` (from 0), as transformers' schedules have it.

    It rises linearly from zero over ceil(warmupRatio · total) steps, but never over the last step; cosine
    (Loshchilov & Hutter 2017, half a period) and linear fall to zero at `total_steps`.
    """
    warmup = warmup_steps(total_steps, schedule)
    if step < warmup:
        return peak * step / warmup
    progress = (step - warmup) / max(1, total_steps - warmup)
    if schedule.kind == "cosine":
        return peak * 0.5 * (1.0 + math.cos(math.pi * progress))
    if schedule.kind == "linear":
        return peak * (1.0 - progress)
    return peak


def warmup_steps(total_steps: int, schedule: Schedule) -> int:
    """Return the steps in which the learning rate rises."""
    return min(math.ceil((schedule.warmup_ratio or 0.0) * total_steps), total_steps - 1)


def adamw(trained: Mapping[str, torch.nn.Parameter], weight_decay: float) -> torch.optim.AdamW:
    """Return AdamW (Loshchilov & Hutter 2019) over the parameters; biases, norms and other vectors do not decay."""
    matrices = [item for item in trained.values() if item.dim() > 1]
    vectors = [item for item in trained.values() if item.dim() <= 1]
    groups: list[dict[str, Any]] = [
        {"params": matrices, "weight_decay": weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    fused = bool(trained) and all(item.is_cuda for item in trained.values())  # one pass over the state instead of ten
    return torch.optim.AdamW(
        [group for group in groups if group["params"]], lr=0.0, betas=BETAS, eps=EPSILON, fused=fused or None
    )


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the rate of all groups."""
    for group in optimizer.param_groups:
        group["lr"] = rate
