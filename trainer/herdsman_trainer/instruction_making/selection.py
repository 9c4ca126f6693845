"""Which of the kept records make the set: by weights, up to a number, and which are held out."""

import random
from collections.abc import Sequence
from hashlib import blake2b

from herdsman_trainer.errors import BadInput
from herdsman_trainer.held_out import settle_threshold, split_threshold
from herdsman_trainer.instruction_making.records import AlpacaRecord

_KEY = b"herdsman instruction set 1"
"""Another one than that of a training's own held-out part, or the training would find that part taken away."""


def chosen(
    parts: Sequence[int], weights: Sequence[int | None], fields: Sequence[str], most: int | None, seed: int
) -> list[int]:
    """Return the numbers of the records that make the set, in their order.

    `parts` is the part of each record, `weights` and `fields` the weight of each part and the field that names it. With
    weights, parts give records in proportion to them, as many as the scarcest one allows, drawn by the seed; without,
    everything is taken, up to `most`.
    """
    of_part: list[list[int]] = [[] for _ in weights]
    for index, number in enumerate(parts):
        of_part[number].append(index)
    given = [weight for weight in weights if weight is not None]
    if not given:
        return _drawn(range(len(parts)), len(parts) if most is None else most, seed, "all")
    total = sum(given)
    for field, part in zip(fields, of_part, strict=True):
        if not part:
            hint = "Look at what was dropped in the log, loosen spec.clean, or leave it out."
            raise BadInput(f"{field} has a weight, and no record of it is left.", hint=hint)
    size = min(len(part) * total // weight for part, weight in zip(of_part, given, strict=True))
    size = size if most is None else min(size, most)
    taken = [
        _drawn(part, max(1, size * weight // total), seed, field)
        for part, weight, field in zip(of_part, given, fields, strict=True)
    ]
    return sorted(index for part in taken for index in part)


def is_held_out(records: Sequence[int], fraction: float) -> list[bool]:
    """Return which of the records, given by their hashes, are held out; neither side is empty where that can be."""
    if not records or fraction == 0:
        return [False] * len(records)
    threshold = settle_threshold(split_threshold(fraction), min(records), max(records))
    return [number < threshold for number in records]


def question_hash(record: AlpacaRecord) -> int:
    """Return the 64-bit number that decides the side of a record: the same question is never on both."""
    text = f"{len(record.instruction)} {record.instruction}{record.input}"
    return int.from_bytes(blake2b(text.encode(), digest_size=8, key=_KEY).digest(), "little")


def _drawn(indices: Sequence[int], most: int, seed: int, what: str) -> list[int]:
    if len(indices) <= most:
        return list(indices)
    return sorted(random.Random(f"{seed} {what}").sample(indices, most))  # a string seeds by its SHA-512
