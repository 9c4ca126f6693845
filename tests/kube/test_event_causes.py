"""When Events are read: often while a cause is to be told soon, seldom when it has been known for long."""

import asyncio
import itertools

from herdsman.kube import event_causes
from herdsman.kube.event_causes import EventCauses
from herdsman.kube.port import Listing

SEEN = {"metadata": {"creationTimestamp": "2026-01-01T00:00:00Z"}}


class Told:
    """An API server that has the same Events each time, and counts how often it is asked for them."""

    def __init__(self, *messages: str):
        self.asked = 0
        marks = {"reason": "FailedCreate", "type": "Warning", **SEEN}
        self._items = [{**marks, "message": message} for message in messages]

    async def list_objects(self, kind, namespace, **query):
        assert (kind, namespace, query) == ("Event", "default", {"fieldSelector": "involvedObject.uid=u"})
        self.asked += 1
        return Listing(self._items, 1)


JOB = {"kind": "Job", "metadata": {"name": "j", "namespace": "default", "uid": "u"}}


def ages_of_questions(api, until):
    """The ages at which the API server was asked, where the resource is looked at again whenever that is asked for."""
    now, ages = 0.0, []
    causes = EventCauses(api, clock=lambda: now)

    async def live():
        nonlocal now
        while now < until:
            before = api.asked
            answer = await causes.cause(JOB, now)
            ages.extend([now] * (api.asked - before))
            now += answer.again

    asyncio.run(live())
    return ages


def test_a_cause_is_looked_for_every_few_seconds_at_first_and_ever_less_often_later():
    ages = ages_of_questions(Told(), 400)
    pauses = [later - earlier for earlier, later in itertools.pairwise(ages)]
    young = [pause for age, pause in zip(ages, pauses, strict=False) if age <= event_causes.EAGER_SECONDS]
    assert ages[0] == event_causes.PATIENCE
    assert set(young) == {event_causes.PATIENCE}
    assert pauses == sorted(pauses)
    assert pauses[-1] == event_causes.LONGEST_PAUSE


def test_an_event_that_comes_late_is_told_within_ten_seconds():
    api = Told("exceeded quota: none")

    async def story():
        return await EventCauses(api, clock=lambda: 0.0).cause(JOB, event_causes.PATIENCE)

    answer = asyncio.run(story())
    assert answer.cause is not None
    assert "exceeded quota" in answer.cause.message
    assert answer.again <= event_causes.PATIENCE


def test_many_objects_at_once_ask_a_few_times_a_second():
    api = Told()

    async def story():
        causes = EventCauses(api, clock=lambda: 100.0)
        found = []
        for _ in range(20):
            causes.keep(())  # each time as if it were another object
            found.append((await causes.cause(JOB, 60.0)).sure)
        return found

    sure = asyncio.run(story())
    assert api.asked == event_causes.A_SECOND
    assert sure == [number < event_causes.A_SECOND for number in range(20)]
