"""The held-out split: decided by each text alone, so it is the same on all ranks, in all stages, for all tokenizers."""

from hashlib import blake2b

from herdsman_trainer.errors import BadInput

_KEY = b"herdsman held-out split 1"
_RANGE = 2**64


def split_hash(text: str) -> int:
    """Return the 64-bit number that decides the side of `text`; white space around the text does not matter."""
    return int.from_bytes(blake2b(text.strip().encode(), digest_size=8, key=_KEY).digest(), "little")


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
