"""Who has which part of the memory of keys and values: one contiguous extent each, in blocks.

An extent grows where it is if the blocks behind it are free, and else somewhere else; what is scattered is pushed
together. Moving is cheap, a few hundred megabytes at the speed of the memory, and in return every attention kernel
reads a conversation as one piece.
"""

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Generic, TypeVar

Owner = TypeVar("Owner", bound=Hashable)
BLOCK = 16
"""Tokens of a block."""


def blocks_of(tokens: int) -> int:
    """Return the blocks that hold so many tokens."""
    return -(-tokens // BLOCK)


@dataclass(frozen=True)
class Extent:
    """Consecutive blocks."""

    start: int
    blocks: int

    @property
    def end(self) -> int:
        """The first block behind it."""
        return self.start + self.blocks


@dataclass(frozen=True)
class Move:
    """Blocks that have to be copied, before anything else is written."""

    source: int
    target: int
    blocks: int


class Extents(Generic[Owner]):
    """The extents of `blocks` blocks."""

    def __init__(self, blocks: int) -> None:
        self.blocks = blocks
        self._of: dict[Owner, Extent] = {}

    @property
    def free(self) -> int:
        """Blocks that nobody has."""
        return self.blocks - sum(extent.blocks for extent in self._of.values())

    def of(self, owner: Owner) -> Extent:
        """Return the extent of an owner."""
        return self._of[owner]

    def take(self, owner: Owner, blocks: int) -> list[Move] | None:
        """Give an owner its first blocks; returns what has to be moved for it, or None where too few are free."""
        if blocks > self.free:
            return None
        if (start := self._hole(blocks)) is not None:
            self._of[owner] = Extent(start, blocks)
            return []
        moves = self._push_together()
        self._of[owner] = Extent(self.blocks - self.free, blocks)
        return moves

    def grow(self, owner: Owner, blocks: int) -> list[Move] | None:
        """Give an owner `blocks` blocks in all; returns what has to be moved, or None where too few are free."""
        have = self._of[owner]
        if blocks <= have.blocks:
            return []
        if blocks - have.blocks > self.free:
            return None
        behind = min((extent.start for extent in self._of.values() if extent.start >= have.end), default=self.blocks)
        if behind - have.start >= blocks:
            self._of[owner] = Extent(have.start, blocks)
            return []
        if (start := self._hole(blocks)) is not None:
            self._of[owner] = Extent(start, blocks)
            return [Move(have.start, start, have.blocks)]
        moves = self._push_together(last=owner)
        self._of[owner] = Extent(self._of[owner].start, blocks)
        return moves

    def release(self, owner: Owner) -> None:
        """Take an owner's blocks back."""
        del self._of[owner]

    def _hole(self, blocks: int) -> int | None:
        """Return the start of the smallest hole that holds so many blocks."""
        holes: list[tuple[int, int]] = []
        end = 0
        for extent in sorted(self._of.values(), key=lambda extent: extent.start):
            holes.append((extent.start - end, end))
            end = extent.end
        holes.append((self.blocks - end, end))
        return min(((size, start) for size, start in holes if size >= blocks), default=(0, None))[1]

    def _push_together(self, last: Owner | None = None) -> list[Move]:
        """Close the holes; with `last`, all that is free comes behind that extent.

        Those before it go to the front and those behind it to the end, so that nothing overtakes anything. The moves
        have to be made in their order.
        """
        ordered = sorted(self._of, key=lambda owner: self._of[owner].start)
        moves: list[Move] = []
        end = 0
        for owner in ordered:
            if owner == last:
                continue
            have = self._of[owner]
            if last is not None and have.start > self._of[last].start:
                continue
            moves += _moved(have, end)
            self._of[owner] = Extent(end, have.blocks)
            end += have.blocks
        if last is None:
            return moves
        behind = [owner for owner in ordered if self._of[owner].start > self._of[last].start]
        top = self.blocks
        for owner in reversed(behind):
            have = self._of[owner]
            top -= have.blocks
            moves += _moved(have, top)
            self._of[owner] = Extent(top, have.blocks)
        have = self._of[last]
        moves += _moved(have, end)
        self._of[last] = Extent(end, have.blocks)
        return moves


def _moved(have: Extent, start: int) -> list[Move]:
    return [Move(have.start, start, have.blocks)] if have.start != start else []
