"""Lanes do their work in order, let nobody run ahead, and stop at the first failure."""

import threading

import pytest

from herdsman_trainer.weights.lanes import Lane


@pytest.fixture
def lane():
    lane = Lane("test", depth=2)
    yield lane
    lane.close()


def test_work_is_done_in_order_in_one_thread_of_its_own(lane):
    done = []
    for number in range(20):
        lane.submit(lambda number=number: done.append((number, threading.current_thread())))
    lane.drain()
    assert [number for number, _ in done] == list(range(20))
    assert {thread for _, thread in done} - {threading.current_thread()} == {done[0][1]}


def test_nobody_runs_further_ahead_than_the_depth(lane):
    gate, third = threading.Event(), threading.Event()
    lane.submit(gate.wait)
    lane.submit(lambda: None)
    ahead = threading.Thread(target=lambda: (lane.submit(lambda: None), third.set()))
    ahead.start()
    assert not third.wait(0.05)
    gate.set()
    assert third.wait(5)
    ahead.join()


def test_after_a_failure_nothing_more_is_done_and_it_is_raised(lane):
    done = []

    def fail():
        raise OSError("no space")

    lane.submit(fail)
    lane.submit(done.append, 1)
    with pytest.raises(OSError, match="no space"):
        lane.submit(done.append, 2)
    assert done == []
    with pytest.raises(OSError, match="no space"):
        lane.submit(done.append, 11).result()
    assert done == []


def test_what_a_piece_of_work_returns_can_be_waited_for(lane):
    assert lane.submit(pow, 2, 5).result() == 32
