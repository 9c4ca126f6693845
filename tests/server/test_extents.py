"""Memory that is lent in extents: nobody's is anybody else's, and what moves stays what it was."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as some

from herdsman_server.batching.extents import BLOCK, Extent, Extents, Move
from herdsman_server.batching.kv_memory import KvMemory

SIZE = 24
STEPS = some.lists(
    some.tuples(some.sampled_from(["take", "grow", "release"]), some.integers(0, 5), some.integers(1, 12)), max_size=60
)


def carried_out(memory, moves):
    """What is in each block after moves, each of which may overlap itself."""
    for move in moves:
        piece = memory[move.source : move.source + move.blocks]
        memory[move.target : move.target + move.blocks] = piece


@settings(max_examples=150, deadline=None)
@given(STEPS)
def test_whatever_is_taken_grown_and_released_everybody_finds_the_own_blocks(steps):
    extents, memory, written = Extents(SIZE), [None] * SIZE, {}
    for what, owner, blocks in steps:
        free = extents.free
        if what == "take" and owner not in written:
            moves = extents.take(owner, blocks)
            assert (moves is None) == (blocks > free)
            have = 0
        elif what == "grow" and owner in written:
            have = written[owner]
            moves = extents.grow(owner, have + blocks)
            assert (moves is None) == (blocks > free)
            blocks += have
        elif what == "release" and owner in written:
            extents.release(owner)
            del written[owner]
            continue
        else:
            continue
        if moves is None:
            continue
        carried_out(memory, moves)
        mine = extents.of(owner)
        assert mine.blocks == blocks
        for place in range(have, blocks):
            memory[mine.start + place] = (owner, place)
        written[owner] = blocks
        for each, size in written.items():
            extent = extents.of(each)
            assert memory[extent.start : extent.end] == [(each, place) for place in range(size)]


def test_an_extent_grows_where_it_is_as_long_as_nobody_is_behind_it():
    extents = Extents(10)
    assert extents.take("a", 2) == []
    assert extents.grow("a", 5) == []
    assert extents.of("a") == Extent(0, 5)
    assert extents.take("b", 2) == []
    assert extents.grow("a", 6) is not None


def test_the_smallest_hole_that_fits_is_taken():
    extents = Extents(20)
    for name, blocks in (("a", 5), ("b", 1), ("c", 3), ("d", 1)):
        extents.take(name, blocks)
    extents.release("a")
    extents.release("c")
    extents.take("e", 2)
    assert extents.of("e").start == 6


def test_an_extent_that_has_to_go_elsewhere_takes_its_contents_along():
    extents = Extents(20)
    extents.take("a", 3)
    extents.take("b", 3)
    assert extents.grow("a", 4) == [Move(0, 6, 3)]


def test_keys_and_values_move_even_onto_themselves():
    memory = KvMemory(2, 64 * BLOCK, 1, 4, torch.float32, torch.device("cpu"))
    keys, values = memory.layers[1]
    for move in (Move(3, 1, 40), Move(1, 2, 40), Move(0, 50, 5), Move(2, 2, 3)):
        keys.copy_(torch.arange(len(keys) * 4).view(len(keys), 1, 4))
        values.copy_(-keys)
        expected = keys[move.source * BLOCK : (move.source + move.blocks) * BLOCK].clone()
        memory.carry_out([move])
        found = slice(move.target * BLOCK, (move.target + move.blocks) * BLOCK)
        assert torch.equal(keys[found], expected)
        assert torch.equal(values[found], -expected)
