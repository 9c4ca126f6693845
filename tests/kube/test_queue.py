"""The work queue, driven by a clock of the test's own."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from herdsman.kube.queue import CROWD, CROWDED_SECONDS, LONGEST_DELAY, WorkQueue, backoff


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def queue(clock=None):
    return WorkQueue(namespace_of=lambda key: key[0], clock=clock or Clock(), jitter=lambda: 0.0)


def drain(work):
    """Take everything that is ready, in order."""

    async def take():
        taken = []
        while work.depth:
            key = await work.get()
            taken.append(key)
            work.done(key)
        return taken

    return asyncio.run(take())


def ready(work):
    async def release():
        try:
            key = await asyncio.wait_for(work.get(), 0.01)
        except TimeoutError:
            return None
        return key

    return asyncio.run(release())


def test_a_key_added_often_is_worked_on_once():
    work = queue()
    for _ in range(5):
        work.add(("a", 1))
    assert drain(work) == [("a", 1)]


def test_a_key_added_while_it_is_worked_on_is_worked_on_once_more():
    work = queue()
    work.add(("a", 1))
    key = ready(work)
    work.add(key)
    work.add(key)
    assert work.depth == 0
    work.done(key)
    assert drain(work) == [key]


def test_namespaces_take_turns():
    work = queue()
    for number in range(3):
        work.add(("noisy", number))
    work.add(("quiet", 0))
    assert drain(work) == [("noisy", 0), ("quiet", 0), ("noisy", 1), ("noisy", 2)]


def test_urgent_keys_go_first_within_their_namespace():
    work = queue()
    work.add(("a", 1))
    work.add(("a", 2))
    work.add(("a", 2), urgent=True)
    assert drain(work) == [("a", 2), ("a", 1)]


def test_a_delayed_key_comes_when_its_time_has_come_and_not_before():
    clock = Clock()
    work = queue(clock)
    work.add_after(("a", 1), 10)
    assert ready(work) is None
    clock.now = 10.0
    assert ready(work) == ("a", 1)


def test_of_two_delays_the_shorter_counts_and_the_longer_is_forgotten():
    clock = Clock()
    work = queue(clock)
    work.add_after(("a", 1), 10)
    work.add_after(("a", 1), 5)
    clock.now = 5.0
    key = ready(work)
    work.done(key)
    clock.now = 20.0
    assert (key, ready(work)) == (("a", 1), None)


def test_retries_wait_longer_each_time_and_start_afresh_after_success():
    work = queue()
    delays = [work.retry(("a", 1)) for _ in range(4)]
    work.forget(("a", 1))
    assert (delays, work.retry(("a", 1))) == ([0.5, 1.0, 2.0, 4.0], 0.5)


@pytest.mark.parametrize("failures", [1, 5, 50, 10_000])
def test_a_delay_never_exceeds_the_longest_by_more_than_the_jitter(failures):
    assert 0.5 <= backoff(failures, 0.999) <= LONGEST_DELAY * 1.2


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 4), st.booleans()), max_size=40))
def test_nothing_is_lost_and_nothing_comes_twice(added):
    work = queue()
    for namespace, number, urgent in added:
        work.add((namespace, number), urgent=urgent)
    taken = drain(work)
    assert sorted(taken) == sorted({(namespace, number) for namespace, number, _ in added})


def test_a_retry_may_be_capped_and_may_have_to_wait():
    work = queue()
    assert [work.retry(("a", 1), longest=1.5) for _ in range(4)] == [0.5, 1.0, 1.5, 1.5]
    assert work.retry(("b", 1), at_least=7.0) == 7.0


def test_in_a_crowd_what_is_not_pressing_waits_and_is_not_worked_on_twice():
    clock = Clock()
    work = queue(clock)
    work.add_unhurried(("a", 0))
    assert drain(work) == [("a", 0)], "without a crowd it is worked on at once"
    for number in range(1, CROWD + 2):
        work.add(("a", number))
    work.add_unhurried(("a", 0))
    work.add_unhurried(("a", 0))
    assert ("a", 0) not in drain(work)
    assert work.crowded, "nobody waits any more, but much was done in this second"
    clock.now += CROWDED_SECONDS
    assert not work.crowded
    assert ready(work) == ("a", 0)
    work.done(("a", 0))
    assert ready(work) is None


def test_what_becomes_pressing_does_not_wait_for_the_crowd():
    work = queue()
    for number in range(1, CROWD + 2):
        work.add(("a", number))
    work.add_unhurried(("a", 0))
    work.add(("a", 0), urgent=True)
    assert drain(work)[0] == ("a", 0)
