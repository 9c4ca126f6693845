"""The choice of the next tokens, of all rows of a pass at once on the device.

What it depends on is each request's own: its figures, the tokens it has seen, and one number a token between 0 and 1
that the request itself draws. Who else is in the pass changes nothing. The order is that of transformers and of
llama.cpp as we ask them: penalties of the answer, repetition penalty, temperature, top_k, top_p.
"""

from collections.abc import Sequence as Items
from dataclasses import dataclass

import torch

from herdsman_server.batching.devices import sent
from herdsman_server.batching.requests import Sequence
from herdsman_server.engine import Logprobs

FIGURES = 6
"""Temperature, top_p, top_k, repetition, presence and frequency penalty."""


@dataclass(frozen=True)
class Chosen:
    """What was chosen in one pass, on the device or on its way from there."""

    tokens: torch.Tensor
    logprobs: tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None
    """Of the chosen tokens, the most probable ids, and theirs; None where nobody asked."""

    def logprobs_of(self, row: int, count: int) -> Logprobs:
        """Return those of a row; the results must be there."""
        assert self.logprobs is not None, "they were asked for"
        chosen, ids, values = self.logprobs
        top = tuple(zip(ids[row, :count].tolist(), values[row, :count].tolist(), strict=True))
        return Logprobs(float(chosen[row]), top)


class Slots:
    """What the device remembers of each request."""

    def __init__(self, count: int, vocabulary: int, device: torch.device) -> None:
        self._device = device
        self._figures = torch.zeros(count + 1, FIGURES, device=device)
        self._seen = torch.zeros(count + 1, vocabulary, dtype=torch.bool, device=device)
        """Tokens of prompt and answer."""
        self._said = torch.zeros(count + 1, vocabulary, dtype=torch.int16, device=device)
        """How often the answer has each token."""
        self._yes = torch.ones((), dtype=torch.bool, device=device)
        self.last = torch.zeros(count + 1, dtype=torch.int64, device=device)
        """The token that was chosen last. The last row is nobody's."""

    def enter(self, sequence: Sequence) -> None:
        """Remember a request that takes its slot."""
        slot, sampling = sequence.slot, sequence.sampling
        figures = (
            sampling.temperature,
            sampling.top_p,
            sampling.top_k or self._seen.shape[1],
            sampling.repetition_penalty,
            sampling.presence_penalty,
            sampling.frequency_penalty,
        )
        self._figures[slot] = sent(torch.tensor(figures, dtype=torch.float32), self._device)
        if sampling.repetition_penalty != 1.0:
            self._seen[slot].zero_()
            self._seen[slot, sent(torch.tensor(sequence.begin), self._device)] = True
        if sampling.presence_penalty or sampling.frequency_penalty:
            self._said[slot].zero_()
            if sequence.said:
                said = sent(torch.tensor(sequence.said), self._device)
                self._said[slot].scatter_add_(0, said, torch.ones_like(said, dtype=torch.int16))

    def choose(self, logits: torch.Tensor, rows: Items[Sequence], slots: torch.Tensor) -> Chosen:
        """Choose a token for each row of float32 logits [rows, vocabulary], which are used up."""
        wanted = [row.sampling for row in rows]
        asked = max((each.logprobs for each in wanted if each.logprobs is not None), default=None)
        own = torch.log_softmax(logits, dim=-1) if asked is not None else None
        figures = self._figures[slots]
        self._keep_to_grammars(logits, rows)
        if any(each.presence_penalty or each.frequency_penalty for each in wanted):
            counts = self._said[slots]
            logits -= figures[:, 4:5] * (counts > 0) + figures[:, 5:6] * counts
        if any(each.repetition_penalty != 1.0 for each in wanted):
            penalty = figures[:, 3:4]
            punished = torch.where(logits > 0, logits / penalty, logits * penalty)
            # A penalty of 1 changes nothing, whatever the slot's last request has seen.
            logits = torch.where(self._seen[slots], punished, logits)
        tokens = logits.argmax(dim=-1)
        if any(each.temperature > 0 for each in wanted):
            tokens = torch.where(figures[:, 0] > 0, self._drawn(logits, figures, rows), tokens)
        self.last[slots] = tokens
        if any(each.repetition_penalty != 1.0 for each in wanted):
            self._seen.index_put_((slots, tokens), self._yes)
        if any(each.presence_penalty or each.frequency_penalty for each in wanted):
            self._said[slots, tokens] += 1
        if own is None or asked is None:
            return Chosen(tokens, None)
        values, ids = own.topk(max(1, min(asked, own.shape[1])), dim=-1)
        return Chosen(tokens, (own.gather(1, tokens[:, None])[:, 0], ids, values))

    def _drawn(self, logits: torch.Tensor, figures: torch.Tensor, rows: Items[Sequence]) -> torch.Tensor:
        """Draw from the most probable tokens: the first whose cumulative share exceeds the row's number."""
        luck = torch.tensor([row.luck.random() for row in rows], dtype=torch.float32)
        luck = sent(luck, self._device)
        kept = max(row.sampling.top_k or logits.shape[1] for row in rows if row.sampling.temperature > 0)
        temperature = torch.where(figures[:, 0:1] > 0, figures[:, 0:1], 1.0)
        values, ids = (logits / temperature).topk(min(_round(kept), logits.shape[1]), dim=-1)
        place = torch.arange(values.shape[1], device=self._device)
        values = values.masked_fill(place >= figures[:, 2:3], float("-inf"))
        share = torch.softmax(values, dim=-1)
        before = share.cumsum(dim=-1) - share
        # The most probable one always stays.
        share = share.masked_fill((before >= figures[:, 1:2]) & (place > 0), 0.0)
        upto = share.cumsum(dim=-1)
        number = (upto <= luck[:, None] * upto[:, -1:]).sum(dim=-1, keepdim=True)
        last = (share > 0).sum(dim=-1, keepdim=True) - 1
        return ids.gather(1, torch.minimum(number, last))[:, 0]

    def _keep_to_grammars(self, logits: torch.Tensor, rows: Items[Sequence]) -> None:
        """Leave the tokens that the grammars of rows allow."""
        for index, row in enumerate(rows):
            if row.constraint is None:
                continue
            allowed = torch.zeros(logits.shape[1], dtype=torch.bool)
            ids = torch.from_numpy(row.constraint.allowed())[: len(allowed)]
            allowed[: len(ids)] = ids
            logits[index].masked_fill_(~sent(allowed, self._device), float("-inf"))


def _round(count: int) -> int:
    """Few different sizes, so that few kernels are chosen."""
    return 1 << (count - 1).bit_length()
