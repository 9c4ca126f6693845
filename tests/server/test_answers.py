"""Pieces of an answer on their way to the event loop: one by one where it keeps up, together where it is behind."""

import asyncio

import pytest

from herdsman_server.answer_text import Finished, Piece, SaidToken
from herdsman_server.connection import ClientLeftError
from herdsman_server.engine import Sampling
from herdsman_server.generations import Answers, GenerationFailedError, Wanted

WANTED = Wanted([1], Sampling(), frozenset())
END = Finished("stop", 3)


def heard(tell, count=1):
    """What is heard of answers when `tell(answers, heard so far)` is called before each event is awaited."""

    async def listen():
        answers = Answers([WANTED] * count)
        found = []
        events = answers.events()
        while True:
            tell(answers, found)
            try:
                found.append(await anext(events))
            except StopAsyncIteration:
                return found

    return asyncio.run(listen())


def test_a_listener_that_keeps_up_hears_every_piece():
    said = [Piece("a"), Piece("b"), END]
    assert heard(lambda answers, found: answers.tell(0, said[len(found)]) if len(found) < 3 else None) == [
        (0, Piece("a")),
        (0, Piece("b")),
        (0, END),
    ]


def test_one_that_is_behind_hears_pieces_together_with_all_their_tokens_in_order():
    token = SaidToken(b"c", 2, -1.0, ())
    said = [(0, Piece("a")), (0, Piece("b")), (1, Piece("x")), (0, Piece("c", (token,))), (0, END), (1, END)]

    def all_at_once(answers, found):
        if not found:
            for each in said:
                answers.tell(*each)

    assert heard(all_at_once, count=2) == [
        (0, Piece("ab")),
        (1, Piece("x")),
        (0, Piece("c", (token,))),
        (0, END),
        (1, END),
    ]


def test_the_end_of_one_answer_is_not_the_end_of_all():
    assert len(heard(lambda answers, found: answers.tell(len(found), END) if len(found) < 2 else None, count=2)) == 2


@pytest.mark.parametrize("error", [GenerationFailedError("x"), ClientLeftError()])
def test_what_went_wrong_is_raised(error):
    with pytest.raises(type(error)):
        heard(lambda answers, found: answers.tell(0, Piece("a")) if not found else answers.tell(0, error))


def test_nothing_is_lost_between_a_thread_and_the_loop():
    import threading

    async def listen():
        answers = Answers([WANTED])
        numbers = [str(number) for number in range(3000)]

        def speak():
            for number in numbers:
                answers.tell(0, Piece(number))
            answers.tell(0, END)

        threading.Thread(target=speak).start()
        return "".join([event.text async for _, event in answers.events() if isinstance(event, Piece)]), "".join(
            numbers
        )

    found, expected = asyncio.run(asyncio.wait_for(listen(), 20))
    assert found == expected


def test_a_loop_that_is_gone_is_told_to_whoever_speaks():
    async def make():
        return Answers([WANTED])

    answers = asyncio.run(make())
    assert answers.tell(0, END) is False
