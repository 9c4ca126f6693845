"""How figures are written and drawn."""

import math
import re

import pytest

from herdsman_trainer.benchmarks.svg import Bars, Point, bar_plot, interval_plot, ticks
from herdsman_trainer.benchmarks.words import difference, facts, figure, limits, with_interval

FIGURES = [
    ("accuracy", 0.36701, "36.7 %"),
    ("perplexity", 12.3456, "12.35"),
    ("tokensPerCharacter", 0.48159, "0.4816"),
    ("perplexity", 24071.3, "24,071"),
    ("score", 7.5, "7.50"),
    ("perplexity", None, "not finite"),
]


@pytest.mark.parametrize(("metric", "value", "told"), FIGURES)
def test_a_figure_has_as_many_digits_as_it_is_worth(metric, value, told):
    assert figure(metric, value) == told


def test_an_interval_and_a_difference_are_told_with_their_figure():
    entry = {"value": 0.367, "low": 0.341, "high": 0.393}
    assert with_interval("accuracy", entry) == "36.7 % (34.1 – 39.3)"
    assert difference("accuracy", {**entry, "p": 0.0}) == "+36.7 points (34.1 – 39.3), p < 0.01"
    assert difference("perplexity", {"value": -1.5, "low": -2, "high": -1, "p": 0.04}) == "-1.5 (-2 – -1), p = 0.04"
    assert difference("perplexity", {"value": None, "low": None, "high": 1, "p": None}).startswith("not finite")
    assert difference("perplexity", None) == "–"


def test_limits_and_facts_are_sentences():
    assert limits({"atLeast": 0.4, "atMost": 0.6}) == "≥ 0.4 and ≤ 0.6"
    assert limits({"atMost": 12, "judgedBy": "Interval"}) == "≤ 12, all of the interval"
    assert (
        facts({"maxTokens": 5, "bothOrdersAgree": 0.66666, "samples": []})
        == "Max tokens: 5, both orders agree: 0.6667."
    )
    assert facts({"samples": []}) == ""


@pytest.mark.parametrize(
    ("low", "high", "marks"),
    [
        (0.0, 1.0, [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]),
        (399.5, 408.0, [398.0, 400.0, 402.0, 404.0, 406.0, 408.0]),
        (0.31, 0.34, [0.31, 0.32, 0.33, 0.34]),
        (-0.4, 0.3, [-0.4, -0.2, 0.0, 0.2, 0.4]),
    ],
)
def test_axes_have_round_numbers(low, high, marks):
    assert ticks(low, high) == marks


def test_an_axis_of_one_value_has_room_on_both_sides():
    for value in (0.0, 5.0, -3.0):
        marks = ticks(value, value)
        assert marks[0] < value < marks[-1]


def test_a_plot_shows_what_is_finite_and_nothing_where_nothing_is():
    points = [Point("a<b", 2.0, 1.0, 3.0, "2 (1 – 3)"), Point("endless", math.inf, 1.0, math.inf, "not finite")]
    drawn = interval_plot(points, "Perplexity")
    assert "a&lt;b" in drawn
    assert "endless" not in drawn
    assert drawn.count("<circle") == 1
    assert interval_plot(points[1:], "Perplexity") == ""
    (x,) = re.findall(r'circle cx="([\d.]+)"', drawn)
    lines = [tuple(map(float, pair)) for pair in re.findall(r'<line x1="([\d.]+)" x2="([\d.]+)" y1', drawn)]
    assert (lines[-1][0] + lines[-1][1]) / 2 == pytest.approx(float(x), abs=0.1), "the dot is in the middle of its bar"


def test_bars_are_as_long_as_their_shares():
    drawn = bar_plot([Bars("STEM", [0.25, 0.5]), Bars("Other", [1.0, 0.0])], "Accuracy", 0.25)
    widths = [float(width) for width in re.findall(r'<rect [^>]*width="([\d.]+)"', drawn)]
    assert widths[1] == pytest.approx(2 * widths[0])
    assert widths[2] == pytest.approx(4 * widths[0])
    assert 'class="guess"' in drawn
