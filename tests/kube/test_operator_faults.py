"""Whole runs with faults: killed anywhere, answers lost, requests refused, watches behind."""

import random
from collections import Counter

import pytest

from herdsman.kube.errors import ApiError, Unreachable
from kube.fake_api import Crash
from kube.fake_platform import End, run_on, succeed
from kube.pipelines import fall_once, imported, pipeline, started, summary
from kube.station import NAMESPACE, Station, run


def reference():
    async def story():
        station = await started(*pipeline(), script=fall_once)
        await station.settle()
        return station

    return run(story)


REFERENCE = reference()


def assert_as_the_reference(station, where):
    made = Counter(body["metadata"]["name"] for body in station.api.of("Job"))
    assert max(Counter(station.platform.started).values()) == 1, where
    assert len(station.platform.started) == len(REFERENCE.platform.started), where
    assert made == {"mi-base-1": 1, "mi-base-2": 1, "pj-zh-1": 1, "pj-zh-2": 1}, where
    assert summary(station, *pipeline()) == summary(REFERENCE, *pipeline()), where


def test_killed_after_any_request_the_next_operator_goes_on():
    """The process dies right after request k, which is just before request k + 1, for every k of a whole run."""
    total = len(REFERENCE.api.calls)
    assert total > 60

    async def story(number):
        def kill(call):
            if call.number == number:
                raise Crash(repr(call))

        station, killed = Station(fall_once), 0
        station.claims("weights", "corpora")
        station.put(*pipeline())
        station.api.after = kill
        for _ in range(2):
            station.start()
            try:
                await station.operator.list_until_done()
                await station.settle()
            except Crash:
                killed += 1
        return station, killed

    for number in range(total):
        station, killed = run(lambda number=number: story(number))
        where = f"killed after request {number}, {REFERENCE.api.calls[number]}"
        assert killed == 1, where
        assert_as_the_reference(station, where)
        assert set(station.errors()) <= {"conflict"}, where


def test_where_the_answer_to_any_write_is_lost_it_is_found_out_that_it_was_done():
    writes = [call for call in REFERENCE.api.writes if call.kind != "Event"]

    async def story(number):
        def lose(call):
            if call.number == number:
                raise Unreachable("the connection was reset")

        station = Station(fall_once)
        station.claims("weights", "corpora")
        station.put(*pipeline())
        station.api.after = lose
        station.start()
        await station.operator.list_until_done()
        await station.settle()
        return station

    for call in writes:
        station = run(lambda number=call.number: story(number))
        assert_as_the_reference(station, f"no answer to request {call.number}, {call}")
        assert station.errors().pop("unreachable") == 1
        assert set(station.errors()) <= {"conflict", "unreachable"}


ANSWERS = {
    "not reached": Unreachable("connection refused"),
    "too many requests": ApiError(429, "TooManyRequests", "slow down", 1.0),
    "unavailable": ApiError(503, "ServiceUnavailable", "no leader"),
    "internal error": ApiError(500, "InternalError", "etcd"),
}


@pytest.mark.parametrize("answer", ANSWERS)
def test_one_request_in_three_goes_wrong_and_the_run_ends_the_same(answer):
    async def story():
        station = Station(fall_once)
        station.claims("weights", "corpora")
        station.put(*pipeline())
        station.start()
        await station.operator.list_until_done()

        chance = random.Random(4)

        def fail(call):
            if call.kind != "Event" and chance.random() < 1 / 3:
                raise ANSWERS[answer]

        station.api.before = fail
        await station.settle(patience=900)
        return station

    station = run(story)
    assert_as_the_reference(station, answer)
    assert set(station.errors()) <= {"unreachable", "temporary"}


def test_an_api_server_away_for_minutes_is_taken_up_within_a_minute_of_its_return():
    async def story():
        station = await started(imported(), script=succeed)
        away = [True]

        def fail(_call):
            if away[0]:
                raise Unreachable("connection refused")

        station.api.before = fail
        until = station.seconds + 600
        while station.seconds < until:
            await station.work()
            station.seconds += 5
        away[0] = False
        back = station.seconds
        await station.settle(patience=60)
        return station, station.seconds - back

    station, took = run(story)
    assert station.status(imported())["phase"] == "Succeeded"
    assert took < 60


def test_a_late_watch_of_the_pods_does_not_hide_how_the_job_ended():
    async def story():
        station = await started(imported())
        await station.work()
        while station.status(imported()).get("phase") != "Succeeded":
            station.platform.step()
            await station.work(hold={"Pod"})
            assert station.platform.step() or station.status(imported())["phase"] == "Succeeded"
        return station

    station = run(story)
    assert summary(station, imported())["base"][1] == [(1, "Succeeded", False)]


def test_a_late_watch_of_the_jobs_makes_no_second_job():
    async def story():
        station = await started(imported(), script=run_on)
        await station.work(hold={"Job"})
        station.start()
        key = station.key(imported())
        station.shell.intake.seen(station.api.objects["ModelImport", NAMESPACE, "base"])
        for _ in range(3):
            station.shell.queue.add(key)
            await station.work(hold={"Job"})
        return station

    station = run(story)
    assert len(station.api.of("Job")) == 1
    assert len({uid for uid, _ in station.platform.started}) <= 1


def test_a_change_by_somebody_else_is_noticed_before_a_status_is_written_from_an_old_view():
    async def story():
        station = await started(imported(), script=run_on)
        await station.settle()
        station.api.change("ModelImport", NAMESPACE, "base", {"spec": {"suspend": True}})
        station.events.clear()  # the watch is behind
        job = station.api.of("Job")[0]
        for pod in station.platform.pods(job):
            station.platform.end(pod, End())
        station.platform.step()
        await station.settle()
        return station

    station = run(story)
    assert station.errors() == {"conflict": 1}
    status = station.status(imported())
    assert (status["phase"], status["observedGeneration"]) == ("Succeeded", 2)
