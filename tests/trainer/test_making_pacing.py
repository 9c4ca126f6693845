"""How fast is asked, and when the budget ends; time is an argument."""

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from herdsman.api.v1alpha1.generation import Budget, Price
from herdsman_trainer.instruction_making.pacing import Pace
from herdsman_trainer.instruction_making.spending import Usage, cost, spent, tokens_of


def starts(pace, sizes, actual=None):
    """When requests of these sizes begin, each as soon as it may."""
    now, found = 0.0, []
    for size in sizes:
        now = pace.ready_at(now)
        pace.begin(now, size)
        if actual is not None:
            pace.settle(size, actual)
        found.append(now)
    return found


def test_without_limits_everything_begins_at_once():
    assert starts(Pace(None, None), [1000] * 5) == [0.0] * 5


@given(st.integers(1, 300), st.integers(2, 200))
def test_no_minute_has_more_requests_than_allowed(limit, count):
    times = starts(Pace(limit, None), [1] * count)
    for begin in times:
        assert sum(begin <= time < begin + 60 - 1e-6 for time in times) <= limit


@given(st.integers(100, 10000), st.lists(st.integers(1, 2000), min_size=5, max_size=60))
def test_tokens_keep_to_their_rate_on_average(limit, sizes):
    times = starts(Pace(None, limit), sizes)
    # What was begun before the last one is paid for when that begins.
    assert sum(sizes[:-1]) <= limit / 60 * times[-1] + 1e-6 * limit


def test_what_was_expected_is_set_right_by_what_it_was():
    assert starts(Pace(None, 6000), [100, 100, 100], actual=1000) == pytest.approx([0, 10, 20])


def test_a_request_larger_than_a_minute_is_not_held_up_for_ever():
    assert starts(Pace(None, 600), [6000, 1]) == pytest.approx([0, 600])


def test_nothing_begins_while_the_endpoint_asks_to_wait():
    pace = Pace(60, None)
    pace.begin(0.0, 1)
    pace.hold(30.0)
    assert pace.ready_at(2.0) == 30.0


PRICE = Price(input_per_million=0.15, output_per_million=0.6)


def test_cost_is_exact():
    assert cost(Usage(3, 1_000_000, 500_000), PRICE) == Decimal("0.45")
    assert cost(Usage(1, 1, 0), PRICE) == Decimal("0.00000015")


@pytest.mark.parametrize(
    ("budget", "usage", "said"),
    [
        (Budget(), Usage(10**6, 10**9, 10**9), None),
        (Budget(requests=10), Usage(9), None),
        (Budget(requests=10), Usage(10), "the budget of 10 requests"),
        (Budget(tokens=1000), Usage(1, 400, 600), "the budget of 1,000 tokens"),
        (Budget(cost=0.45), Usage(3, 1_000_000, 499_999), None),
        (Budget(cost=0.45), Usage(3, 1_000_000, 500_000), "the budget of 0.45 USD"),
    ],
)
def test_the_budget_is_spent(budget, usage, said):
    assert spent(usage, budget, PRICE) == said


def test_tokens_are_guessed_where_the_api_does_not_count_them():
    assert tokens_of("你好") == 2
    assert tokens_of("hello world!") == 3
    assert tokens_of("") == 0
