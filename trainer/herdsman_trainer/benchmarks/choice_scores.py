"""How an answer is read off a model: three published ways of scoring the letters A to D."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from herdsman_trainer.benchmarks.forward import Check, Shared, continuation_nll, last_scores
from herdsman_trainer.benchmarks.question_prompts import Control, Prompt
from herdsman_trainer.benchmarks.questions import LETTERS
from herdsman_trainer.errors import Diverged
from herdsman_trainer.tokenizers import TextTokenizer

TEMPERATURE = 0.2
REPETITION_PENALTY = 1.1
"""Of the published evaluations; they are applied before the scores are taken, so they count."""

Scores = list[list[float]]
"""For each prompt the scores of A, B, C and D; the highest is the answer."""


@dataclass(frozen=True)
class Letters:
    """The ids of the letters in one tokenizer."""

    bare: tuple[int, ...]
    """The first id of each letter on its own: of `A` as a word."""
    behind_colon: tuple[int, ...]
    """The last id of each letter behind a full-width colon: of `A` inside a line."""


def letters_of(tokenizer: TextTokenizer) -> Letters:
    """Return the ids of the letters; in LLaMA's tokenizer A is 319 as a word and 29909 behind a colon."""
    return Letters(
        tuple(tokenizer.encode(letter)[0] for letter in LETTERS),
        tuple(tokenizer.encode(f"：{letter}")[-1] for letter in LETTERS),
    )


def constrained(model: Any, rows: Sequence[list[int]], shared: Shared, letters: Letters, check: Check) -> Scores:
    """Score as C-Eval and CMMLU were: one step of generation, both ids of each letter added.

    What stands in the prompt has its score divided by 1.1, or multiplied where it is negative; then all are divided by
    0.2. top_k 0 and top_p 1 leave all tokens.
    """
    scores = _finite(last_scores(model, rows, shared, check))
    found = []
    for row, given in zip(rows, scores, strict=True):
        seen = set(row)
        both = [_warped(given, ids, seen) for ids in (letters.bare, letters.behind_colon)]
        found.append((both[0] + both[1]).tolist())
    return found


def first_token(
    model: Any, rows: Sequence[list[int]], shared: Shared, tokenizer: TextTokenizer, check: Check
) -> Scores:
    """Score as MMLU was: the plain scores of the last id of each letter on its own."""
    scores = _finite(last_scores(model, rows, shared, check))
    found: Scores = scores[:, [tokenizer.encode(letter)[-1] for letter in LETTERS]].tolist()
    return found


def log_likelihood(
    model: Any,
    prompts: Sequence[Prompt],
    rows: Sequence[list[int]],
    shared: Shared,
    tokenizer: TextTokenizer,
    check: Check,
) -> Scores:
    """Score as lm-evaluation-harness does: the log-probability of a blank and the letter behind the prompt.

    Prompt and continuation are encoded together and cut where the prompt's own ids end; blanks at the end of a prompt
    belong to the continuation.
    """
    split = [
        [_continued(prompt, row, letter, tokenizer) for letter in LETTERS]
        for prompt, row in zip(prompts, rows, strict=True)
    ]
    if all(len(ids) == 1 and before == row for row, each in zip(rows, split, strict=True) for before, ids in each):
        logs = torch.log_softmax(_finite(last_scores(model, rows, shared, check)), dim=-1)
        return [[float(log[ids[0]]) for _, ids in each] for log, each in zip(logs, split, strict=True)]
    whole = [([*before, *ids], len(before)) for each in split for before, ids in each]
    sums = [-math.fsum(losses) for losses in continuation_nll(model, whole, check)]
    if not all(map(math.isfinite, sums)):
        raise _not_finite()
    return [sums[start : start + len(LETTERS)] for start in range(0, len(sums), len(LETTERS))]


def chosen(scores: Sequence[float]) -> str:
    """Return the letter with the highest score; the first of several."""
    return LETTERS[max(range(len(LETTERS)), key=lambda place: (scores[place], -place))]


def _warped(scores: torch.Tensor, ids: Sequence[int], seen: set[int]) -> torch.Tensor:
    given = scores[list(ids)]
    penalised = torch.where(given < 0, given * REPETITION_PENALTY, given / REPETITION_PENALTY)
    repeated = torch.tensor([index in seen for index in ids])
    return torch.where(repeated, penalised, given) / TEMPERATURE


def _continued(prompt: Prompt, row: list[int], letter: str, tokenizer: TextTokenizer) -> tuple[list[int], list[int]]:
    """Return (ids before, ids of the continuation) of a letter behind a prompt whose ids are `row`."""
    last = prompt[-1]
    text = "" if isinstance(last, Control) else last
    kept = text.rstrip()
    ours = len(tokenizer.encode(text)) if text else 0
    start = row[: len(row) - ours] + (tokenizer.encode(kept) if kept else [])
    whole = row[: len(row) - ours] + tokenizer.encode(f"{text} {letter}")
    return start, whole[len(start) :]


def _finite(scores: torch.Tensor) -> torch.Tensor:
    if not bool(torch.isfinite(scores).all()):
        raise _not_finite()
    return scores


def _not_finite() -> Diverged:
    hint = "Its weights are damaged, or its training has diverged: see the loss of the run that made it."
    return Diverged("The model's scores are not finite.", hint=hint)
