"""Passes through a model without learning: rows of different length together, and what they share computed once.

Rows are padded on the right, where causal attention never looks, so no mask is needed and what stands in the padding
does not matter. Which rows go together follows from the work alone, never from how far an earlier attempt has come:
sums are then made in the same order, and a resumed evaluation has the same figures to the last bit.
"""

import copy
import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import cross_entropy
from transformers import DynamicCache
from transformers.models.llama.modeling_llama import LlamaModel

TOKENS_AT_ONCE = {"cpu": 2048, "cuda": 16384}
"""Tokens of one pass, padding included."""
HEAD_TOKENS = 512
"""Positions whose scores over the vocabulary are in memory at once."""
SHORTEST_PREFIX = 16
"""What is shared is computed apart only from so many tokens on."""
CACHE = "cache" if "cache" in inspect.signature(LlamaModel.forward).parameters else "past_key_values"
"""What transformers calls the keys and values that are there already; the name changed in 5.2x."""

Check = Callable[[], None]
"""Called between passes; raises to stop."""


@dataclass(frozen=True)
class Shared:
    """The beginning that prompts have in common, and its keys and values."""

    ids: tuple[int, ...] = ()
    cache: Any = None

    def repeated(self, rows: int) -> Any:
        """Return a copy of the keys and values for so many rows; None where there are none."""
        if self.cache is None:
            return None
        mine = copy.deepcopy(self.cache)
        mine.batch_repeat_interleave(rows)
        return mine


def common_prefix(rows: Sequence[Sequence[int]]) -> tuple[int, ...]:
    """Return the ids that all rows begin with, one less than the shortest row at most."""
    if not rows:
        return ()
    limit = max(0, min(map(len, rows)) - 1)
    first, last = min(map(tuple, rows)), max(map(tuple, rows))  # what these two share, all between them share
    same = next((place for place in range(limit) if first[place] != last[place]), limit)
    return first[:same]


@torch.inference_mode()
def share(model: Any, rows: Sequence[Sequence[int]]) -> Shared:
    """Return what the rows begin with, computed, where it is worth it."""
    prefix = common_prefix(rows)
    if len(prefix) < SHORTEST_PREFIX or len(rows) == 1:
        return Shared()
    cache = DynamicCache(config=model.config)
    model.model(torch.tensor([prefix], device=model.device), use_cache=True, **{CACHE: cache})
    return Shared(prefix, cache)


def batches(lengths: Sequence[int], device: str, extra: int = 0) -> Iterator[list[int]]:
    """Yield which rows go together: neighbours in length, longest first; `extra` tokens are with each row besides."""
    limit = TOKENS_AT_ONCE[device]
    order = sorted(range(len(lengths)), key=lambda row: (-lengths[row], row))
    start = 0
    while start < len(order):
        rows = max(1, limit // max(1, lengths[order[start]] + extra))
        yield order[start : start + rows]
        start += rows


def padded(rows: Sequence[Sequence[int]], device: Any) -> torch.Tensor:
    """Return rows as one tensor, filled up with zeros on the right."""
    width = max(map(len, rows))
    return torch.tensor([[*row, *[0] * (width - len(row))] for row in rows], device=device)


@torch.inference_mode()
def last_scores(model: Any, rows: Sequence[Sequence[int]], shared: Shared, check: Check) -> torch.Tensor:
    """Return the scores of the token after each row, shape (rows, vocabulary), float32 on the CPU."""
    found: list[torch.Tensor | None] = [None] * len(rows)
    begun = len(shared.ids)
    for group in batches([len(row) - begun for row in rows], model.device.type, extra=begun):
        check()
        ids = padded([rows[row][begun:] for row in group], model.device)
        past = {CACHE: shared.repeated(len(group)), "use_cache": True} if shared.cache is not None else {}
        states = model.model(ids, **past or {"use_cache": False}).last_hidden_state
        last = torch.tensor([len(rows[row]) - begun - 1 for row in group], device=model.device)
        scores = model.lm_head(states[torch.arange(len(group), device=model.device), last]).float().cpu()
        for place, row in enumerate(group):
            found[row] = scores[place]
    return torch.stack([scores for scores in found if scores is not None])


@torch.inference_mode()
def continuation_nll(model: Any, rows: Sequence[tuple[Sequence[int], int]], check: Check) -> list[list[float]]:
    """Return the loss in nats of each row's tokens from a position on: rows are (ids, first target's position).

    A target at position p is predicted from all ids before it, so p is 1 at least.
    """
    found: list[list[float]] = [[] for _ in rows]
    for group in batches([len(ids) for ids, _ in rows], model.device.type):
        check()
        ids = padded([rows[row][0] for row in group], model.device)
        states = model.model(ids, use_cache=False).last_hidden_state
        places = [(place, at) for place, row in enumerate(group) for at in range(rows[row][1], len(rows[row][0]))]
        losses: list[float] = []
        for start in range(0, len(places), HEAD_TOKENS):
            where = torch.tensor(places[start : start + HEAD_TOKENS], device=model.device)
            scores = model.lm_head(states[where[:, 0], where[:, 1] - 1]).float()
            losses += cross_entropy(scores, ids[where[:, 0], where[:, 1]], reduction="none").cpu().tolist()
        for (place, _), loss in zip(places, losses, strict=True):
            found[group[place]].append(loss)
    return found
