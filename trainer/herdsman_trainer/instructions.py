"""Instruction records become ids: prompt and answer of each, cut, dropped or refused where they are too long."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from herdsman_trainer.batches import Ids
from herdsman_trainer.data.duplicates import Hashes
from herdsman_trainer.data.pieces import Piece
from herdsman_trainer.errors import BadInput
from herdsman_trainer.held_out import split_hash
from herdsman_trainer.instruction_files import InstructionRecord, instructions_of
from herdsman_trainer.instruction_set import InstructionCounts, InstructionSet
from herdsman_trainer.prompts import TEMPLATES, PromptTemplate
from herdsman_trainer.token_streams import Duplicates, token_dtype
from herdsman_trainer.tokenizers import TextTokenizer

Overlong = Literal["Truncate", "Drop", "Fail"]
"""What happens to a sample above the length; see `InstructionEncoder`."""


@dataclass(frozen=True, slots=True)
class InstructionOptions:
    """What decides the samples of records beside the files and the tokenizer."""

    template: PromptTemplate = TEMPLATES["alpaca"]
    max_length: int = 512
    overlong: Overlong = "Truncate"
    system: str | None = None
    duplicates: Duplicates = "Keep"


@dataclass(slots=True)
class EncodedSamples:
    """The samples of some records; every array but `ids` has one element a sample."""

    ids: Ids
    lengths: npt.NDArray[np.uint32]
    source_lengths: npt.NDArray[np.uint32]
    characters: npt.NDArray[np.uint32]
    """Characters of the answer, as far as it was kept."""
    prompt_characters: npt.NDArray[np.uint32]
    hashes: Hashes
    """The split hash of the prompt."""
    whole: Hashes
    """The hash of prompt and answer, by which duplicates are found."""
    truncated: npt.NDArray[np.bool_]
    """Whether the answer was cut."""
    counts: InstructionCounts


class InstructionEncoder:
    """Encodes records as prompt ids and answer ids, each encoded on its own, at most `max_length` together.

    Of a longer sample, Truncate keeps the front, as published: the answer is cut and then has no id that ends the turn,
    for a model that is shown an end in the middle of a sentence learns to stop there. Drop leaves the sample out, Fail
    raises BadInput. In any case a sample is left out where nothing of its answer remains. Blank instructions and
    answers are left out too. Everything is counted.
    """

    def __init__(self, tokenizer: TextTokenizer, options: InstructionOptions) -> None:
        self._tokenizer = tokenizer
        self._options = options
        self._dtype = token_dtype(tokenizer.vocab_size)

    def __call__(self, piece: Piece) -> EncodedSamples:
        """Return the samples of a piece."""
        return self.encode(instructions_of(piece))

    def encode(self, records: Iterable[InstructionRecord]) -> EncodedSamples:
        """Return the samples of records."""
        counts = InstructionCounts()
        samples: list[Ids] = []
        columns: list[tuple[int, int, int]] = []
        hashes: list[tuple[int, int]] = []
        cut: list[bool] = []
        for record in records:
            counts.read += 1
            before = counts.truncated
            made = self._sample(record, counts)
            if made is None:
                continue
            cut.append(counts.truncated > before)
            ids, source, characters = made
            samples.append(_checked(record, ids, self._tokenizer, self._dtype))
            columns.append((source, characters, len(record.prompt)))
            # The length keeps ("ab", "c") and ("a", "bc") apart.
            whole = split_hash(f"{len(record.prompt)} {record.prompt}{record.output}")
            hashes.append((split_hash(record.prompt), whole))
        counts.kept = len(samples)
        sources, characters_of, prompt_characters = np.array(columns, np.uint32).reshape(-1, 3).T
        prompts, wholes = np.array(hashes, np.uint64).reshape(-1, 2).T
        return EncodedSamples(
            ids=np.concatenate(samples) if samples else np.empty(0, self._dtype),
            lengths=np.array([len(sample) for sample in samples], np.uint32),
            source_lengths=sources,
            characters=characters_of,
            prompt_characters=prompt_characters,
            hashes=prompts,
            whole=wholes,
            truncated=np.array(cut, np.bool_),
            counts=counts,
        )

    def _sample(self, record: InstructionRecord, counts: InstructionCounts) -> tuple[list[int], int, int] | None:
        """Return ids, the number of those that are the prompt, and the characters of the answer; or count the loss."""
        options, tokenizer = self._options, self._tokenizer
        if not record.prompt.strip():
            counts.dropped_empty_instruction += 1
            return None
        if not record.output.strip():
            counts.dropped_empty_output += 1
            return None
        source = options.template.source_ids(tokenizer, record.prompt, options.system)
        target = options.template.target_ids(tokenizer, record.output)
        room = options.max_length - len(source)
        if len(target) <= room:
            return source + target, len(source), len(record.output)
        if options.overlong == "Fail":
            raise _overlong(record, len(source), len(target), options.max_length)
        if options.overlong == "Drop":
            counts.dropped_overlong += 1
            return None
        if room <= 0:
            counts.dropped_prompt_too_long += 1
            return None
        target = target[:room]
        counts.truncated += 1
        return source + target, len(source), min(len(record.output), len(tokenizer.decode(target)))


def encode_records(
    records: Iterable[InstructionRecord], tokenizer: TextTokenizer, options: InstructionOptions
) -> InstructionSet:
    """Return the samples of records; BadInput when none is left."""
    made = InstructionEncoder(tokenizer, options).encode(records)
    if not made.counts.kept:
        raise nothing_left(made.counts, options.max_length)
    lengths = made.lengths.astype(np.int64)
    return InstructionSet(
        ids=made.ids,
        starts=np.cumsum(lengths) - lengths,
        lengths=lengths,
        source_lengths=made.source_lengths.astype(np.int64),
        characters=made.characters.astype(np.int64),
        hashes=made.hashes,
        datasets=np.zeros(len(lengths), np.uint16),
        pad_id=pad_id(tokenizer),
        control_ids=options.template.stop_ids(tokenizer),
        counts_of=(made.counts,),
    )


def pad_id(tokenizer: TextTokenizer) -> int:
    """Return the id that fills rows: that of padding, or of EOS where there is none."""
    return tokenizer.eos_id if tokenizer.pad_id is None else tokenizer.pad_id


def _checked(record: InstructionRecord, ids: list[int], tokenizer: TextTokenizer, dtype: np.dtype[Any]) -> Ids:
    wrong = next((index for index in (max(ids), min(ids)) if not 0 <= index < tokenizer.vocab_size), None)
    if wrong is not None:
        raise BadInput(
            f"The tokenizer made the id {wrong} of {record.title.lower()}, but it has only {tokenizer.vocab_size} ids.",
            file=str(record.file),
            line=record.line,
            hint="The tokenizer's files contradict each other; make the tokenizer again.",
        )
    return np.array(ids, dtype)


def _overlong(record: InstructionRecord, source: int, target: int, max_length: int) -> BadInput:
    return BadInput(
        f"{record.title} has {source + target} tokens (prompt {source}, answer {target}), "
        f"above maxLength {max_length}.",
        file=str(record.file),
        line=record.line,
        hint="Raise maxLength, shorten the record, or set overlong to Truncate or Drop.",
    )


def nothing_left(counts: InstructionCounts, max_length: int) -> BadInput:
    """Return the error of records none of which can be learnt from."""
    if not counts.read:
        return BadInput("The instruction files hold no records.", hint="Put at least one record into them.")
    return BadInput(
        f"No sample is left of {counts.read} records: {counts}.",
        hint=f"Check the outputs of the records; with over-long samples, raise maxLength (now {max_length}).",
    )
