"""Confidence intervals against closed forms."""

import math

import numpy as np
import pytest

from herdsman_trainer.benchmarks import bootstrap
from herdsman_trainer.benchmarks.bootstrap import Draws, Measured


def accuracy(*rows, strata=None):
    above = np.array(rows, np.float64)
    return Measured("accuracy", above, np.ones_like(above), "higher", strata=strata)


def binomial_quantile(count, chance, level):
    """The smallest k of which at most k successes have this probability."""
    total = 0.0
    for k in range(count + 1):
        total += math.comb(count, k) * chance**k * (1 - chance) ** (count - k)
        if total >= level:
            return k
    return count


@pytest.mark.parametrize(("right", "count"), [(3, 10), (40, 80), (1, 200)])
def test_the_interval_of_an_accuracy_is_that_of_the_binomial_distribution(right, count):
    draws = Draws(accuracy([1.0] * right + [0.0] * (count - right)), 20000, 42, "quiz")
    interval = draws.interval(0)
    low, high = (binomial_quantile(count, right / count, level) / count for level in (0.025, 0.975))
    assert interval.value == right / count
    assert (interval.low, interval.high) == (pytest.approx(low, abs=1 / count), pytest.approx(high, abs=1 / count))
    spread = math.sqrt(right / count * (1 - right / count) / count)
    assert draws.draws.std() == pytest.approx(spread, rel=0.03)


def test_a_difference_has_the_spread_of_its_pairs():
    random = np.random.default_rng(1)
    first = random.random(300) < 0.5
    second = np.where(random.random(300) < 0.9, first, ~first)  # they agree on most questions
    draws = Draws(accuracy(first, second), 20000, 42, "quiz")
    pairs = second.astype(float) - first.astype(float)
    difference = draws.difference(1, 0)
    assert difference.value == pytest.approx(pairs.mean())
    spread = pairs.std() / math.sqrt(300)
    assert (draws.draws[:, 1] - draws.draws[:, 0]).std() == pytest.approx(spread, rel=0.03)
    assert difference.high - difference.low == pytest.approx(2 * 1.96 * spread, rel=0.06)
    unpaired = math.sqrt(first.var() / 300 + second.var() / 300)
    assert spread < unpaired / 1.5, "drawn apart they would seem to differ by chance alone"


def test_equal_models_do_not_differ_and_a_better_one_does():
    same = Draws(accuracy([1, 0, 1, 0], [1, 0, 1, 0]), 500, 42, "quiz").difference(1, 0)
    assert (same.value, same.low, same.high, same.p) == (0.0, 0.0, 0.0, 1.0)
    better = Draws(accuracy([0] * 40, [1] * 40), 500, 42, "quiz").difference(1, 0)
    assert (better.value, better.low, better.p) == (1.0, 1.0, 0.0)


def test_a_perplexity_is_a_ratio_of_sums_and_not_a_mean_of_ratios():
    losses, tokens = np.array([[4.0, 1.0]]), np.array([[2.0, 1.0]])
    draws = Draws(Measured("perplexity", losses, tokens, "lower", np.exp), 4000, 42, "text")
    assert draws.interval(0).value == pytest.approx(math.exp(5 / 3))
    outcomes = {math.exp(8 / 4): 0.25, math.exp(5 / 3): 0.5, math.exp(2 / 2): 0.25}  # both, one of each, both
    for value, share in outcomes.items():
        assert np.isclose(draws.draws[:, 0], value).mean() == pytest.approx(share, abs=0.03)


def test_over_subjects_as_many_questions_of_each_are_drawn_as_there_are():
    strata = np.array([0] * 2 + [1] * 50)
    right = np.array([1.0, 1.0] + [0.0] * 50)
    share = 1 / (np.bincount(strata)[strata] * 2)
    measured = Measured("accuracyOverSubjects", (right * share)[None], share[None], "higher", strata=strata)
    draws = Draws(measured, 500, 42, "quiz")
    figure = draws.interval(0)
    assert (figure.value, figure.low, figure.high) == pytest.approx((0.5, 0.5, 0.5)), "one is always right, one never"


def test_the_same_seed_gives_the_same_numbers_whatever_fits_into_memory(monkeypatch):
    measured = accuracy([1, 0, 1, 1, 0, 0, 1], [0, 0, 1, 1, 1, 0, 1])
    once = Draws(measured, 300, 7, "quiz").draws
    assert np.array_equal(once, Draws(measured, 300, 7, "quiz").draws)
    assert not np.array_equal(once, Draws(measured, 300, 8, "quiz").draws)
    assert not np.array_equal(once, Draws(measured, 300, 7, "other").draws)
    monkeypatch.setattr(bootstrap, "COUNTS_AT_ONCE", 70)
    assert np.array_equal(once, Draws(measured, 300, 7, "quiz").draws)


def test_a_perplexity_beyond_all_numbers_is_infinite_and_no_fault():
    measured = Measured("perplexity", np.array([[1e6, 1e6]]), np.array([[1.0, 1.0]]), "lower", np.exp)
    assert Draws(measured, 100, 42, "text").interval(0).value == math.inf
