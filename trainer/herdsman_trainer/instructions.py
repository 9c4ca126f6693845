"""Instruction records become ids: prompt and answer of each, cut, dropped or refused where they are too long."""

from collections.abc import Iterable
from typing import Any, Literal

import numpy as np

from herdsman_trainer.batches import Ids
from herdsman_trainer.errors import BadInput
from herdsman_trainer.heartbeat import HEART
from herdsman_trainer.held_out import split_hash
from herdsman_trainer.instruction_files import InstructionRecord
from herdsman_trainer.instruction_set import InstructionCounts, InstructionSet
from herdsman_trainer.prompts import PromptTemplate
from herdsman_trainer.token_writer import token_dtype
from herdsman_trainer.tokenizers import TextTokenizer

Overlong = Literal["Truncate", "Drop", "Fail"]
"""What happens to a sample above the length; see `encode_records`."""


def encode_records(
    records: Iterable[InstructionRecord],
    tokenizer: TextTokenizer,
    template: PromptTemplate,
    max_length: int,
    overlong: Overlong,
    system: str | None = None,
) -> InstructionSet:
    """Return the records as prompt ids and answer ids, each encoded on its own, at most `max_length` together.

    Of a longer sample, Truncate keeps the front, as published: the answer is cut and then has no id that ends the turn,
    for a model that is shown an end in the middle of a sentence learns to stop there. Drop leaves the sample out, Fail
    raises BadInput. In any case a sample is left out where nothing of its answer remains. Blank instructions and
    answers are left out too. Everything is counted; BadInput when no sample is left.
    """
    counts = InstructionCounts()
    samples: list[Ids] = []
    columns: list[tuple[int, int, int]] = []
    dtype = token_dtype(tokenizer.vocab_size)
    for record in records:
        HEART.beat()
        counts.read += 1
        if not record.prompt.strip():
            counts.dropped_empty_instruction += 1
            continue
        if not record.output.strip():
            counts.dropped_empty_output += 1
            continue
        source = template.source_ids(tokenizer, record.prompt, system)
        target = template.target_ids(tokenizer, record.output)
        room = max_length - len(source)
        characters = len(record.output)
        if len(target) > room:
            if overlong == "Fail":
                raise _overlong(record, len(source), len(target), max_length)
            if overlong == "Drop":
                counts.dropped_overlong += 1
                continue
            if room <= 0:
                counts.dropped_prompt_too_long += 1
                continue
            target = target[:room]
            characters = min(characters, len(tokenizer.decode(target)))
            counts.truncated += 1
        samples.append(_checked(record, source + target, tokenizer, dtype))
        columns.append((len(source), characters, split_hash(record.prompt)))
    counts.kept = len(samples)
    if not samples:
        raise _nothing_left(counts, max_length)
    lengths = np.array([len(sample) for sample in samples], np.int64)
    sources, characters_of, hashes = zip(*columns, strict=True)
    return InstructionSet(
        ids=np.concatenate(samples),
        starts=np.cumsum(lengths) - lengths,
        lengths=lengths,
        source_lengths=np.array(sources, np.int64),
        characters=np.array(characters_of, np.int64),
        hashes=np.array(hashes, np.uint64),
        pad_id=tokenizer.eos_id if tokenizer.pad_id is None else tokenizer.pad_id,
        control_ids=template.stop_ids(tokenizer),
        counts=counts,
    )


def _checked(record: InstructionRecord, ids: list[int], tokenizer: TextTokenizer, dtype: np.dtype[Any]) -> Ids:
    wrong = next((index for index in (max(ids), min(ids)) if not 0 <= index < tokenizer.vocab_size), None)
    if wrong is not None:
        raise BadInput(
            f"The tokenizer made the id {wrong} of record {record.number}, but it has only {tokenizer.vocab_size} ids.",
            file=str(record.file),
            line=record.line,
            hint="The tokenizer's files contradict each other; make the tokenizer again.",
        )
    return np.array(ids, dtype)


def _overlong(record: InstructionRecord, source: int, target: int, max_length: int) -> BadInput:
    return BadInput(
        f"Record {record.number} has {source + target} tokens (prompt {source}, answer {target}), "
        f"above maxLength {max_length}.",
        file=str(record.file),
        line=record.line,
        hint="Raise maxLength, shorten the record, or set overlong to Truncate or Drop.",
    )


def _nothing_left(counts: InstructionCounts, max_length: int) -> BadInput:
    if not counts.read:
        return BadInput("The instruction files hold no records.", hint="Put at least one record into them.")
    return BadInput(
        f"No sample is left of {counts.read} records: {counts}.",
        hint=f"Check the outputs of the records; with over-long samples, raise maxLength (now {max_length}).",
    )
