"""Tasks with answers in words: samples side by side, and answers for a judge."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from herdsman.api.v1alpha1.evaluation_tasks import Judge, Samples, Task
from herdsman_trainer.benchmarks.bootstrap import Measured
from herdsman_trainer.benchmarks.candidate import Candidate
from herdsman_trainer.benchmarks.decoding import answers
from herdsman_trainer.benchmarks.forward import Check
from herdsman_trainer.benchmarks.prompt_files import Asked, read_prompts
from herdsman_trainer.benchmarks.work import Outcome, Shard, chunks
from herdsman_trainer.errors import BadInput
from herdsman_trainer.prompts import Message

SHARD_PROMPTS = 8
TOKEN_WEIGHT = 20.0
"""Answering a token takes as long as predicting so many characters of text, more or less."""


class SamplesWork:
    """Answers to prompts, which the report shows beside each other."""

    def __init__(self, task: Task, source: Path | None) -> None:
        """Read the prompts, from the files or from the spec."""
        asked: Samples | Judge | None = task.samples or task.judge
        assert asked is not None
        self.task = task
        self.asked = _prompts(task, source)
        self._max_tokens = asked.max_tokens
        self._penalty = asked.repetition_penalty_percent / 100
        places = list(range(len(self.asked)))
        parts = chunks(places, [1.0] * len(places), SHARD_PROMPTS, SHARD_PROMPTS)
        self.shards = [self._shard(number, part) for number, part in enumerate(parts)]

    def check(self, candidate: Candidate) -> None:
        """Raise BadInput where the template needs a control token that is not there, or a prompt leaves no room."""
        candidate.template.stop_ids(candidate.tokenizer)
        for asked in self.asked:
            self._ids(candidate, asked)

    def _ids(self, candidate: Candidate, asked: Asked) -> list[int]:
        ids = candidate.template.chat_ids(candidate.tokenizer, [Message("user", asked.text)])
        if len(ids) >= candidate.context_length:
            where = {"file": asked.file, "line": asked.line} if asked.file else {}
            raise BadInput(
                f"The prompt {asked.text[:40]!r}… has {len(ids)} tokens for {candidate.name}, and the model takes "
                f"{candidate.context_length}, prompt and answer together.",
                hint="Shorten the prompt, or leave it out.",
                **where,  # type: ignore[arg-type]
            )
        return ids

    def _shard(self, number: int, places: list[int]) -> Shard:
        def run(candidate: Candidate, check: Check) -> list[Any]:
            prompts = [self._ids(candidate, self.asked[place]) for place in places]
            limits = [min(self._max_tokens, candidate.context_length - len(prompt)) for prompt in prompts]
            stops = candidate.template.stop_ids(candidate.tokenizer)
            made = answers(candidate.model, prompts, stops, limits, self._penalty, check)
            return [
                {"text": candidate.tokenizer.decode(each.ids).strip(), "tokens": len(each.ids), "stopped": each.stopped}
                for each in made
            ]

        return Shard(str(number), TOKEN_WEIGHT * self._max_tokens * len(places), run)

    def outcome(self, models: Sequence[str], results: Sequence[Sequence[Any]]) -> Outcome:
        """Return the share of answers that ended by themselves, and the answers."""
        stopped = np.array([[each["stopped"] for each in row] for row in results], np.float64)
        measured = [Measured("stopped", stopped, np.ones_like(stopped), "higher")]
        records = [
            {
                "prompt": asked.text,
                "answers": {model: results[row][place] for row, model in enumerate(models)},
                **({"reference": asked.reference} if asked.reference else {}),
            }
            for place, asked in enumerate(self.asked)
        ]
        details = {"prompts": len(self.asked), "maxTokens": self._max_tokens, "samples": records}
        return Outcome(measured, details, never_stops(models, results, self._max_tokens), records)


def never_stops(models: Sequence[str], results: Sequence[Sequence[Any]], limit: int) -> list[str]:
    """Return which models ended none of their answers by themselves, in sentences."""
    return [
        f"{model} ended no answer by itself: each was cut off at {limit} tokens. It was trained without ends of turns, "
        "or its prompt template is another one."
        for model, row in zip(models, results, strict=True)
        if row and not any(each["stopped"] for each in row)
    ]


def _prompts(task: Task, source: Path | None) -> list[Asked]:
    if task.judge is not None:
        assert source is not None, "a judge's questions are a file"
        return read_prompts(source, task.judge.max_questions)
    assert task.samples is not None
    if source is not None:
        return read_prompts(source, task.samples.max_prompts)
    return [Asked(text, "", "", 0) for text in task.samples.prompts[: task.samples.max_prompts]]
