"""Passes recorded as CUDA graphs: the same kernels over the same memory, launched at once instead of one by one."""

from collections.abc import Callable
from dataclasses import fields, replace

import torch

from herdsman_trainer.fused.packing import Packed

Pass = Callable[[Packed, torch.Tensor, bool], torch.Tensor]
"""Computes a batch with a scale, for the first time after an update or again; returns the summed loss."""

WARM = 2
"""Passes of a shape before it is recorded: kernels are compiled and memory is found then."""


class Recorder:
    """Runs passes, and records those of one shape of sequences: the first that comes often, as blocks of text do."""

    def __init__(self, run: Pass) -> None:
        self._run = run
        self._seen: dict[tuple[int, ...], int] = {}
        self._packed: Packed | None = None
        self._shape: tuple[int, ...] | None = None
        self._scale = torch.zeros(())
        self._graphs: dict[bool, tuple[torch.cuda.CUDAGraph, torch.Tensor]] = {}

    def __call__(self, packed: Packed, scale: torch.Tensor, first: bool) -> torch.Tensor:
        """Compute a batch; the result is on the device."""
        shape = (len(packed.labels), *packed.lengths)
        if self._shape is None and packed.uniform:
            self._seen[shape] = self._seen.get(shape, 0) + 1
            if self._seen[shape] > WARM:
                self._shape, self._packed, self._scale = shape, _copied(packed), scale.clone()
        if shape != self._shape or self._packed is None:
            return self._run(packed, scale, first)
        for each in _tensors(packed):
            getattr(self._packed, each).copy_(getattr(packed, each))
        self._scale.copy_(scale)
        if first not in self._graphs:
            self._graphs[first] = self._recorded(first)
        graph, loss = self._graphs[first]
        graph.replay()
        return loss.clone()

    def _recorded(self, first: bool) -> tuple[torch.cuda.CUDAGraph, torch.Tensor]:
        assert self._packed is not None
        graph = torch.cuda.CUDAGraph()
        pool = next((other.pool() for other, _ in self._graphs.values()), None)
        with torch.cuda.graph(graph, pool=pool):
            loss = self._run(self._packed, self._scale, first)
        return graph, loss


def _tensors(packed: Packed) -> list[str]:
    return [each.name for each in fields(packed) if isinstance(getattr(packed, each.name), torch.Tensor)]


def _copied(packed: Packed) -> Packed:
    return replace(packed, **{name: getattr(packed, name).clone() for name in _tensors(packed)})
