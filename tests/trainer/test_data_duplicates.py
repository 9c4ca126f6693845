"""The table of hashes finds what a set finds, in a fraction of the memory."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from herdsman_trainer.data.duplicates import SeenHashes

BATCHES = st.lists(st.lists(st.integers(0, 40) | st.integers(0, 2**64 - 1), max_size=40), max_size=12)


@given(BATCHES)
def test_what_was_met_before_is_known_also_within_a_batch(batches):
    seen, expected = SeenHashes(), set()
    for batch in batches:
        known = []
        for number in batch:
            known.append(number in expected)
            expected.add(number)
        assert seen.add(np.array(batch, np.uint64)).tolist() == known
    assert len(seen) == len(expected)


def test_the_table_grows_and_forgets_nothing():
    seen = SeenHashes()
    hashes = np.random.RandomState(1).randint(0, 2**63, 50_000, dtype=np.uint64)
    for part in np.array_split(hashes, 7):
        assert not seen.add(part).any()
    assert len(seen) == 50_000
    assert seen._table.nbytes <= 32 * 50_000
    assert seen.add(hashes).all()


def test_hashes_that_want_the_same_place_are_kept_apart():
    seen = SeenHashes()
    near = np.arange(1, 2000, dtype=np.uint64) << np.uint64(40)
    assert not seen.add(near).any()
    assert seen.add(near[::-1]).all()
