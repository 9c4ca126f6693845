"""Turns ids into text piece by piece: whole characters only, and nothing of a stop string."""

from collections.abc import Callable, Sequence

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


class IncrementalDecoder:
    """Decodes a growing list of ids; a character whose bytes are spread over several ids comes out once it is whole.

    Only the ids since the last two outputs are decoded again, because a piece may depend on the one before it (its
    leading space) and never on older ones.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str]) -> None:
        self._decode = decode
        self._ids: list[int] = []
        self._start = 0
        self._read = 0

    def push(self, token: int) -> str:
        """Add an id and return the text that is certain now."""
        self._ids.append(token)
        text = self._new_text()
        if not text or text.endswith(REPLACEMENT):
            return ""
        self._start, self._read = self._read, len(self._ids)
        return text

    def finish(self) -> str:
        """Return what is left; bytes that never became a character, because the answer was cut there, are dropped."""
        text = self._new_text()
        self._start, self._read = self._read, len(self._ids)
        return text.rstrip(REPLACEMENT)

    def _new_text(self) -> str:
        known = self._decode(self._ids[self._start : self._read])
        return self._decode(self._ids[self._start :])[len(known) :]


class StopStrings:
    """Lets text through up to the first stop string, and holds back what may become one."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stop for stop in stops if stop)
        self._held = ""
        self.found = False
        """Whether a stop string came; no text follows it."""

    def push(self, text: str) -> str:
        """Add text and return what may be shown."""
        if self.found:
            return ""
        text = self._held + text
        places = [place for place in (text.find(stop) for stop in self._stops) if place >= 0]
        if places:
            self.found, self._held = True, ""
            return text[: min(places)]
        keep = self._may_become_a_stop(text)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def finish(self) -> str:
        """Return what was held back in vain."""
        text, self._held = self._held, ""
        return text

    def _may_become_a_stop(self, text: str) -> int:
        """Length of the longest end of the text that begins a stop string."""
        longest = max((len(stop) for stop in self._stops), default=1) - 1
        lengths = range(min(longest, len(text)), 0, -1)
        return next((size for size in lengths if any(stop.startswith(text[-size:]) for stop in self._stops)), 0)
