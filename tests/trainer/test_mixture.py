"""A mixture gives every dataset its share at every point, whatever the world size, and a position is all its state."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from herdsman_trainer.batches import TrainingStream
from herdsman_trainer.blocks import PackedBlocks
from herdsman_trainer.errors import BadInput
from herdsman_trainer.mixture import MixedOrder, Mixture, block_mixture, check_mixture, pattern
from herdsman_trainer.sequence_order import GlobalBatch, SequenceOrder

WEIGHTS = st.lists(st.integers(1, 12), min_size=1, max_size=5).map(tuple)


def parts_of(mixture, sequences):
    return np.searchsorted(np.array(mixture.bounds), sequences, side="right") - 1


@given(WEIGHTS)
def test_a_period_has_each_part_as_often_as_its_weight_says_and_spread_evenly(weights):
    order = pattern(weights)
    assert np.bincount(order, minlength=len(weights)).tolist() == list(weights)
    total = sum(weights)
    for part, weight in enumerate(weights):
        due = np.arange(1, total + 1) * weight / total
        assert np.abs(np.cumsum(order == part) - due).max() <= max(1.0, len(weights) / 2)


@given(WEIGHTS, st.data(), st.integers(0, 5))
def test_shares_hold_at_every_point_of_the_stream(weights, data, seed):
    counts = data.draw(st.lists(st.integers(1, 30), min_size=len(weights), max_size=len(weights)))
    mixture = Mixture((0, *np.cumsum(counts).tolist()), weights)
    parts = parts_of(mixture, MixedOrder(seed, mixture).at(np.arange(400)))
    for part, weight in enumerate(weights):
        used = np.cumsum(parts == part)
        assert np.abs(used - np.arange(1, 401) * weight / sum(weights)).max() <= max(1.0, len(weights) / 2)


@given(WEIGHTS, st.data())
def test_no_sequence_comes_a_second_time_before_all_of_its_dataset_came_once(weights, data):
    counts = data.draw(st.lists(st.integers(1, 20), min_size=len(weights), max_size=len(weights)))
    mixture = Mixture((0, *np.cumsum(counts).tolist()), weights)
    stream = MixedOrder(1, mixture).at(np.arange(300))
    for part, count in enumerate(counts):
        own = stream[parts_of(mixture, stream) == part]
        for begin in range(0, len(own), count):
            assert len(set(own[begin : begin + count].tolist())) == len(own[begin : begin + count])


def test_a_position_alone_tells_the_sequence():
    mixture = Mixture((0, 7, 40), (3, 2))
    order = MixedOrder(5, mixture)
    straight = order.at(np.arange(200))
    assert [int(MixedOrder(5, mixture).at(np.array([place]))[0]) for place in (199, 0, 77)] == [
        straight[place] for place in (199, 0, 77)
    ]
    assert order.at(np.arange(200).reshape(20, 10)).tolist() == straight.reshape(20, 10).tolist()
    assert MixedOrder(6, mixture).at(np.arange(200)).tolist() != straight.tolist()


def test_weights_count_only_beside_each_other():
    small, large = (MixedOrder(1, Mixture((0, 9, 20), weights)).at(np.arange(99)) for weights in ((7, 3), (7000, 3000)))
    assert small.tolist() == large.tolist()


def test_two_datasets_of_the_same_size_are_not_in_the_same_order():
    stream = MixedOrder(1, Mixture((0, 20, 40), (1, 1))).at(np.arange(40))
    first, second = stream[stream < 20], stream[stream >= 20] - 20
    assert sorted(first) == sorted(second) == list(range(20))
    assert first.tolist() != second.tolist()


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_one_process_and_many_consume_the_same_global_batches(world_size):
    blocks = PackedBlocks(np.arange(400, dtype=np.uint16), 4)
    mixture = block_mixture((0, 200, 400), 4, len(blocks), (3, 1))

    def consumed(world, step):
        stream = TrainingStream(blocks, GlobalBatch(8, 8 // world, world), seed=3, mixture=mixture)
        rows = [batch.input_ids[:, 0] for rank in range(world) for batch in stream.micro_batches(step, rank)]
        return sorted(np.concatenate(rows).tolist())

    for step in range(9):
        assert consumed(world_size, step) == consumed(1, step)
    first = consumed(1, 0)
    assert [sum(token < 200 for token in first), sum(token >= 200 for token in first)] == [6, 2]


def test_without_weights_the_order_is_that_of_one_dataset():
    blocks = PackedBlocks(np.arange(400, dtype=np.uint16), 4)
    stream = TrainingStream(blocks, GlobalBatch(10, 10), seed=3)
    (batch,) = stream.micro_batches(2)
    assert (batch.input_ids[:, 0] // 4).tolist() == SequenceOrder(3, 100).at(np.arange(20, 30)).tolist()


def test_a_block_belongs_to_the_dataset_of_its_first_token():
    assert block_mixture((0, 10, 10, 37), 4, 9, (1, 1, 1)).bounds == (0, 3, 3, 9)
    assert block_mixture((0, 8, 36), 4, 9, (1, 2)).counts == [2, 7]
    assert block_mixture((0, 35, 39), 4, 9, (1, 2)).counts == [9, 0], "what is behind the last block is nobody's"


def test_a_dataset_without_a_sequence_cannot_have_a_share():
    with pytest.raises(BadInput, match=r"spec.datasets\[1\] has a weight and not a single block"):
        check_mixture(Mixture((0, 9, 9), (7, 3)), ["spec.datasets[0]", "spec.datasets[1]"], "block of 512 tokens")
    check_mixture(Mixture((0, 9, 10), (7, 3)), ["spec.datasets[0]", "spec.datasets[1]"], "block")


def test_passes_tell_how_often_a_dataset_is_seen():
    assert Mixture((0, 10, 40), (1, 1)).passes(60) == [3.0, 1.0]
