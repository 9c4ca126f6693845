"""Tasks on text: perplexity, and tokens per character."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from herdsman.api.v1alpha1.evaluation_tasks import Task
from herdsman_trainer.benchmarks.bootstrap import Measured, Numbers
from herdsman_trainer.benchmarks.candidate import Candidate
from herdsman_trainer.benchmarks.forward import Check
from herdsman_trainer.benchmarks.text_loss import document_losses
from herdsman_trainer.benchmarks.work import Outcome, Shard, chunks
from herdsman_trainer.corpora import find_text_files, read_documents
from herdsman_trainer.errors import BadInput
from herdsman_trainer.heartbeat import HEART
from herdsman_trainer.held_out import settle_threshold, split_hash, split_threshold

SHARD_CHARACTERS, SHARD_DOCUMENTS = 4096, 64
VOCABULARY_SHARD = 1 << 20
ENCODING_WEIGHT = 0.001
"""Encoding a character, beside predicting it."""
MOST_CHARACTERS = 1 << 28
"""Text that is held in memory at most."""


def read_texts(
    source: Path, separator: Literal["Line", "BlankLine"], held_out_fraction: float | None, most: int | None
) -> list[str]:
    """Return the documents of a dataset, or those that a training with this fraction has held out of it.

    BadInput where there are none, or so many that they do not fit into memory.
    """
    texts: list[str] = []
    hashes: list[int] = []
    size = 0
    limit = _threshold(source, separator, held_out_fraction) if held_out_fraction is not None else None
    for document in read_documents(find_text_files(source), separator):
        HEART.beat()
        number = split_hash(document.text) if limit is not None else 0
        if limit is not None and number >= limit:
            continue
        if most is not None and len(texts) >= most:
            break
        texts.append(document.text)
        hashes.append(number)
        size += len(document.text)
        if size > MOST_CHARACTERS:
            message = f"There is more text than is evaluated at once ({MOST_CHARACTERS} characters)."
            raise BadInput(message, file=str(source), hint="Set maxDocuments, or heldOutFraction.")
    if not texts:
        what = "holds no text" if limit is None else f"has nothing that heldOutFraction {held_out_fraction} holds out"
        hint = "Put UTF-8 text into the files; a held-out part needs two documents that differ."
        raise BadInput(f"The dataset {what}.", file=str(source), hint=hint)
    return texts


def _threshold(source: Path, separator: Literal["Line", "BlankLine"], fraction: float) -> int:
    """Return below which hash a training holds a document out; it moves the border where a side would be empty."""
    lowest, highest = 2**64, -1
    for document in read_documents(find_text_files(source), separator):
        HEART.beat()
        number = split_hash(document.text)
        lowest, highest = min(lowest, number), max(highest, number)
    return settle_threshold(split_threshold(fraction), lowest, highest)


class PerplexityWork:
    """Perplexity of documents."""

    def __init__(self, task: Task, source: Path) -> None:
        """Read the documents."""
        assert task.perplexity is not None
        asked = task.perplexity
        self.task = task
        self.texts = read_texts(source, asked.separator, asked.held_out_fraction, asked.max_documents)
        self._context = asked.context_tokens
        parts = chunks(self.texts, map(len, self.texts), SHARD_CHARACTERS, SHARD_DOCUMENTS)
        self.shards = [self._shard(place, part) for place, part in enumerate(parts)]

    def check(self, candidate: Candidate) -> None:
        """Nothing can be wrong: every tokenizer spells every text."""

    def _shard(self, place: int, texts: list[str]) -> Shard:
        def run(candidate: Candidate, check: Check) -> list[Any]:
            context = min(self._context, candidate.context_length)
            losses = document_losses(candidate.model, candidate.tokenizer, texts, context, check)
            return [list(loss) for loss in losses]

        return Shard(str(place), float(sum(map(len, texts))), run)

    def outcome(self, models: Sequence[str], results: Sequence[Sequence[Any]]) -> Outcome:
        """Return perplexities per token and character, and bits per byte."""
        losses = np.array([[loss for loss, _ in each] for each in results], np.float64)
        tokens = np.array([[count for _, count in each] for each in results], np.float64)
        characters = _spread([len(text) for text in self.texts], len(models))
        size = _spread([len(text.encode()) for text in self.texts], len(models))
        measured = [
            Measured("perplexity", losses, tokens, "lower", np.exp),
            Measured("perplexityPerCharacter", losses, characters, "lower", np.exp),
            Measured("bitsPerByte", losses / math.log(2), size, "lower"),
        ]
        totals = dict(zip(models, tokens.sum(axis=1).astype(int).tolist(), strict=True))
        details = {"documents": len(self.texts), "characters": int(characters[0].sum()), "tokens": totals}
        records = [
            {"document": place, "characters": len(text), "loss": _of(models, losses, place), "begins": text[:60]}
            for place, text in enumerate(self.texts)
        ]
        notes = []
        if len({tuple(row) for row in tokens.tolist()}) > 1:
            notes.append(
                "The tokenizers differ, so perplexities per token are of different things; those per character, and "
                "bits per byte, can be compared."
            )
        return Outcome(measured, details, notes, records)


class VocabularyWork:
    """Tokens per character, line ends not counted, as a TokenizerMerge reports it."""

    def __init__(self, task: Task, source: Path) -> None:
        """Read the documents."""
        assert task.tokens_per_character is not None
        asked = task.tokens_per_character
        self.task = task
        self.texts = read_texts(source, asked.separator, None, asked.max_documents)
        parts = chunks(self.texts, map(len, self.texts), VOCABULARY_SHARD, VOCABULARY_SHARD)
        self.shards = [self._shard(place, part) for place, part in enumerate(parts)]

    def check(self, candidate: Candidate) -> None:
        """Nothing can be wrong: every tokenizer spells every text."""

    def _shard(self, place: int, texts: list[str]) -> Shard:
        def run(candidate: Candidate, check: Check) -> list[Any]:
            check()
            return [len(ids) for ids in candidate.tokenizer.encode_batch(texts)]

        return Shard(str(place), ENCODING_WEIGHT * sum(map(len, texts)), run)

    def outcome(self, models: Sequence[str], results: Sequence[Sequence[Any]]) -> Outcome:
        """Return tokens per character."""
        counts = [len(text) - text.count("\n") - text.count("\r") for text in self.texts]
        tokens = np.array(results, np.float64)
        measured = [Measured("tokensPerCharacter", tokens, _spread(counts, len(models)), "lower")]
        return Outcome(measured, {"documents": len(self.texts), "characters": sum(counts)})


def _spread(counts: Sequence[int], models: int) -> Numbers:
    return np.tile(np.array(counts, np.float64), (models, 1))


def _of(models: Sequence[str], values: Numbers, place: int) -> dict[str, float]:
    return {model: float(values[row, place]) for row, model in enumerate(models)}
