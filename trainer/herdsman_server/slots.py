"""Who computes with which part of llama.cpp's memory: slots, and the tokens whose keys and values all of them share."""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager


class Slots:
    """Lends slots; an answer waits until one is free and until prompt and answer surely fit beside the others.

    llama.cpp fails answers that do not fit any more in the middle, so that room is promised before they begin.
    """

    def __init__(self, count: int, tokens: int) -> None:
        self._free: dict[int, Sequence[int]] = dict.fromkeys(range(count), ())
        self._tokens = self._room = tokens
        self._changed = threading.Condition()

    @contextmanager
    def lend(self, prompt: Sequence[int], tokens: int) -> Iterator[int]:
        """Take a slot for a prompt and an answer, `tokens` together: the one that knows most of the prompt already."""
        tokens = min(tokens, self._tokens)  # more ends early, and would wait for ever
        with self._changed:
            self._changed.wait_for(lambda: self._free and self._room >= tokens)
            slot = max(self._free, key=lambda number: _common(self._free[number], prompt))
            del self._free[slot]
            self._room -= tokens
        try:
            yield slot
        finally:
            with self._changed:
                self._free[slot] = prompt
                self._room += tokens
                self._changed.notify_all()


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    """Number of ids both begin with."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((place for place, (a, b) in pairs if a != b), min(len(one), len(other)))
