"""The operator's own decisions: errors by class, namespaces, listings."""

import asyncio
import logging

import builders
from herdsman.kube import operator as module
from herdsman.kube.errors import ApiError, NotFound, Unreachable
from kube.fake_platform import run_on
from kube.pipelines import imported, started
from kube.station import NAMESPACE, Station, manifest_of, run


def test_a_bug_is_logged_and_counted_and_does_not_stop_the_others(monkeypatch, caplog):
    original = module.reconcile

    async def either(key, cluster, site):
        if key.name == "broken":
            raise KeyError("no such thing")
        return await original(key, cluster, site)

    monkeypatch.setattr(module, "reconcile", either)

    async def story():
        station = await started(imported("broken"), imported("whole"))
        await station.settle(patience=30)
        return station

    with caplog.at_level(logging.ERROR):
        station = run(story)
    assert station.status(imported("whole"))["phase"] == "Succeeded"
    assert station.errors()["bug"] >= 3
    assert "ModelImport team/broken: a bug" in caplog.text


def delays(error, times=8):
    """The pauses before a resource is tried again, whose reconciliation fails with this error."""

    async def story():
        station = Station(run_on)
        station.claims("weights")
        station.start()
        station.put(imported())
        await station.operator.list_until_done()

        def fail(call):
            raise error

        station.api.before = fail
        key, found = station.key(imported()), []
        for _ in range(times):
            station.shell.queue.add(key)
            taken = await station.shell.queue.get()
            await station.operator.reconcile_one(taken)
            station.shell.queue.done(taken)
            found.append(station.shell.queue._due[key] - station.seconds)
        return found

    return run(story)


def test_a_server_that_is_away_is_asked_again_every_ten_seconds_at_most():
    assert delays(Unreachable("away")) == [0.5, 1, 2, 4, 8, 10, 10, 10]


def test_a_temporary_answer_is_followed_by_pauses_up_to_half_a_minute():
    assert delays(ApiError(500, "InternalError", "etcd")) == [0.5, 1, 2, 4, 8, 16, 30, 30]


def test_definitions_that_are_older_than_the_operator_are_told(caplog):
    message = "failed to create typed patch object: .status.attempts[number=1].preflight: field not declared in schema"
    with caplog.at_level(logging.ERROR):
        delays(ApiError(500, "Unknown", message), 1)
    assert "older than this operator: apply those of its chart" in caplog.text


def test_as_long_is_waited_as_the_server_asks_for():
    assert delays(ApiError(429, "TooManyRequests", "slow down", 5.0), 5) == [5, 5, 5, 5, 8]


def test_a_refusal_that_only_somebody_else_can_mend_is_tried_less_and_less_often():
    found = delays(ApiError(403, "Forbidden", "may not get claims"), 12)
    assert found[-1] >= 300


def test_only_the_namespaces_that_are_served_are_looked_at():
    async def story():
        station = Station(run_on)
        for namespace in ("one", "other", "third"):
            station.api.add(manifest_of(builders.model_import("base"), namespace))
        station.start(namespaces=("one", "other"))
        await station.operator.list_until_done()
        await station.work()
        return station

    station = run(story)
    served = {body["metadata"]["namespace"] for body in station.api.of("ModelImport") if body.get("status")}
    assert served == {"one", "other"}


def test_until_the_crds_are_there_the_operator_says_what_is_missing(monkeypatch):
    async def story():
        station = Station()
        station.start()
        there = []

        def fail(call):
            if not there and call.kind == "SFTJob":
                raise NotFound(404, "NotFound", "the server could not find the requested resource")

        async def sleep(_seconds):
            told.append(station.operator.readiness.problem)
            there.append(True)

        told = []
        station.api.before = fail
        monkeypatch.setattr(asyncio, "sleep", sleep)
        await station.operator.list_until_done()
        return told, station.operator.readiness.listed

    told, listed = run(story)
    assert listed
    assert "CustomResourceDefinition is missing" in told[0]


def test_what_vanished_while_a_watch_was_broken_is_found_out_by_the_listing_that_follows():
    async def story():
        station = await started(imported(), script=run_on)
        await station.settle()
        station.api.remove("ModelImport", NAMESPACE, "base")
        station.put(imported("other"))
        station.events.clear()  # nothing was heard of it
        for body in station.api.of("ModelImport"):
            station.shell.intake.event(None, body)  # the watch lists what there is now
        relisted = set(station.shell.intake.relisted)
        await station.operator._listing.relisted()
        await station.work()
        return relisted, station

    relisted, station = run(story)
    assert relisted == {"ModelImport"}
    assert station.shell.cache.get("ModelImport", NAMESPACE, "base") is None
    assert station.shell.intake.relisted == set()


def test_a_full_listing_mends_what_a_silent_watch_has_missed():
    async def story():
        station = await started(imported())
        for _ in range(20):
            await station.work(hold={"Job", "Pod"})
            station.platform.step()
            station.seconds += 1
        before = station.status(imported()).get("phase")
        await station.operator.resync()
        await station.work(hold={"Job", "Pod"})
        return before, station.status(imported())["phase"]

    assert run(story) == ("Pending", "Succeeded")
