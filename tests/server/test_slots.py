"""Slots of llama.cpp: lent to those that fit, the one that knows the prompt first."""

import threading

from herdsman_server.slots import Slots
from waiting import wait_until


def test_the_slot_that_knows_most_of_the_prompt_is_lent():
    slots = Slots(3, 100)
    with slots.lend([1, 2, 3], 10) as first, slots.lend([1, 9], 10) as second:
        assert first != second
    with slots.lend([1, 9, 9, 9], 10) as again:
        assert again == second
    with slots.lend([1, 2, 3, 4], 10) as again:
        assert again == first


def test_an_answer_waits_for_a_slot_and_for_room():
    for slots, first, second in ((Slots(1, 100), 10, 10), (Slots(2, 100), 60, 60)):
        entered = threading.Event()

        def take(slots=slots, tokens=second, entered=entered):
            with slots.lend([1], tokens):
                entered.set()

        with slots.lend([1], first):
            waiting = threading.Thread(target=take, daemon=True)
            waiting.start()
            assert not entered.wait(0.05)
        wait_until(entered.is_set, "the second has its turn")
        waiting.join(timeout=20)
