"""Who is computed next: pure bookkeeping, no tensors.

Prompts are computed in passes of at most so many tokens, several prompts in one pass and long ones in several, and
between them the answers under way go on by a token each. While there are such answers, passes over prompts take half of
the time at most: prompts that come meanwhile share the next pass, and nobody's answer stands still for longer than one.

Memory is promised for a prompt and the beginning of its answer; an answer gets more as it grows. Where there is no
more, whoever came last makes room and is computed again later. The first to come always goes on, so all come to an end.
"""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field

from herdsman_server.batching.extents import Extents, Move, blocks_of
from herdsman_server.batching.requests import Sequence

AHEAD = 64
"""Tokens of an answer that memory is taken for at once, at least; longer ones get a quarter of what they have."""


@dataclass(frozen=True)
class Part:
    """Consecutive tokens of a sequence's beginning."""

    sequence: Sequence
    start: int
    count: int

    @property
    def completes(self) -> bool:
        """Whether a token can be chosen after it."""
        return self.start + self.count == len(self.sequence.begin)


@dataclass(frozen=True)
class Pass:
    """What is computed next."""

    parts: tuple[Part, ...] = ()
    """Beginnings; none where answers go on."""
    rows: tuple[Sequence, ...] = ()
    """Answers that go on by a token."""
    moves: tuple[Move, ...] = ()
    """What has to be copied in the memory before."""


@dataclass
class Scheduler:
    """Decides over sequences, in the thread of the engine."""

    extents: Extents[Sequence]
    slots: int
    """Answers that are computed at once."""
    context_length: int
    budget: int
    """Tokens of beginnings in one pass at most."""
    waiting: deque[Sequence] = field(default_factory=deque)
    running: list[Sequence] = field(default_factory=list)
    """In the order in which they came to be computed."""
    balance: float = 0.0
    """Seconds that passes over beginnings have taken more than the answers in between."""
    entered: list[Sequence] = field(default_factory=list)
    """Those that got a slot, for whoever prepares it."""
    _moves: list[Move] = field(default_factory=list)

    def add(self, sequence: Sequence) -> None:
        """Take a new sequence."""
        self.waiting.append(sequence)

    @property
    def idle(self) -> bool:
        """Whether there is nothing to do."""
        return not self.waiting and not self.running

    def spent(self, made: Pass, seconds: float) -> None:
        """Hear how long a pass took."""
        self.balance = max(0.0, self.balance + seconds) if made.parts else max(0.0, self.balance - seconds)

    def next(self, *, flying: bool, budget: int | None = None) -> Pass | None:
        """Return what is computed next, or None where nothing can be or something has to land first.

        `flying` says that results of the last pass are not known yet; `budget` may be smaller than the usual one while
        answers go on.
        """
        self._drop_ended()
        self._admit()
        rows = [sequence for sequence in self.running if not sequence.missing and sequence.wants_more]
        begin = [sequence for sequence in self.running if sequence.missing]
        if begin and (not rows or self.balance <= 0.0):
            return self._begin(begin, self.budget if not rows or budget is None else min(budget, self.budget))
        if not rows:
            return None
        for sequence in rows:
            if sequence.slot >= 0 and not self._has_room(sequence):
                if flying:
                    return None
                self._make_room(sequence)
        left = tuple(sequence for sequence in rows if sequence.slot >= 0)
        return Pass(rows=left, moves=self._taken_moves()) if left else self.next(flying=flying, budget=budget)

    def taken_in(self) -> list[Sequence]:
        """Return those that got a slot since this was asked last."""
        entered, self.entered = self.entered, []
        return [sequence for sequence in entered if sequence.slot >= 0]

    def finish(self, sequence: Sequence) -> None:
        """Take back what an ended sequence had."""
        if sequence.slot >= 0:
            self.extents.release(sequence)
            sequence.slot = -1
        if sequence in self.running:
            self.running.remove(sequence)

    def all(self) -> Iterable[Sequence]:
        """Return all sequences there are."""
        return [*self.running, *self.waiting]

    def _drop_ended(self) -> None:
        for sequence in [sequence for sequence in self.running if sequence.ended]:
            self.finish(sequence)

    def _admit(self) -> None:
        """Let those that wait in, in their order: nobody is overtaken by somebody smaller."""
        while self.waiting and len(self.running) < self.slots:
            sequence = self.waiting[0]
            beginning = len(sequence.begin)
            most = beginning + sequence.max_tokens - sequence.launched
            blocks = blocks_of(min(most, self.context_length, beginning + AHEAD))
            # Those that are computed already may need a block each with the next token.
            spare = len(self.running)
            if blocks + (spare if self.running else 0) > self.extents.free:
                return
            moves = self.extents.take(sequence, blocks)
            assert moves is not None, "there are enough free blocks"
            self._moves += moves
            used = {other.slot for other in self.running}
            sequence.slot = next(number for number in range(self.slots) if number not in used)
            self.running.append(self.waiting.popleft())
            self.entered.append(sequence)

    def _begin(self, sequences: list[Sequence], budget: int) -> Pass:
        parts: list[Part] = []
        for sequence in sequences:
            if (count := min(sequence.missing, budget)) > 0:
                parts.append(Part(sequence, sequence.computed, count))
                budget -= count
        return Pass(parts=tuple(parts), moves=self._taken_moves())

    def _has_room(self, sequence: Sequence) -> bool:
        """Whether there is room for one token more, which is taken where there is."""
        have = self.extents.of(sequence).blocks
        if blocks_of(sequence.computed + 1) <= have:
            return True
        most = blocks_of(min(self.context_length, len(sequence.prompt) + sequence.max_tokens))
        for wanted in (sequence.computed + max(AHEAD, sequence.computed // 4), sequence.computed + 1):
            if (moves := self.extents.grow(sequence, min(most, blocks_of(wanted)))) is not None:
                self._moves += moves
                return True
        return False

    def _make_room(self, sequence: Sequence) -> None:
        """Let those that came last make room, until the sequence has it or has made room itself."""
        while not self._has_room(sequence):
            last = self.running[-1]
            self.extents.release(last)
            self.running.pop()
            last.withdraw()
            self.waiting.appendleft(last)
            if last is sequence:
                return

    def _taken_moves(self) -> tuple[Move, ...]:
        moves, self._moves = tuple(self._moves), []
        return moves
