"""The held-out split depends on the texts alone and leaves no side empty."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from herdsman_trainer.errors import BadInput
from herdsman_trainer.held_out import settle_threshold, split_hash, split_hashes, split_threshold

TEXTS = st.lists(st.text(alphabet="abc中", min_size=1, max_size=3), min_size=1, max_size=30)
FRACTIONS = st.floats(0, 0.5)


def held_out(texts, fraction):
    hashes = [split_hash(text) for text in texts]
    threshold = settle_threshold(split_threshold(fraction), min(hashes), max(hashes))
    return {text for text in texts if split_hash(text) < threshold}


@given(TEXTS, FRACTIONS)
def test_the_split_does_not_depend_on_order_or_repetition(texts, fraction):
    assert held_out(texts, fraction) == held_out(sorted(texts), fraction) == held_out(texts[::-1] * 2, fraction)


@given(TEXTS, st.floats(1e-9, 0.5))
def test_both_sides_have_a_text_as_soon_as_there_are_two(texts, fraction):
    out = held_out(texts, fraction)
    assert (0 < len(out) < len(set(texts))) if len(set(texts)) > 1 else not out


@given(TEXTS)
def test_a_fraction_of_zero_holds_nothing_out(texts):
    assert not held_out(texts, 0)


@given(TEXTS, FRACTIONS, FRACTIONS)
def test_a_larger_fraction_holds_out_what_a_smaller_one_does(texts, one, other):
    assert held_out(texts, min(one, other)) <= held_out(texts, max(one, other))


@pytest.mark.parametrize("fraction", [0.01, 0.1, 0.5])
def test_about_the_fraction_is_held_out(fraction):
    texts = [f"document {number}" for number in range(20_000)]
    share = len(held_out(texts, fraction)) / len(texts)
    assert share == pytest.approx(fraction, abs=4 * (fraction * (1 - fraction) / len(texts)) ** 0.5)


def test_white_space_around_a_text_does_not_change_its_side():
    assert split_hash("  你好\n") == split_hash("你好")
    assert split_hash("你 好") != split_hash("你好")


def test_the_hash_stays_what_it_was_so_that_old_and_new_runs_hold_out_the_same():
    assert split_hash("白日依山尽") == 9397503960164410982


def test_many_texts_have_the_hashes_that_they_have_alone():
    texts = ["白日依山尽", "  a\t", "\u3000中\u3000", "", "x" * 1000]
    assert split_hashes(texts, [text.encode() for text in texts]).tolist() == [split_hash(text) for text in texts]
    assert split_hashes([], []).tolist() == []


@pytest.mark.parametrize("fraction", [-0.1, 0.6, 5, float("nan")])
def test_a_fraction_outside_the_bounds_is_refused_with_the_field(fraction):
    with pytest.raises(BadInput, match="heldOutFraction"):
        split_threshold(fraction)
