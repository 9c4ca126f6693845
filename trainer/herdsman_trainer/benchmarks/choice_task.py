"""The task of multiple choice: prompts that fit the model, what examples share computed once, accuracy by subject."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from herdsman.api.v1alpha1.evaluation_tasks import Scoring, Task
from herdsman_trainer.benchmarks.bootstrap import Measured
from herdsman_trainer.benchmarks.candidate import Candidate
from herdsman_trainer.benchmarks.choice_scores import (
    Scores,
    chosen,
    constrained,
    first_token,
    letters_of,
    log_likelihood,
)
from herdsman_trainer.benchmarks.forward import Check, Shared, share
from herdsman_trainer.benchmarks.question_prompts import Prompt, prompt_ids, question_prompt
from herdsman_trainer.benchmarks.questions import SubjectQuestions, read_subjects
from herdsman_trainer.benchmarks.subjects import group_of
from herdsman_trainer.benchmarks.work import Outcome, Shard

SHARD_QUESTIONS = 32


@dataclass(frozen=True)
class SubjectPrompts:
    """A subject's prompts for one model."""

    prompts: Sequence[Prompt]
    rows: Sequence[list[int]]
    shortened: int
    """Questions with fewer examples than asked for, or cut at the front, because the model takes no more."""


class ChoiceWork:
    """Questions with four answers."""

    def __init__(self, task: Task, source: Path, scratch: Path) -> None:
        """Read the questions; an archive is unpacked into `scratch`."""
        assert task.multiple_choice is not None
        self.task = task
        self._asked = task.multiple_choice
        self.subjects = read_subjects(source, self._asked, scratch)
        self._prepared: tuple[tuple[str, str], SubjectPrompts, Shared] | None = None
        self.shards = [
            self._shard(subject, start)
            for subject in self.subjects
            for start in range(0, len(subject.questions), SHARD_QUESTIONS)
        ]

    @property
    def scoring(self) -> Scoring:
        """How answers are read: what was published for the format unless the spec says it."""
        return self._asked.scoring or ("FirstToken" if self._asked.format == "MMLU" else "Constrained")

    def check(self, candidate: Candidate) -> None:
        """Raise BadInput where the tokenizer lacks a control token of the prompts."""
        subject = self.subjects[0]
        prompt = question_prompt(self._asked, subject, subject.questions[0], len(subject.examples))
        prompt_ids(prompt, candidate.tokenizer, bos=candidate.bos)

    def _shard(self, subject: SubjectQuestions, start: int) -> Shard:
        part = slice(start, start + SHARD_QUESTIONS)

        def run(candidate: Candidate, check: Check) -> list[Any]:
            prepared, shared = self._prepare(candidate, subject)
            scores = self._score(candidate, prepared.prompts[part], prepared.rows[part], shared, check)
            return [[*row, prepared.shortened if place == 0 and start == 0 else 0] for place, row in enumerate(scores)]

        characters = sum(len(each.text) + sum(map(len, each.choices)) for each in subject.questions[part])
        return Shard(f"{subject.name}/{start}", float(characters + 20 * len(subject.questions[part])), run)

    def _prepare(self, candidate: Candidate, subject: SubjectQuestions) -> tuple[SubjectPrompts, Shared]:
        """Return the prompts of a subject and what they share; those of the last one are kept."""
        key = (candidate.name, subject.name)
        if self._prepared is None or self._prepared[0] != key:
            self._prepared = None
            prompts = self._prompts(candidate, subject)
            self._prepared = key, prompts, share(candidate.model, prompts.rows)
        return self._prepared[1:]

    def _prompts(self, candidate: Candidate, subject: SubjectQuestions) -> SubjectPrompts:
        prompts: list[Prompt] = []
        rows: list[list[int]] = []
        shortened = 0
        for question in subject.questions:
            for shown in range(len(subject.examples), -1, -1):
                prompt = question_prompt(self._asked, subject, question, shown)
                row = prompt_ids(prompt, candidate.tokenizer, bos=candidate.bos)
                if len(row) <= candidate.context_length:
                    break
            shortened += shown < len(subject.examples) or len(row) > candidate.context_length
            prompts.append(prompt)
            rows.append(row[-candidate.context_length :])
        return SubjectPrompts(prompts, rows, shortened)

    def _score(
        self, candidate: Candidate, prompts: Sequence[Prompt], rows: Sequence[list[int]], shared: Shared, check: Check
    ) -> Scores:
        model, tokenizer = candidate.model, candidate.tokenizer
        if self.scoring == "Constrained":
            return constrained(model, rows, shared, letters_of(tokenizer), check)
        if self.scoring == "FirstToken":
            return first_token(model, rows, shared, tokenizer, check)
        return log_likelihood(model, prompts, rows, shared, tokenizer, check)

    def outcome(self, models: Sequence[str], results: Sequence[Sequence[Any]]) -> Outcome:
        """Return the accuracies: over all questions, over subjects, by group and by subject."""
        flat = [(subject, question) for subject in self.subjects for question in subject.questions]
        said = [[chosen(scores[:4]) for scores in each] for each in results]
        right = np.array([[letter == q.answer for letter, (_, q) in zip(row, flat, strict=True)] for row in said])
        names = [subject.name for subject, _ in flat]
        strata = np.unique(names, return_inverse=True)[1]
        share = 1 / (np.bincount(strata)[strata] * len(self.subjects))
        ones = np.ones_like(right, np.float64)
        measured = [
            Measured("accuracy", right.astype(np.float64), ones, "higher"),
            Measured("accuracyOverSubjects", right * share, ones * share, "higher", _rounded, strata),
        ]
        groups = [group_of(self._asked.format, name) for name in names]
        details = {
            "format": self._asked.format,
            "scoring": self.scoring,
            "fewShot": self._asked.few_shot,
            "questions": len(flat),
            "groups": _table(models, groups, right),
            "subjects": _table(models, names, right),
        }
        records = [
            {
                "subject": subject.name,
                "line": question.line,
                "answer": question.answer,
                "said": {model: said[row][place] for row, model in enumerate(models)},
                "scores": {model: results[row][place][:4] for row, model in enumerate(models)},
            }
            for place, (subject, question) in enumerate(flat)
        ]
        return Outcome(measured, details, self._notes(models, results), records)

    def _notes(self, models: Sequence[str], results: Sequence[Sequence[Any]]) -> list[str]:
        cut = {model: sum(row[4] for row in each) for model, each in zip(models, results, strict=True)}
        return [
            f"{count} prompts for {model} are longer than the model takes; they have fewer examples, as many as fit."
            for model, count in cut.items()
            if count
        ]


def _rounded(value: Any) -> Any:
    """Return a mean of means without the last bits, which would keep 0.5 from being at least 0.5."""
    return np.round(value, 12)


def _table(models: Sequence[str], keys: Sequence[str], right: Any) -> list[dict[str, Any]]:
    """Return for each key how many questions there are and what share of them each model got right."""
    places: defaultdict[str, list[int]] = defaultdict(list)
    for place, key in enumerate(keys):
        places[key].append(place)
    return [
        {
            "name": key,
            "questions": len(which),
            "accuracy": {model: float(right[row, which].mean()) for row, model in enumerate(models)},
        }
        for key, which in places.items()
    ]
