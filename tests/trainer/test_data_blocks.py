"""Blocks lose no token but the last remainder; evaluation predicts every held-out token once."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from herdsman_trainer.batches import IGNORED, evaluation_batches
from herdsman_trainer.blocks import HeldOutBlocks, PackedBlocks
from herdsman_trainer.errors import BadInput

TOKENS = st.lists(st.integers(0, 65_535), max_size=200).map(lambda ids: np.array(ids, np.uint16))


def every(blocks):
    return blocks.collate(np.arange(len(blocks)))


class TestPacked:
    @given(TOKENS, st.integers(2, 20))
    def test_packing_loses_no_token_but_the_last_remainder(self, tokens, block_size):
        if len(tokens) < block_size:
            return
        blocks = PackedBlocks(tokens, block_size)
        batch = every(blocks)
        assert batch.input_ids.reshape(-1).tolist() == tokens[: len(tokens) // block_size * block_size].tolist()
        assert blocks.tokens_left_out == len(tokens) - batch.input_ids.size < block_size

    def test_every_token_but_the_first_of_a_block_is_a_target(self):
        blocks = PackedBlocks(np.arange(10, dtype=np.uint16), 5)
        batch = blocks.collate(np.array([1, 0, -1]))
        assert batch.input_ids[:2].tolist() == [[5, 6, 7, 8, 9], [0, 1, 2, 3, 4]]
        assert batch.labels.tolist() == [[IGNORED, 6, 7, 8, 9], [IGNORED, 1, 2, 3, 4], [IGNORED] * 5]
        assert batch.attention_mask.tolist() == [[1] * 5, [1] * 5, [1, 0, 0, 0, 0]]
        assert batch.targets == blocks.targets(np.array([1, 0, -1])) == 8
        assert {array.dtype for array in (batch.input_ids, batch.labels, batch.attention_mask)} == {np.dtype(np.int64)}

    @given(st.lists(st.integers(1, 12), min_size=1, max_size=20), st.integers(2, 9))
    def test_beginnings_of_documents_are_marked_and_are_no_targets(self, lengths, block_size):
        starts = np.cumsum([0, *lengths[:-1]]).astype(np.uint32)
        count = sum(lengths)
        if count < block_size:
            return
        blocks = PackedBlocks(np.arange(100, 100 + count, dtype=np.uint16), block_size, starts)
        batch = every(blocks)
        joined = every(PackedBlocks(np.arange(100, 100 + count, dtype=np.uint16), block_size))
        begins = np.isin(batch.input_ids - 100, starts)
        begins[:, 0] = False
        found = np.zeros_like(begins) if batch.starts is None else batch.starts
        assert (found == begins).all()
        assert (batch.labels == np.where(begins, IGNORED, joined.labels)).all()
        assert not batch.text_targets[begins].any()
        assert batch.targets == blocks.targets(np.arange(len(blocks)))

    @pytest.mark.parametrize(("count", "hint"), [(7, "blockSize to 7 or less"), (1, "Add text"), (0, "Add text")])
    def test_too_few_tokens_for_one_block_are_refused_with_the_counts(self, count, hint):
        with pytest.raises(BadInput) as caught:
            PackedBlocks(np.zeros(count, np.uint16), 8)
        assert f"{count} tokens" in caught.value.message
        assert "needs 8" in caught.value.message
        assert hint in caught.value.hint

    @pytest.mark.parametrize("block_size", [1, 0, -5])
    def test_a_block_size_without_targets_is_refused(self, block_size):
        with pytest.raises(BadInput, match="blockSize"):
            PackedBlocks(np.zeros(100, np.uint16), block_size)


class TestHeldOut:
    @given(st.lists(st.integers(2, 9), min_size=1, max_size=20), st.integers(2, 9))
    def test_with_documents_apart_every_token_but_their_first_is_a_target_exactly_once(self, lengths, block_size):
        starts = np.cumsum([0, *lengths[:-1]]).astype(np.uint32)
        tokens = np.arange(100, 100 + sum(lengths), dtype=np.uint16)
        tokens[starts] = 1
        blocks = HeldOutBlocks(tokens, block_size, 0, frozenset({1}), starts)
        batch = every(blocks)
        met = batch.labels[batch.labels != IGNORED]
        assert met.tolist() == [token for token in tokens.tolist() if token != 1]
        assert batch.text_targets.sum() == len(met) == blocks.targets(np.arange(len(blocks)))

    @given(TOKENS, st.integers(2, 20), st.integers(1, 4), st.integers(1, 3))
    def test_every_token_but_the_very_first_is_a_target_exactly_once(self, tokens, block_size, micro, world_size):
        blocks = HeldOutBlocks(tokens, block_size, 0, frozenset())
        rows = [
            list(evaluation_batches(blocks, micro, rank, world_size)) for rank in range(world_size)
        ]  # rank, batch, row
        assert len({len(batches) for batches in rows}) == 1, "each rank makes equally many forward passes"
        in_order = [batches[step] for step in range(len(rows[0])) for batches in rows]
        labels = [batch.labels[batch.labels != IGNORED] for batch in in_order]
        assert np.concatenate([*labels, np.empty(0)]).tolist() == tokens[1:].tolist()
        assert all(batch.input_ids.shape == (micro, block_size) for batch in in_order)
        assert blocks.targets(np.arange(len(blocks))) == max(0, len(tokens) - 1)

    @given(TOKENS, st.integers(2, 20))
    def test_a_target_stands_at_its_own_token_and_only_where_there_is_context(self, tokens, block_size):
        batch = every(HeldOutBlocks(tokens, block_size, 0, frozenset()))
        there = batch.labels != IGNORED
        assert (batch.labels[there] == batch.input_ids[there]).all()
        assert not there[:, 0].any()
        assert (batch.attention_mask[there] == 1).all()

    def test_the_last_block_is_padded_and_its_padding_is_masked(self):
        batch = every(HeldOutBlocks(np.arange(10, 16, dtype=np.uint16), 4, 0, frozenset()))
        assert batch.input_ids.tolist() == [[10, 11, 12, 13], [13, 14, 15, 0]]
        assert batch.labels.tolist() == [[IGNORED, 11, 12, 13], [IGNORED, 14, 15, IGNORED]]
        assert batch.attention_mask.tolist() == [[1, 1, 1, 1], [1, 1, 1, 0]]

    def test_bos_and_eos_are_targets_but_not_text(self):
        blocks = HeldOutBlocks(np.array([1, 50, 51, 2, 1, 52, 2], np.uint16), 4, 9, frozenset({1, 2}))
        batch = every(blocks)
        assert batch.targets == 6
        assert batch.labels[batch.text_targets].tolist() == [50, 51, 52]
        assert blocks.characters == 9

    @pytest.mark.parametrize("count", [0, 1])
    def test_without_two_tokens_there_is_nothing_to_evaluate(self, count):
        blocks = HeldOutBlocks(np.zeros(count, np.uint16), 4, 0, frozenset())
        assert len(blocks) == 0
        assert list(evaluation_batches(blocks, 2)) == []
