"""Recorded passes: on CUDA a token for each of so many rows is one launch instead of a thousand."""

import logging
from collections.abc import Sequence as Items
from typing import Any

import torch

from herdsman_server.batching.attention import Flash
from herdsman_server.batching.devices import sent
from herdsman_server.batching.kv_memory import KvMemory
from herdsman_server.batching.llama import Batch, BatchedLlama
from herdsman_server.batching.sampling import Slots

log = logging.getLogger(__name__)

SIZES = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256)
"""Rows that are recorded; a pass takes the next larger size, with rows that nobody reads."""


class CannotRecordError(Exception):
    """A pass could not be recorded; it can still be launched piece by piece."""


class DecodeGraphs:
    """Passes of one token a row, recorded when first needed."""

    def __init__(self, model: BatchedLlama, memory: KvMemory, slots: Slots, most_keys: int) -> None:
        self._model = model
        self._memory = memory
        self._slots = slots
        self._most_keys = most_keys
        self._graphs: dict[tuple[int, bool], _Recorded] = {}
        self._pool: Any = None

    def forget(self) -> None:
        """Drop what was recorded with adapters: they have changed."""
        self._graphs = {key: recorded for key, recorded in self._graphs.items() if not key[1]}

    def run(self, rows: Items[tuple[int, int, int, int]], *, adapters: bool) -> torch.Tensor:
        """Return the logits of rows: slot, position, start of the extent, and number of the adapter of each."""
        size = next(size for size in SIZES if size >= len(rows))
        recorded = self._graphs.get((size, adapters))
        if recorded is None:
            try:
                recorded = self._record(size, adapters=adapters)
            except RuntimeError as error:
                raise CannotRecordError(str(error).splitlines()[0]) from error
        nobody = (len(self._slots.last) - 1, 0, self._memory.spare, 0)
        numbers = torch.tensor([*rows, *[nobody] * (size - len(rows))], dtype=torch.int64).T.contiguous()
        recorded.inputs.copy_(sent(numbers, self._model.device))
        recorded.graph.replay()
        return recorded.logits[: len(rows)]

    def _record(self, size: int, *, adapters: bool) -> "_Recorded":
        inputs = torch.zeros(4, size, dtype=torch.int64, device=self._model.device)
        inputs[0] = len(self._slots.last) - 1
        inputs[2] = self._memory.spare
        offsets = torch.arange(size + 1, dtype=torch.int32, device=self._model.device)
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(2):
                self._pass(inputs, offsets, adapters=adapters)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            logits = self._pass(inputs, offsets, adapters=adapters)
        self._pool = self._pool or graph.pool()
        self._graphs[size, adapters] = recorded = _Recorded(graph, inputs, logits)
        return recorded

    def _pass(self, inputs: torch.Tensor, offsets: torch.Tensor, *, adapters: bool) -> torch.Tensor:
        slots, positions, starts, numbers = inputs
        keys_at = torch.cat((starts, starts[:1])).to(torch.int32)
        attention = Flash(offsets, keys_at, (positions + 1).to(torch.int32), 1, self._most_keys)
        chosen = numbers if adapters else None
        batch = Batch(self._slots.last[slots], positions, starts + positions, attention, chosen)
        return self._model.logits(self._model.states(batch, self._memory.layers), chosen)


class _Recorded:
    def __init__(self, graph: torch.cuda.CUDAGraph, inputs: torch.Tensor, logits: torch.Tensor) -> None:
        self.graph = graph
        self.inputs = inputs
        self.logits = logits
