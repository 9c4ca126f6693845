"""Duplicates, near duplicates and similar instructions."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from herdsman_trainer.instruction_making.near_duplicates import NearDuplicates, similarity
from herdsman_trainer.instruction_making.records import AlpacaRecord, Dropped
from herdsman_trainer.instruction_making.rouge import InstructionPool, rouge_l
from instruction_api import chinese


def record(instruction, output="春天来了", given=""):
    return AlpacaRecord(instruction, given, output)


class Kept:
    """The records so far, as the keeper has them."""

    def __init__(self, percent=85):
        self.records = []
        self.known = NearDuplicates(percent, self.records.__getitem__)

    def take(self, one):
        found = self.known.find(one)
        if found is None:
            self.records.append(one)
            self.known.add(len(self.records) - 1, one)
        return found


def test_the_same_but_for_blanks_case_and_punctuation_is_a_duplicate():
    kept = Kept()
    assert kept.take(record("What is SQL?", "A language.")) is None
    assert kept.take(record("what is  SQL", "a language")) is Dropped.DUPLICATE


def test_the_same_letters_in_other_parts_are_none():
    kept = Kept(100)
    assert kept.take(record("甲乙", "丙丁")) is None
    assert kept.take(record("甲", "乙丙丁")) is None


def test_one_changed_character_in_a_long_record_is_a_near_duplicate_and_another_answer_is_none():
    chance = random.Random(1)
    question, reply = chinese(chance, 40), chinese(chance, 120)
    kept = Kept()
    assert kept.take(record(question, reply)) is None
    assert kept.take(record(question, f"{reply[:-1]}也")) is Dropped.NEAR_DUPLICATE
    assert kept.take(record(question, chinese(chance, 120))) is None


def test_at_100_percent_only_duplicates_go():
    chance = random.Random(2)
    question, reply = chinese(chance, 40), chinese(chance, 120)
    kept = Kept(100)
    assert [kept.take(record(question, reply)), kept.take(record(question, f"{reply[:-1]}也"))] == [None, None]


@pytest.mark.parametrize("percent", [60, 85, 95])
def test_minhash_finds_what_counting_finds(percent):
    """Of pairs clearly above the threshold all but a few in a thousand are found, and never one below it."""
    chance, wrong, above = random.Random(percent), 0, 0
    for _ in range(150):
        text = chinese(chance, 120)
        changed = list(text)
        for place in chance.sample(range(120), chance.randrange(0, 14)):
            changed[place] = chinese(chance, 1)
        one, other = record("问题是什么", text), record("问题是什么", "".join(changed))
        kept = Kept(percent)
        kept.take(one)
        found = kept.take(other) is not None
        alike = similarity(one, other) * 100
        assert not (found and alike < percent)
        if alike >= percent + 3:
            above += 1
            wrong += not found
    assert above > 10
    assert wrong <= above * 0.05


def test_short_records_without_letters_are_compared_too():
    kept = Kept()
    assert kept.take(record("？？", "！")) is None
    assert kept.take(record("。。", "…")) is Dropped.DUPLICATE


def lcs(one, other):
    """The textbook's longest common subsequence."""
    row = [0] * (len(other) + 1)
    for left in one:
        before = 0
        for place, right in enumerate(other, start=1):
            before, row[place] = row[place], before + 1 if left == right else max(row[place], row[place - 1])
    return row[-1]


@given(st.text("天地人你好ab ", max_size=12), st.text("天地人你好ab ", max_size=12))
def test_rouge_l_is_that_of_the_textbook(one, other):
    def tokens(text):
        spaced = "".join(f" {sign} " if sign > "z" else sign for sign in text)
        return spaced.split()

    mine, theirs = tokens(one), tokens(other)
    expected = 2 * lcs(mine, theirs) / (len(mine) + len(theirs)) if mine or theirs else 1.0
    assert rouge_l(one, other) == pytest.approx(expected)


@given(
    st.lists(st.text("天地人你好写一首诗", min_size=1, max_size=12), max_size=8),
    st.text("天地人你好写一首诗", min_size=1, max_size=12),
)
def test_the_pool_finds_exactly_what_is_above_the_threshold(texts, asked):
    pool = InstructionPool()
    for text in texts:
        pool.add(text)
    assert pool.resembles(asked, 70) is any(rouge_l(text, asked) > 0.7 + 1e-9 for text in texts)


def test_exactly_at_the_threshold_it_stays_as_self_instruct_has_it():
    pool = InstructionPool()
    pool.add("一二三四五六七八九十")
    assert rouge_l("一二三四五六七甲乙丙", "一二三四五六七八九十") == pytest.approx(0.7)
    assert not pool.resembles("一二三四五六七甲乙丙", 70)
    assert pool.resembles("一二三四五六七八乙丙", 70)


def test_words_count_as_words_and_case_does_not():
    assert rouge_l("Write a Python function", "write a python FUNCTION!") == 1.0
    assert rouge_l("Write a function", "Write a novel") == pytest.approx(2 / 3)


def test_at_100_percent_nothing_resembles_anything():
    pool = InstructionPool()
    pool.add("写诗")
    assert not pool.resembles("写诗", 100)
