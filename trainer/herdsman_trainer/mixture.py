"""Mixtures: a stream of sequences of which each dataset has a fixed share, at every point and for every world size.

With weights 7 and 3, every ten sequences are seven of the first dataset and three of the second, spread as evenly as
whole numbers allow, in the same pattern again and again. Each dataset is a stream of its own: epoch after epoch, each
in its own order; so a small dataset with a large weight is seen more often, and no sequence of a dataset is seen a
second time before all others were seen once. The position in the stream is the whole state, as without a mixture.
"""

from dataclasses import dataclass
from functools import reduce
from math import gcd

import numpy as np

from herdsman_trainer.errors import BadInput
from herdsman_trainer.sequence_order import Indices, SequenceOrder


@dataclass(frozen=True)
class Mixture:
    """Datasets that lie one behind the other, and the weight of each."""

    bounds: tuple[int, ...]
    """Where the sequences of each dataset begin, and where the last ones end."""
    weights: tuple[int, ...]

    @property
    def counts(self) -> list[int]:
        """The number of sequences of each dataset."""
        return [end - begin for begin, end in zip(self.bounds, self.bounds[1:], strict=False)]

    def passes(self, sequences: float) -> list[float]:
        """Return how often each dataset is gone through in so many sequences."""
        total = sum(self.weights)
        return [sequences * weight / total / count for weight, count in zip(self.weights, self.counts, strict=True)]


def block_mixture(token_bounds: tuple[int, ...], block_size: int, blocks: int, weights: tuple[int, ...]) -> Mixture:
    """Return the mixture of blocks over the tokens of several datasets: a block belongs to that of its first token."""
    bounds = (*(min(blocks, -(-bound // block_size)) for bound in token_bounds[:-1]), blocks)
    return Mixture(bounds, weights)


def check_mixture(mixture: Mixture, fields: list[str], what: str) -> None:
    """Raise BadInput for a dataset that has a weight and nothing to give for it."""
    for field, count in zip(fields, mixture.counts, strict=True):
        if not count:
            raise BadInput(
                f"{field} has a weight and not a single {what} to train on.",
                hint="Add text to it, or leave it out.",
            )


class MixedOrder:
    """The endless stream of a mixture."""

    def __init__(self, seed: int, mixture: Mixture) -> None:
        self._starts = np.array(mixture.bounds[:-1], np.int64)
        self._streams = [SequenceOrder(seed, count, part) for part, count in enumerate(mixture.counts)]
        divisor = reduce(gcd, mixture.weights)
        self._weights = np.array(mixture.weights, np.int64) // divisor
        self._pattern = pattern(tuple(int(weight) for weight in self._weights))
        self._rank = np.empty(len(self._pattern), np.int64)
        for part, weight in enumerate(self._weights):
            self._rank[self._pattern == part] = np.arange(weight)

    def at(self, positions: Indices) -> Indices:
        """Return the sequence at each stream position, in the shape of `positions`."""
        periods, places = np.divmod(positions, len(self._pattern))
        parts = self._pattern[places]
        uses = periods * self._weights[parts] + self._rank[places]
        result = np.empty_like(positions)
        for part, stream in enumerate(self._streams):
            chosen = parts == part
            if chosen.any():
                result[chosen] = stream.at(uses[chosen]) + self._starts[part]
        return result


def pattern(weights: tuple[int, ...]) -> Indices:
    """Return which part comes at each place of a period, so that every part is spread evenly.

    The j-th of w sequences of a part stands, as far as there is room, in the middle of the j-th of w equal pieces of
    the period; of two that want the same place, the part that is listed first has it.
    """
    parts = np.repeat(np.arange(len(weights), dtype=np.int64), weights)
    middles = np.concatenate([(2 * np.arange(weight) + 1) / (2 * weight) for weight in weights])
    return parts[np.argsort(middles, kind="stable")]
