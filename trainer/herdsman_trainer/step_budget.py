"""How many optimizer steps a recipe asks for: given as such, as passes over the data, or as tokens."""

from typing import Protocol

import numpy as np

from herdsman.api.v1alpha1.recipes import TrainingRecipe
from herdsman_trainer.batches import Sequences
from herdsman_trainer.mixture import MixedOrder, Mixture
from herdsman_trainer.sequence_order import Indices, Order, SequenceOrder, total_steps

_SEQUENCES_AT_ONCE = 1 << 20


class TrainingSequences(Sequences, Protocol):
    """Sequences that know how many tokens they have."""

    def lengths_of(self, indices: Indices) -> Indices:
        """Return the number of tokens of each of these sequences, without padding."""
        ...


def planned_steps(
    recipe: TrainingRecipe, sequences: TrainingSequences, global_sequences: int, mixture: Mixture | None = None
) -> int:
    """Return the number of steps: maxSteps where given, or the fewest that take maxTokens, or else all of `epochs`."""
    if recipe.max_tokens is None:
        epochs = recipe.epochs or 1
        return total_steps(len(sequences), global_sequences, epochs=epochs, max_steps=recipe.max_steps)
    count = len(sequences)
    order: Order = SequenceOrder(recipe.seed, count) if mixture is None else MixedOrder(recipe.seed, mixture)
    return steps_for_tokens(order, sequences, global_sequences, recipe.max_tokens)


def steps_for_tokens(order: Order, sequences: TrainingSequences, global_sequences: int, tokens: int) -> int:
    """Return the fewest steps whose sequences, in this order, have at least so many tokens: exact, by looking."""
    lengths = sequences.lengths_of(np.arange(len(sequences), dtype=np.int64))
    if lengths.min() == lengths.max():
        return -(-tokens // (int(lengths[0]) * global_sequences))
    at_once = max(1, _SEQUENCES_AT_ONCE // global_sequences)
    steps = seen = 0
    while True:
        first = steps * global_sequences
        positions = np.arange(first, first + at_once * global_sequences, dtype=np.int64)
        by_step = lengths[order.at(positions)].reshape(at_once, global_sequences).sum(axis=1)
        total = seen + np.cumsum(by_step)
        if total[-1] >= tokens:
            return steps + int(np.searchsorted(total, tokens)) + 1
        steps, seen = steps + at_once, int(total[-1])
