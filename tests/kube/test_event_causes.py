"""When Events are read: often while a cause is to be told soon, seldom when it has been known for long."""

import asyncio
import itertools

from herdsman.core.world import Key
from herdsman.kube import event_causes
from herdsman.kube.cache import ResourceKey
from herdsman.kube.event_causes import EventCauses
from herdsman.kube.port import Listing

SEEN = {"metadata": {"creationTimestamp": "2026-01-01T00:00:00Z"}}


class Told:
    """An API server that has the same Events each time, and counts how often it is asked for them."""

    def __init__(self, *messages: str):
        self.asked = 0
        marks = {"reason": "FailedCreate", "type": "Warning", "involvedObject": {"uid": "u"}, **SEEN}
        self.items = [{**marks, "message": message} for message in messages]

    async def list_objects(self, kind, namespace, **query):
        assert (kind, query) == ("Event", {"fieldSelector": "type=Warning"})
        self.asked += 1
        return Listing(self.items, 1)


def job(uid="u"):
    return {"kind": "Job", "metadata": {"name": "j", "namespace": "default", "uid": uid}}


def me(name="run", namespace="default"):
    return ResourceKey(namespace, Key("PretrainJob", name))


def nobody(_key):
    raise AssertionError("nobody is to be woken")


def ages_of_questions(api, until):
    """The ages at which the API server was asked, where the resource is looked at again whenever that is asked for."""
    now, ages = 0.0, []
    causes = EventCauses(api, nobody, clock=lambda: now)

    async def live():
        nonlocal now
        while now < until:
            before = api.asked
            answer = await causes.cause(me(), job(), now)
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
        return await EventCauses(api, nobody, clock=lambda: 0.0).cause(me(), job(), event_causes.PATIENCE)

    answer = asyncio.run(story())
    assert answer.cause is not None
    assert "exceeded quota" in answer.cause.message
    assert answer.again <= event_causes.PATIENCE


def test_one_question_answers_for_all_objects_of_a_namespace_and_wakes_whom_it_concerns():
    now, woken, api = 0.0, [], Told()

    async def story():
        nonlocal now
        causes = EventCauses(api, woken.append, clock=lambda: now)
        for number in range(100):
            await causes.cause(me(f"run-{number}"), job(f"u-{number}"), 5.0)
        assert api.asked == 1
        api.items = Told("exceeded quota: none").items
        api.items[0]["involvedObject"] = {"uid": "u-7"}
        now = event_causes.PATIENCE
        again = (await causes.cause(me("run-0"), job("u-0"), 8.0)).again
        told = await causes.cause(me("run-7"), job("u-7"), 8.0)
        return again, told

    again, told = asyncio.run(story())
    assert api.asked == 2
    assert woken == [me("run-7")]
    assert "exceeded quota" in told.cause.message
    assert again == 100 / event_causes.LOOKS_A_SECOND, "a hundred that wait are not all looked at every few seconds"


def test_what_gets_on_is_neither_counted_nor_woken():
    now, woken, api = 0.0, [], Told()

    async def story():
        nonlocal now
        causes = EventCauses(api, woken.append, clock=lambda: now)
        for number in range(100):
            await causes.cause(me(f"run-{number}"), job(f"u-{number}"), 5.0)
            causes.gone_on(me(f"run-{number}"))
        api.items = Told("exceeded quota: none").items
        api.items[0]["involvedObject"] = {"uid": "u-7"}
        now = event_causes.PATIENCE
        return (await causes.cause(me("run-0"), job("u-0"), 8.0)).again

    assert asyncio.run(story()) == event_causes.PATIENCE
    assert woken == []


def test_many_namespaces_at_once_are_asked_for_a_few_times_a_second():
    api = Told()

    async def story():
        causes = EventCauses(api, nobody, clock=lambda: 100.0)
        return [(await causes.cause(me("run", f"team-{number}"), job(), 60.0)).sure for number in range(20)]

    sure = asyncio.run(story())
    assert api.asked == event_causes.NAMESPACES_A_SECOND
    assert sure == [number < event_causes.NAMESPACES_A_SECOND for number in range(20)]
