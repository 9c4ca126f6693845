"""Carries a pass out: from the scheduler's decision to tokens that were chosen, or are on their way."""

import logging
from collections.abc import Sequence as Items
from dataclasses import dataclass

import torch

from herdsman_server.batching.attention import Attention, Sliced, Stretch, flash, flash_works
from herdsman_server.batching.devices import brought, sent
from herdsman_server.batching.graphs import SIZES, CannotRecordError, DecodeGraphs
from herdsman_server.batching.kv_memory import KvMemory
from herdsman_server.batching.llama import Batch, BatchedLlama
from herdsman_server.batching.requests import Sequence
from herdsman_server.batching.sampling import Chosen, Slots
from herdsman_server.batching.scheduler import Part, Pass
from herdsman_server.engine import Logprobs

log = logging.getLogger(__name__)

TEXTS_AT_ONCE = 8
"""Texts whose vectors are computed in one pass."""


@dataclass(frozen=True)
class Flight:
    """The result of a pass, which may still be on its way from the device."""

    rows: tuple[Sequence, ...]
    chosen: Chosen | None
    """None where no row was to get a token."""
    event: torch.cuda.Event | None

    def land(self) -> list[tuple[Sequence, int, Logprobs | None]]:
        """Wait for the tokens and return them by their rows."""
        if self.event is not None:
            self.event.synchronize()
        if self.chosen is None:
            return []
        found = []
        for index, (row, token) in enumerate(zip(self.rows, self.chosen.tokens.tolist(), strict=True)):
            count = row.sampling.logprobs
            found.append((row, token, None if count is None else self.chosen.logprobs_of(index, count)))
        return found


