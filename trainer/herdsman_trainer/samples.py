"""What the model writes at a moment of its training: short, always the likeliest token, the same prompts every time."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from herdsman.api.job_config import SFTConfig
from herdsman.api.v1alpha1.recipes import PretrainRecipe
from herdsman_trainer.batches import IGNORED
from herdsman_trainer.batches import Sequences as TrainedSequences
from herdsman_trainer.distributed import Processes
from herdsman_trainer.heartbeat import HEART
from herdsman_trainer.prompts import TEMPLATES
from herdsman_trainer.run_records import RecordFile
from herdsman_trainer.tokenizers import TextTokenizer
from herdsman_trainer.training_inputs import TrainingJob

OPENING_TOKENS = 24
"""Tokens of a held-out text that are given, where it is to be continued."""
LONGEST_PROMPT = 256

Logits = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""Returns (rows, length, vocabulary or more) logits for ids and a mask; on every rank alike."""


@dataclass(frozen=True)
class Prompt:
    """What the model is given, and what the data has there."""

    ids: tuple[int, ...]
    shown: str
    """The prompt for people, without the words of the template."""
    expected: str | None = None
    """How the held-out text goes on, or the answer of the record."""


def prompts_of(config: TrainingJob, tokenizer: TextTokenizer, held_out: TrainedSequences | None) -> list[Prompt]:
    """Return the recipe's prompts, or else the first held-out sequences' beginnings."""
    given = config.recipe.samples
    if given.prompts:
        return [_given(config, tokenizer, text) for text in given.prompts]
    count = min(given.count, len(held_out)) if held_out is not None else 0
    return [_of_sequence(config, tokenizer, held_out, index) for index in range(count)] if held_out else []


def _given(config: TrainingJob, tokenizer: TextTokenizer, text: str) -> Prompt:
    if isinstance(config, SFTConfig):
        template = TEMPLATES[config.recipe.template or "alpaca"]
        ids = template.source_ids(tokenizer, text, config.recipe.system_prompt)
        return Prompt(tuple(ids[-LONGEST_PROMPT:]), text)
    starts = isinstance(config.recipe, PretrainRecipe) and config.recipe.add_bos and tokenizer.bos_id is not None
    bos = [tokenizer.bos_id] if starts and tokenizer.bos_id is not None else []
    return Prompt((*bos, *tokenizer.encode(text)[:LONGEST_PROMPT]), text)


def _of_sequence(config: TrainingJob, tokenizer: TextTokenizer, sequences: TrainedSequences, index: int) -> Prompt:
    """Take a held-out sequence apart: its source and its target, or its beginning and how it goes on."""
    batch = sequences.collate(np.array([index], np.int64))
    ids = [int(item) for item, there in zip(batch.input_ids[0], batch.attention_mask[0], strict=True) if there]
    most = config.recipe.samples.max_tokens
    if isinstance(config, SFTConfig):
        source = int(np.argmax(batch.labels[0] != IGNORED))
        empty = TEMPLATES[config.recipe.template or "alpaca"].source_ids(tokenizer, "", config.recipe.system_prompt)
        shown = tokenizer.decode(without_frame(ids[:source], empty)).strip()
        return Prompt(tuple(ids[:source][-LONGEST_PROMPT:]), shown, tokenizer.decode(ids[source : source + most]))
    # The beginning of a block may be in the middle of a character, which a few more tokens do not mend.
    opening, rest = ids[:OPENING_TOKENS], ids[OPENING_TOKENS : OPENING_TOKENS + most]
    return Prompt(tuple(opening), tokenizer.decode(opening), tokenizer.decode(rest))


def without_frame(ids: Sequence[int], frame: Sequence[int]) -> Sequence[int]:
    """Return ids without what they share with `frame` at the beginning and at the end: the template around a text."""
    room = min(len(ids), len(frame))
    start = next((place for place in range(room) if ids[place] != frame[place]), room)
    room -= start
    end = next((place for place in range(room) if ids[-1 - place] != frame[-1 - place]), room)
    return ids[start : len(ids) - end]


def write(
    logits: Logits,
    prompts: Sequence[Prompt],
    tokenizer: TextTokenizer,
    stops: Iterable[int],
    max_tokens: int,
    processes: Processes,
) -> list[str]:
    """Return what the model writes to each prompt; every rank takes part, and rank 0's result counts.

    There is no cache of keys and values, which not every engine has: the few tokens are computed anew each time.
    """
    ends, pad = set(stops), tokenizer.eos_id
    rows = [list(prompt.ids) for prompt in prompts]
    for _ in range(max_tokens):
        going = [row for row, prompt in zip(rows, prompts, strict=True) if not _ended(row, prompt, ends)]
        if not processes.any(bool(going)):
            break
        length = -(-max(map(len, rows)) // 8) * 8
        ids = torch.tensor([row + [pad] * (length - len(row)) for row in rows])
        mask = torch.tensor([[1] * len(row) + [0] * (length - len(row)) for row in rows])
        last = torch.tensor([len(row) - 1 for row in rows])
        found = logits(ids, mask)
        chosen = found[torch.arange(len(rows), device=found.device), last.to(found.device), : tokenizer.vocab_size]
        for row, index in zip(rows, chosen.argmax(-1).tolist(), strict=True):
            if any(row is each for each in going):
                row.append(index)
        HEART.beat()
    return [tokenizer.decode(row[len(prompt.ids) :]) for row, prompt in zip(rows, prompts, strict=True)]


def _ended(row: Sequence[int], prompt: Prompt, ends: set[int]) -> bool:
    return len(row) > len(prompt.ids) and row[-1] in ends


class Sampler:
    """Lets the model write, and keeps what it wrote for the report."""

    def __init__(
        self,
        config: TrainingJob,
        tokenizer: TextTokenizer,
        held_out: TrainedSequences | None,
        processes: Processes,
        records: RecordFile,
    ) -> None:
        self._config = config
        self._tokenizer = tokenizer
        self._processes = processes
        self._records = records
        self.prompts = prompts_of(config, tokenizer, held_out)

    def take(self, logits: Logits, step: int, moment: str) -> list[tuple[Prompt, str]]:
        """Write to every prompt, and note it under the step and the moment: before, step, or after."""
        return self._take(logits, self._tokenizer, self.prompts, step, moment)

    def take_unmodified(self, logits: Logits, tokenizer: TextTokenizer) -> None:
        """Let the unmodified model write to the same prompts, in the tokens of its own tokenizer."""
        bos = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
        known = [Prompt((*bos, *tokenizer.encode(prompt.shown)), prompt.shown) for prompt in self.prompts]
        self._take(logits, tokenizer, known, 0, "unmodified")

    def _take(
        self, logits: Logits, tokenizer: TextTokenizer, prompts: Sequence[Prompt], step: int, moment: str
    ) -> list[tuple[Prompt, str]]:
        if not prompts:
            return []
        stops = self._stops(tokenizer)
        most = self._config.recipe.samples.max_tokens
        texts = write(logits, prompts, tokenizer, stops, most, self._processes)
        result = list(zip(self.prompts, texts, strict=True))
        if self._processes.is_first:
            told = [{"prompt": each.shown, "expected": each.expected, "text": text} for each, text in result]
            self._records.append({"step": step, "moment": moment, "samples": told})
        return result

    def _stops(self, tokenizer: TextTokenizer) -> Iterable[int]:
        if isinstance(self._config, SFTConfig) and tokenizer is self._tokenizer:
            return TEMPLATES[self._config.recipe.template or "alpaca"].stop_ids(tokenizer)
        return {tokenizer.eos_id}
