"""The held-out split: decided by each text alone, so it is the same on all ranks, in all stages, for all tokenizers."""

from collections.abc import Sequence
from hashlib import blake2b

import numpy as np
import numpy.typing as npt

from herdsman_trainer.errors import BadInput

_KEY = b"herdsman held-out split 1"
_RANGE = 2**64


def split_hash(text: str) -> int:
    """Return the 64-bit number that decides the side of `text`; white space around the text does not matter."""
    return int.from_bytes(blake2b(text.strip().encode(), digest_size=8, key=_KEY).digest(), "little")


def split_hashes(texts: Sequence[str], utf8: Sequence[bytes]) -> npt.NDArray[np.uint64]:
    """Return the split hash of each text, given as text and as UTF-8; it is also by what equal texts are found."""
    stripped = map(str.strip, texts)  # is the text itself where there is nothing to strip
    content = [raw if bare is text else bare.encode() for bare, text, raw in zip(stripped, texts, utf8, strict=True)]
    digests = b"".join([blake2b(raw, digest_size=8, key=_KEY).digest() for raw in content])
    return np.frombuffer(digests, "<u8")


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