class Passes:
    """A model with its memory, and what the device remembers of requests."""

    def __init__(self, model: BatchedLlama, memory: KvMemory, slots: int, context_length: int) -> None:
        self.model = model
        self.memory = memory
        self._slots = Slots(slots, model.vocabulary, model.device)
        self._context = context_length
        self._cuda = model.device.type == "cuda"
        self._flash = flash_works(model.heads, model.groups, model.width, model.dtype, model.device)
        self.graphs = DecodeGraphs(model, memory, self._slots, context_length) if self._flash else None
        """None where passes cannot be recorded."""

    def enter(self, sequence: Sequence) -> None:
        """Remember a request that takes its slot."""
        self._slots.enter(sequence)

    def carry_out(self, made: Pass) -> Flight:
        """Launch a pass; what the sequences have then computed is counted at once."""
        with torch.inference_mode():
            self.memory.carry_out(made.moves)
            logits, rows = self._beginnings(made.parts) if made.parts else (self._one_more(made.rows), made.rows)
            chosen = None
            if logits is not None:
                slots = self._to_device([row.slot for row in rows])
                chosen = self._slots.choose(logits, rows, slots)
            for row in rows:
                row.launched += 1
            return self._take_off(rows, chosen)

    def embed(self, texts: Items[Items[int]]) -> list[list[float]]:
        """Return the mean of the last layer's states over the tokens of each text, at length 1."""
        vectors: list[list[float]] = []
        with torch.inference_mode():
            for start in range(0, len(texts), TEXTS_AT_ONCE):
                vectors += self._embed_together(texts[start : start + TEXTS_AT_ONCE])
        return vectors

    def _embed_together(self, texts: Items[Items[int]]) -> list[list[float]]:
        model, lengths = self.model, [len(text) for text in texts]
        count = sum(lengths)
        keys = torch.empty(count, model.groups, model.width, dtype=model.dtype, device=model.device)
        # Nothing is kept: each layer's keys and values take the place of those before.
        memory = [(keys, torch.empty_like(keys))] * len(model.layers)
        starts = [sum(lengths[:place]) for place in range(len(lengths))]
        attention = self._attention([Stretch(n, start, n) for start, n in zip(starts, lengths, strict=True)])
        ids = self._to_device([token for text in texts for token in text])
        positions = self._to_device([place for length in lengths for place in range(length)])
        batch = Batch(ids, positions, torch.arange(count, device=model.device), attention)
        means = [part.float().mean(dim=0) for part in torch.split(model.states(batch, memory), lengths)]
        found: list[list[float]] = torch.nn.functional.normalize(torch.stack(means), dim=-1).tolist()
        return found

    def record(self, sizes: int) -> None:
        """Record the passes of up to so many rows, which would else be done when they are first needed."""
        if self.graphs is not None:
            with torch.inference_mode():
                for size in SIZES:
                    if size < 2 * sizes:
                        self._recorded([(len(self._slots.last) - 1, 0, self.memory.spare, 0)] * size, adapters=False)
                torch.cuda.synchronize()

    def _beginnings(self, parts: Items[Part]) -> tuple[torch.Tensor | None, tuple[Sequence, ...]]:
        ids: list[int] = []
        positions: list[int] = []
        places: list[int] = []
        last: list[int] = []
        stretches: list[Stretch] = []
        for part in parts:
            end, start = part.start + part.count, self.memory.start_of(part.sequence)
            ids += part.sequence.begin[part.start : end]
            positions += range(part.start, end)
            places += range(start + part.start, start + end)
            stretches.append(Stretch(part.count, start, end))
            part.sequence.computed = end
            if part.completes:
                last.append(len(ids) - 1)
        numbers = self._to_device([ids, positions, places])
        adapters = None
        if any(part.sequence.adapter for part in parts):
            adapters = self._to_device([part.sequence.adapter for part in parts for _ in range(part.count)])
        batch = Batch(numbers[0], numbers[1], numbers[2], self._attention(stretches), adapters)
        states = self.model.states(batch, self.memory.layers)
        rows = tuple(part.sequence for part in parts if part.completes)
        if not rows:
            return None, ()
        at = self._to_device(last)
        return self.model.logits(states[at], adapters[at] if adapters is not None else None), rows

    def _one_more(self, rows: Items[Sequence]) -> torch.Tensor:
        with_adapters = any(row.adapter for row in rows)
        numbers = [(row.slot, row.computed, self.memory.start_of(row), row.adapter) for row in rows]
        for row in rows:
            row.computed += 1
        if (recorded := self._recorded(numbers, adapters=with_adapters)) is not None:
            return recorded
        slots, positions, starts, adapters = self._to_device([list(each) for each in zip(*numbers, strict=True)])
        attention = self._attention([Stretch(1, start, position + 1) for _, position, start, _ in numbers])
        chosen = adapters if with_adapters else None
        batch = Batch(self._slots.last[slots], positions, starts + positions, attention, chosen)
        return self.model.logits(self.model.states(batch, self.memory.layers), chosen)

    def _recorded(self, rows: Items[tuple[int, int, int, int]], *, adapters: bool) -> torch.Tensor | None:
        """Return the logits of a recorded pass; None where there is none, and it has to be launched piece by piece."""
        if self.graphs is None or len(rows) > SIZES[-1]:
            return None
        try:
            return self.graphs.run(rows, adapters=adapters)
        except CannotRecordError as error:
            log.warning("Passes cannot be recorded here, and are launched piece by piece: %s", error)
            self.graphs = None
            return None

    def _attention(self, stretches: Items[Stretch]) -> Attention:
        return flash(stretches, self._context, self.model.device) if self._flash else Sliced(stretches)

    def _to_device(self, numbers: list[int] | list[list[int]]) -> torch.Tensor:
        return sent(torch.tensor(numbers, dtype=torch.int64), self.model.device)

    def _take_off(self, rows: tuple[Sequence, ...], chosen: Chosen | None) -> Flight:
        if not self._cuda:
            return Flight(rows, chosen, None)
        if chosen is not None:
            logprobs = chosen.logprobs
            away = None if logprobs is None else (brought(logprobs[0]), brought(logprobs[1]), brought(logprobs[2]))
            chosen = Chosen(brought(chosen.tokens), away)
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record()
        return Flight(rows, chosen, event)
