"""The memory of keys and values: one tensor for all layers, lent out in extents."""

from collections.abc import Iterable

import torch

from herdsman_server.batching.extents import BLOCK, Extents, Move
from herdsman_server.batching.requests import Sequence

PIECE = 256
"""Tokens that are copied at once where a move overlaps itself."""


class KvMemory:
    """Keys and values of `tokens` tokens, as [layers, 2, tokens, heads, width]; the last block belongs to nobody."""

    def __init__(
        self, layers: int, tokens: int, heads: int, width: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        blocks = tokens // BLOCK
        # Not filled with zeros: on a CPU pages that are never written take no memory.
        self._values = torch.empty(layers, 2, (blocks + 1) * BLOCK, heads, width, dtype=dtype, device=device)
        self.extents: Extents[Sequence] = Extents(blocks)
        self.layers = [(self._values[layer, 0], self._values[layer, 1]) for layer in range(layers)]
        """Keys and values of each layer, [tokens, heads, width]."""
        self.spare = blocks * BLOCK
        """A token whose keys and values nobody reads."""
        self._values[:, :, self.spare :].zero_()

    @property
    def tokens(self) -> int:
        """Tokens there is room for."""
        return self.extents.blocks * BLOCK

    def start_of(self, sequence: Sequence) -> int:
        """Return the place of a sequence's first token."""
        return self.extents.of(sequence).start * BLOCK

    def carry_out(self, moves: Iterable[Move]) -> None:
        """Copy what has moved."""
        for move in moves:
            self._copy(move.source * BLOCK, move.target * BLOCK, move.blocks * BLOCK)

    def _copy(self, source: int, target: int, count: int) -> None:
        if abs(source - target) >= count:
            self._values[:, :, target : target + count] = self._values[:, :, source : source + count]
            return
        pieces = range(0, count, PIECE)
        for start in pieces if target < source else reversed(pieces):
            size = min(PIECE, count - start)
            piece = self._values[:, :, source + start : source + start + size].clone()
            self._values[:, :, target + start : target + start + size] = piece


def bytes_per_token(layers: int, heads: int, width: int, dtype: torch.dtype) -> int:
    """Return what the keys and values of one token take."""
    return 2 * layers * heads * width * torch.empty((), dtype=dtype).element_size()
