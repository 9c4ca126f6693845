"""Adapters that tokens of the same pass may differ in: all of them are computed, and each token keeps its own.

The low-rank matrices of all resident adapters stand side by side. For a token those of the others are masked out
between the two products: exact zeros, whatever they hold. That costs two thin products, of the same shape whoever is in
the pass.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch.nn import functional

GROUPS = (("q_proj", "k_proj", "v_proj"), ("o_proj",), ("gate_proj", "up_proj"), ("down_proj",))
"""Layers that read the same input."""
PARENTS = {"q": "self_attn", "k": "self_attn", "v": "self_attn", "o": "self_attn"}


@dataclass(frozen=True)
class LowRank:
    """scale * B A of one layer: `a` is rank x in, `b` out x rank, the scale within."""

    a: torch.Tensor
    b: torch.Tensor


@dataclass(frozen=True)
class ResidentAdapter:
    """One adapter in the memory of the device."""

    name: str
    rank: int
    """The highest of its layers."""
    low: Mapping[str, LowRank]
    """By the names of the base's tensors, model.layers.0.self_attn.q_proj.weight."""
    embedding: torch.Tensor | None = None
    """An embedding of its own, with as many rows as the base's."""
    head: torch.Tensor | None = None

    @property
    def nbytes(self) -> int:
        """What it takes."""
        own = [each for each in (self.embedding, self.head) if each is not None]
        return sum(each.nbytes for each in own) + sum(pair.a.nbytes + pair.b.nbytes for pair in self.low.values())


@dataclass(frozen=True)
class _Stacked:
    a: torch.Tensor
    """[layers of the group x all ranks, in]."""
    b: tuple[torch.Tensor | None, ...]
    """[all ranks, out] of each layer of the group; None where no adapter changes it."""
    outputs: tuple[int, ...]


@dataclass(frozen=True)
class LoraStack:
    """Adapters by their numbers, 1 and up; None in the place of one that is gone."""

    adapters: Sequence[ResidentAdapter | None]
    masks: torch.Tensor
    """[adapters + 1, all ranks]: which columns are whose; nobody's in row 0."""
    stacked: Mapping[tuple[int, tuple[str, ...]], _Stacked]
    head_low: _Stacked | None
    shapes: Mapping[str, tuple[int, int]] = field(default_factory=dict)

    def for_tokens(self, adapters: torch.Tensor) -> "Chosen":
        """Return what these tokens, with the numbers of their adapters, get."""
        return Chosen(self, adapters, self.masks[adapters])


@dataclass(frozen=True)
class Chosen:
    """The adapters of the tokens of one pass."""

    stack: LoraStack
    adapters: torch.Tensor
    mask: torch.Tensor

    def add(self, y: torch.Tensor, x: torch.Tensor, layer: int, *names: str) -> None:
        """Add what the adapters make of the input to the output of layers that are computed as one."""
        if (found := self.stack.stacked.get((layer, names))) is not None:
            self._add(y, x, found)

    def embed(self, ids: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """Return the embedded tokens, those of adapters with an embedding of their own by that."""
        for number, adapter in enumerate(self.stack.adapters, start=1):
            if adapter is not None and adapter.embedding is not None:
                own = functional.embedding(ids, adapter.embedding)
                x = torch.where((self.adapters == number)[:, None], own, x)
        return x

    def head(self, states: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        """Return the logits, those of adapters with a head of their own by that."""
        for number, adapter in enumerate(self.stack.adapters, start=1):
            if adapter is not None and adapter.head is not None:
                own = functional.linear(states, adapter.head)
                logits = torch.where((self.adapters == number)[:, None], own, logits)
        if self.stack.head_low is not None:
            self._add(logits, states, self.stack.head_low)
        return logits

    def _add(self, y: torch.Tensor, x: torch.Tensor, found: _Stacked) -> None:
        inner = functional.linear(x, found.a).view(len(x), len(found.outputs), -1) * self.mask[:, None]
        place = 0
        for number, (b, size) in enumerate(zip(found.b, found.outputs, strict=True)):
            if b is not None:
                y[:, place : place + size].addmm_(inner[:, number], b)
            place += size


def stack(
    adapters: Sequence[ResidentAdapter | None], shapes: Mapping[str, tuple[int, int]], layers: int, like: torch.Tensor
) -> LoraStack | None:
    """Put adapters side by side; None where there are none. `shapes` are those of the base's linear weights."""
    there = [adapter for adapter in adapters if adapter is not None]
    if not there:
        return None
    places: list[int] = []
    total = 0
    for adapter in adapters:
        places.append(total)
        total += adapter.rank if adapter is not None else 0
    # Some products want a multiple of 8, and a rank of 0 (embeddings alone) is none.
    total = max(8, -(-total // 8) * 8)
    masks = like.new_zeros(len(adapters) + 1, total)
    for number, (adapter, place) in enumerate(zip(adapters, places, strict=True), start=1):
        masks[number, place : place + (adapter.rank if adapter is not None else 0)] = 1

    def side_by_side(names: Sequence[str]) -> _Stacked | None:
        if not any(name in adapter.low for adapter in there for name in names):
            return None
        a = like.new_zeros(len(names), total, shapes[names[0]][1])
        b: list[torch.Tensor | None] = []
        for index, name in enumerate(names):
            if not any(name in adapter.low for adapter in there):
                b.append(None)
                continue
            made = like.new_zeros(total, shapes[name][0])
            for adapter, place in zip(adapters, places, strict=True):
                if adapter is not None and (pair := adapter.low.get(name)) is not None:
                    rank = pair.a.shape[0]
                    a[index, place : place + rank] = pair.a
                    made[place : place + rank] = pair.b.T
            b.append(made)
        return _Stacked(a.flatten(0, 1), tuple(b), tuple(shapes[name][0] for name in names))

    stacked: dict[tuple[int, tuple[str, ...]], _Stacked] = {}
    for layer in range(layers):
        for group in GROUPS:
            names = [f"model.layers.{layer}.{PARENTS.get(name[0], 'mlp')}.{name}.weight" for name in group]
            if (found := side_by_side(names)) is not None:
                stacked[layer, group] = found
    return LoraStack(list(adapters), masks, stacked, side_by_side(["lm_head.weight"]), shapes)
