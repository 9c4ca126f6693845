"""The held-out split: decided by each text alone, so it is the same on all ranks, in all stages, for all tokenizers."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from xxhash import xxh3_64_intdigest

from herdsman_trainer.errors import BadInput

_SEED = 0x4865726473_6D616E
"""Whoever prepares texts with the same hash function has not chosen their side."""
_RANGE = 2**64


def split_hash(text: str) -> int:
    """Return the 64-bit number that decides the side of `text`; white space around the text does not matter.

    The text must be well-formed (no lone surrogates). It is also by what equal texts are found.
    """
    return xxh3_64_intdigest(text.strip().encode(), _SEED)


def split_hashes(texts: Sequence[str]) -> npt.NDArray[np.uint64]:
    """Return the split hash of each text."""
    return np.fromiter((xxh3_64_intdigest(text.strip().encode(), _SEED) for text in texts), np.uint64, len(texts))


def split_threshold(fraction: float) -> int:
    """Return the threshold for a fraction from 0 to 0.5: a text is held out when its hash is below it."""
    if not 0 <= fraction <= 0.5:
        raise BadInput(
            f"heldOutFraction is {fraction}; it must be from 0 to 0.5.",
            hint="It is a fraction, not per cent: 0.001 holds out one document in a thousand.",
        )
    return int(fraction * _RANGE)


def settle_threshold(threshold: int, lowest: int, highest: int) -> int:
    """Return the threshold that leaves neither side empty, given the lowest and the highest hash of all texts.

    With one distinct text nothing is held out; with two or more and a fraction above 0, each side has at least one.
    """
    if threshold == 0 or lowest == highest:
        return 0
    return min(max(threshold, lowest + 1), highest)
