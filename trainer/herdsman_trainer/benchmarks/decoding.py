"""Answers: the most probable token each time, several prompts together, up to a limit."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import DynamicCache

from herdsman_trainer.benchmarks.forward import CACHE, Check, padded

ROWS_AT_ONCE = {"cpu": 8, "cuda": 32}


@dataclass(frozen=True, slots=True)
class Answer:
    """What a model answered."""

    ids: list[int]
    """Without the id that ended it."""
    stopped: bool
    """Whether it ended by itself, and not at the limit."""


@torch.inference_mode()
def answers(
    model: Any,
    prompts: Sequence[Sequence[int]],
    stop_ids: frozenset[int],
    limits: Sequence[int],
    penalty: float,
    check: Check,
) -> list[Answer]:
    """Answer prompts together, each with its own limit of tokens.

    `penalty` makes tokens that are in the prompt or the answer already less probable, as transformers does it. Prompts
    are padded on the right; what was padded stays masked while answers grow behind it, so an answer is the same in
    any company, but for rounding.
    """
    device, rows = model.device, len(prompts)
    lengths = torch.tensor([len(prompt) for prompt in prompts], device=device)
    ids = padded(prompts, device)
    mask = torch.arange(ids.shape[1], device=device)[None] < lengths[:, None]
    cache = DynamicCache(config=model.config)
    states = model.model(ids, use_cache=True, **{CACHE: cache}).last_hidden_state
    scores = model.lm_head(states[torch.arange(rows, device=device), lengths - 1]).float()
    seen = torch.zeros_like(scores, dtype=torch.bool)
    for row, prompt in enumerate(prompts):
        seen[row, list(prompt)] = True
    found: list[list[int]] = [[] for _ in prompts]
    stopped, going = [False] * rows, [limit > 0 for limit in limits]
    for step in range(max(limits, default=0)):
        check()
        said = torch.where(seen, torch.where(scores < 0, scores * penalty, scores / penalty), scores)
        tokens = said.argmax(dim=-1)
        for row, token in enumerate(tokens.tolist()):
            if not going[row]:
                continue
            stopped[row] = token in stop_ids
            if not stopped[row]:
                found[row].append(token)
            going[row] = not stopped[row] and len(found[row]) < limits[row]
        if not any(going):
            break
        seen[torch.arange(rows, device=device), tokens] = True
        mask = torch.cat([mask, torch.ones_like(mask[:, :1])], dim=1)
        states = model.model(
            tokens[:, None],
            attention_mask=mask.long(),
            position_ids=(lengths + step)[:, None],
            use_cache=True,
            **{CACHE: cache},
        ).last_hidden_state
        scores = model.lm_head(states[:, -1]).float()
    return [Answer(row, ended) for row, ended in zip(found, stopped, strict=True)]
