"""A budget of tokens becomes the fewest steps that take so many."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from herdsman.api.v1alpha1.recipes import PretrainRecipe
from herdsman_trainer.blocks import PackedBlocks
from herdsman_trainer.mixture import MixedOrder, Mixture
from herdsman_trainer.sequence_order import SequenceOrder
from herdsman_trainer.step_budget import planned_steps, steps_for_tokens


class Lengths:
    """Sequences of these lengths."""

    def __init__(self, lengths):
        self.lengths = np.array(lengths, np.int64)

    def __len__(self):
        return len(self.lengths)

    def lengths_of(self, indices):
        return self.lengths[indices]


BLOCKS = PackedBlocks(np.zeros(1000, np.uint16), 10)


@pytest.mark.parametrize(
    ("recipe", "steps"),
    [
        ({"max_steps": 7}, 7),
        ({"epochs": 2}, 50),
        ({}, 25),
        ({"max_tokens": 1}, 1),
        ({"max_tokens": 40}, 1),
        ({"max_tokens": 41}, 2),
        ({"max_tokens": 1_000_000}, 25_000),
    ],
)
def test_steps_follow_from_steps_epochs_or_tokens(recipe, steps):
    assert planned_steps(PretrainRecipe(**recipe), BLOCKS, 4) == steps


@given(
    st.lists(st.integers(1, 50), min_size=1, max_size=20),
    st.integers(1, 6),
    st.integers(1, 3000),
    st.booleans(),
)
def test_samples_of_many_lengths_are_counted_in_the_order_in_which_they_come(lengths, batch, tokens, mixed):
    sequences = Lengths(lengths)
    order = SequenceOrder(9, len(lengths))
    if mixed and len(lengths) > 1:
        order = MixedOrder(9, Mixture((0, 1, len(lengths)), (2, 1)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("herdsman_trainer.step_budget._SEQUENCES_AT_ONCE", 7)
        steps = steps_for_tokens(order, sequences, batch, tokens)
    taken = sequences.lengths[order.at(np.arange(steps * batch))].reshape(steps, batch).sum(axis=1)
    assert taken.sum() >= tokens
    assert taken[:-1].sum() < tokens
