"""One process and N processes consume the same sequences in every step, and rows are masked by their lengths."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from herdsman_trainer.batches import IGNORED, TrainingStream, collate_rows
from herdsman_trainer.blocks import PackedBlocks
from herdsman_trainer.errors import BadInput
from herdsman_trainer.sequence_order import (
    NO_SEQUENCE,
    GlobalBatch,
    SequenceOrder,
    evaluation_indices,
    largest_micro_batch,
    order,
    total_steps,
)

FACTORS = st.tuples(st.integers(1, 4), st.integers(1, 4), st.integers(1, 4))
"""Accumulation, world size, micro-batch."""


class TestOrder:
    @given(st.integers(0, 2**32 - 1), st.integers(0, 50), st.integers(1, 300))
    def test_an_epoch_has_every_sequence_once(self, seed, epoch, count):
        assert sorted(order(seed, epoch, count).tolist()) == list(range(count))

    def test_seed_and_epoch_change_the_order(self):
        orders = {tuple(order(seed, epoch, 50)) for seed in (0, 1, 2**32 + 1) for epoch in range(3)}
        assert len(orders) == 9

    def test_the_order_stays_what_it_was_so_that_a_resumed_run_goes_on_with_it(self):
        assert order(42, 1, 8).tolist() == [5, 6, 2, 3, 1, 4, 7, 0]

    @given(st.integers(1, 40), st.lists(st.integers(0, 500), min_size=1, max_size=20))
    def test_any_position_of_the_stream_is_found_from_anywhere(self, count, positions):
        stream = np.concatenate([order(7, epoch, count) for epoch in range(500 // count + 1)])
        sequences = SequenceOrder(7, count)
        assert sequences.at(np.array(positions)).tolist() == stream[positions].tolist()
        assert sequences.at(np.array(positions[::-1])).tolist() == stream[positions[::-1]].tolist()


class TestGlobalBatch:
    @given(FACTORS, st.integers(0, 1000))
    def test_the_slices_of_the_ranks_are_disjoint_and_together_the_global_batch(self, factors, step):
        accumulation, world_size, micro = factors
        batch = GlobalBatch(accumulation * world_size * micro, micro, world_size)
        slices = [batch.positions(step, rank) for rank in range(world_size)]
        assert {each.shape for each in slices} == {(accumulation, micro)}
        assert batch.accumulation == accumulation
        everything = np.concatenate(slices, axis=None).tolist()
        assert sorted(everything) == list(range(step * batch.sequences, (step + 1) * batch.sequences))

    @pytest.mark.parametrize(
        ("sequences", "micro", "world_size", "message", "hint"),
        [
            (10, 1, 4, "globalSequences is 10, which 4 processes cannot share", "8 or 12"),
            (2, 1, 4, "globalSequences is 2", "Set it to 4,"),
            (24, 5, 2, "12 sequences cannot be cut into micro-batches of 5", "microSequences to 4"),
        ],
    )
    def test_a_batch_that_cannot_be_cut_is_refused_with_what_can(self, sequences, micro, world_size, message, hint):
        with pytest.raises(BadInput) as caught:
            GlobalBatch(sequences, micro, world_size)
        assert message in caught.value.message
        assert hint in caught.value.hint

    @given(FACTORS, st.integers(1, 100))
    def test_the_largest_micro_batch_is_one_that_can_be_used(self, factors, at_most):
        accumulation, world_size, micro = factors
        sequences = accumulation * world_size * micro
        largest = largest_micro_batch(sequences, world_size, at_most)
        assert 1 <= largest <= at_most
        assert GlobalBatch(sequences, largest, world_size).accumulation >= 1
        assert largest >= micro or micro > at_most


class TestSteps:
    @pytest.mark.parametrize(
        ("count", "batch", "options", "steps"),
        [
            (100, 10, {}, 10),
            (101, 10, {}, 11),
            (101, 10, {"epochs": 3}, 31),
            (3, 8, {}, 1),
            (10, 4, {"epochs": 0.1}, 1),
            (100, 10, {"max_steps": 7, "epochs": 3}, 7),
        ],
    )
    def test_steps_cover_the_epochs_or_are_given(self, count, batch, options, steps):
        assert total_steps(count, batch, **options) == steps

    @given(st.integers(1, 30), st.integers(1, 10), st.integers(1, 4))
    def test_every_sequence_is_consumed_once_an_epoch_and_the_surplus_is_less_than_a_batch(self, count, batch, epochs):
        steps = total_steps(count, batch, epochs=epochs)
        consumed = SequenceOrder(3, count).at(np.arange(steps * batch)).tolist()
        times = [consumed[: epochs * count].count(index) for index in range(count)]
        assert times == [epochs] * count
        assert 0 <= len(consumed) - epochs * count < batch


class TestStream:
    @given(FACTORS, st.integers(0, 60))
    def test_one_process_and_many_consume_the_same_blocks_in_a_step(self, factors, step):
        accumulation, world_size, micro = factors
        blocks = PackedBlocks(np.arange(7 * 4, dtype=np.uint16), 4)
        sequences = accumulation * world_size * micro
        alone = TrainingStream(blocks, GlobalBatch(sequences, 1), seed=5)
        together = TrainingStream(blocks, GlobalBatch(sequences, micro, world_size), seed=5)
        expected = sorted(row for batch in alone.micro_batches(step) for row in batch.input_ids.tolist())
        got = [
            row
            for rank in range(world_size)
            for b in together.micro_batches(step, rank)
            for row in b.input_ids.tolist()
        ]
        assert sorted(got) == expected
        assert alone.targets(step) == together.targets(step) == sequences * 3

    def test_the_step_number_is_the_whole_cursor(self):
        blocks = PackedBlocks(np.arange(40, dtype=np.uint16), 4)

        def rows(stream, step):
            return [batch.input_ids.tolist() for batch in stream.micro_batches(step)]

        through = TrainingStream(blocks, GlobalBatch(3, 1), seed=1)
        steps = [rows(through, step) for step in range(8)]
        resumed = TrainingStream(blocks, GlobalBatch(3, 1), seed=1)
        assert [rows(resumed, step) for step in range(5, 8)] == steps[5:]
        assert rows(TrainingStream(blocks, GlobalBatch(3, 1), seed=2), 0) != steps[0]


class TestEvaluation:
    @given(st.integers(0, 50), st.integers(1, 5), st.integers(1, 4))
    def test_every_sequence_is_evaluated_once_in_equally_many_batches(self, count, micro, world_size):
        ranks = [evaluation_indices(count, micro, rank, world_size) for rank in range(world_size)]
        assert len({each.shape for each in ranks}) == 1
        everything = np.concatenate(ranks, axis=None)
        assert sorted(everything[everything != NO_SEQUENCE].tolist()) == list(range(count))
        assert (everything == NO_SEQUENCE).sum() < micro * world_size


class TestCollate:
    ROWS = ((np.array([5, 6, 9, 9], np.uint16), 2), (np.array([7, 8], np.uint16), 1))

    def test_rows_are_padded_on_the_right_and_only_answers_have_labels(self):
        batch = collate_rows(self.ROWS, pad_id=9, control_ids=frozenset({9}), multiple=1)
        assert batch.input_ids.tolist() == [[5, 6, 9, 9], [7, 8, 9, 9]]
        assert batch.labels.tolist() == [[IGNORED, IGNORED, 9, 9], [IGNORED, 8, IGNORED, IGNORED]]
        assert batch.text_targets.tolist() == [[False] * 4, [False, True, False, False]]
        assert batch.targets == 3

    def test_the_mask_follows_lengths_even_where_the_text_holds_the_pad_id(self):
        batch = collate_rows(self.ROWS, pad_id=9, multiple=1)
        assert batch.attention_mask.tolist() == [[1, 1, 1, 1], [1, 1, 0, 0]]

    @pytest.mark.parametrize(("options", "width"), [({}, 8), ({"multiple": 3}, 6), ({"length": 11}, 11)])
    def test_rows_are_as_long_as_asked(self, options, width):
        assert collate_rows(self.ROWS, pad_id=0, **options).input_ids.shape == (2, width)

    def test_the_first_id_of_a_row_is_never_a_target(self):
        assert collate_rows([(np.array([5, 6]), 0)], pad_id=0, multiple=1).labels.tolist() == [[IGNORED, 6]]

    def test_a_row_without_ids_attends_to_one_position_and_has_no_target(self):
        batch = collate_rows([(np.empty(0, np.uint16), 0)], pad_id=3, multiple=4)
        assert batch.input_ids.tolist() == [[3, 3, 3, 3]]
        assert batch.attention_mask.tolist() == [[1, 0, 0, 0]]
        assert batch.targets == 0
