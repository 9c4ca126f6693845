"""Loss on the held-out part: per token, and per character, which is comparable between tokenizers."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from herdsman_trainer.batches import Batch, Sequences, evaluation_batches
from herdsman_trainer.distributed import Processes
from herdsman_trainer.errors import Interrupted
from herdsman_trainer.heartbeat import HEART

if TYPE_CHECKING:
    from herdsman_trainer.token_streams import TokenArray
    from herdsman_trainer.tokenizers import TextTokenizer


@dataclass(frozen=True)
class HeldOut:
    """What is evaluated: sequences, and the characters of the text they hold."""

    sequences: Sequences
    characters: int


@dataclass(frozen=True)
class HeldOutLoss:
    """Summed losses in nats over all ranks."""

    nll: float
    targets: int
    text_nll: float
    """Of the targets that are text: without BOS, EOS and ends of turns."""
    characters: int

    @property
    def per_token(self) -> float:
        """Mean loss of a target."""
        return self.nll / self.targets if self.targets else math.nan

    @property
    def per_char(self) -> float:
        """Loss of the text per character."""
        return self.text_nll / self.characters if self.characters else math.nan

    @property
    def perplexity(self) -> float:
        """exp of the mean loss; infinite where that overflows."""
        return math.exp(self.per_token) if self.per_token < 700 else math.inf

    def figures(self, suffix: str = "") -> dict[str, float]:
        """Return the figures under the names of the report, such as heldout_loss_per_char_before."""
        named = {
            "heldout_loss": self.per_token,
            "heldout_loss_per_char": self.per_char,
            "heldout_perplexity": self.perplexity,
        }
        return {name + suffix: value for name, value in named.items() if math.isfinite(value)}


def evaluate(
    token_nll: Callable[[Batch], torch.Tensor],
    held_out: HeldOut,
    micro_sequences: int,
    processes: Processes,
    should_stop: Callable[[], bool] = lambda: False,
) -> HeldOutLoss:
    """Evaluate every sequence once, spread over the ranks; the result is the same on every rank.

    `token_nll` returns (rows, length − 1) losses as objective.token_nll does. Raises Interrupted on every rank where
    any was asked to stop.
    """
    nll = text_nll = 0.0
    targets = 0
    for batch in evaluation_batches(held_out.sequences, micro_sequences, processes.rank, processes.world_size):
        losses = token_nll(batch).double()
        text = torch.from_numpy(batch.text_targets[:, 1:]).to(losses.device)
        nll += float(losses.sum())
        text_nll += float((losses * text).sum())
        targets += batch.targets
        HEART.beat()
        if processes.any(should_stop()):
            raise Interrupted("Stopped on request during an evaluation.")
    nll, text_nll, total = processes.sum([nll, text_nll, targets])
    return HeldOutLoss(nll, round(total), text_nll, held_out.characters)


def tokens_of_other_vocabulary(
    tokens: "TokenArray", tokenizer: "TextTokenizer", other: "TextTokenizer", control_ids: frozenset[int]
) -> "TokenArray":
    """Return the same documents in the ids of another tokenizer, BOS and EOS where they stood.

    Documents end where BOS or EOS stand; without either, the stream counts as one document.
    """
    result: list[int] = []
    document: list[int] = []
    ends = {tokenizer.bos_id: other.bos_id, tokenizer.eos_id: other.eos_id}
    for index in tokens.tolist():
        if index not in control_ids:
            document.append(index)
            continue
        result += other.encode(tokenizer.decode(document)) if document else []
        HEART.beat()
        document = []
        mapped = ends.get(index)
        result += [] if mapped is None else [mapped]
    result += other.encode(tokenizer.decode(document)) if document else []
    return np.array(result, np.uint32)
