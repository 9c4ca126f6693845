"""Whole runs: the operator over an API server in memory, with platform, time and faults of the test's own."""

import json
import random
from collections import Counter

import pytest

import builders
from herdsman.kube.errors import ApiError, Unreachable
from kube.fake_api import Crash
from kube.fake_platform import End, run_on, succeed
from kube.station import NAMESPACE, Station, run


def imported(name="base", **spec):
    spec.setdefault("workspace", {"claim": "weights", "path": name})
    return builders.model_import(name, **spec)


def trained(name="zh", **spec):
    spec.setdefault("workspace", {"claim": "weights", "path": name})
    return builders.pretrain_job(name, **spec)


def served(name="chat", **spec):
    return builders.model_server(name, **{"model": {"modelImport": "base"}, **spec})


def pipeline():
    """A model on a claim of its own, a training on two nodes that needs it, and a server."""
    return [imported(workspace={"accessMode": "ReadWriteMany"}), trained(compute={"nodes": 2}), served()]


def fall_once(job, index):
    """Every first attempt loses its rank 0 with a fault that may pass; all others succeed."""
    first = job["metadata"]["labels"]["herdsman.dev/attempt"] == "1"
    return (
        End(75, message='{"reason": "Temporary", "message": "the volume was slow"}') if first and not index else End()
    )


def started(*resources, script=succeed):
    """A station where these have just been applied, and an operator has started."""

    async def story():
        station = Station(script)
        station.claims("weights", "corpora")
        station.put(*resources)
        station.start()
        await station.operator.list_until_done()
        return station

    return story()


def job_makings(station):
    """How often each Job's name was created."""
    return Counter(call.name for call in station.api.calls if call.verb == "create" and call.kind == "Job")


def summary(station, *resources):
    """What must be the same however it came about."""
    found = {}
    for resource in resources:
        status = station.status(resource)
        attempts = [(item["number"], item.get("reason"), item["counted"]) for item in status.get("attempts", ())]
        found[resource.metadata.name] = (status["phase"], attempts, status.get("artifact"))
    return found


def test_an_import_becomes_a_job_and_its_end_the_status():
    async def story():
        station = await started(imported())
        await station.settle()
        return station

    station = run(story)
    status = station.status(imported())
    assert (status["phase"], status["artifact"]["path"]) == ("Succeeded", "base/artifact")
    assert job_makings(station) == {"mi-base-1": 1}
    assert station.errors() == {}


def test_a_pipeline_applied_at_once_runs_in_the_order_of_its_references():
    async def story():
        station = await started(*reversed(pipeline()))
        await station.settle()
        return station

    station = run(story)
    assert [station.status(resource)["phase"] for resource in pipeline()] == ["Succeeded", "Succeeded", "Ready"]
    made = [call.name for call in station.api.calls if call.verb == "create" and call.kind == "Job"]
    assert made == ["mi-base-1", "pj-zh-1"]
    services = [body["metadata"]["name"] for body in station.api.of("Service")]
    assert services == ["ms-chat", "pj-zh-1"]


def test_those_that_wait_are_woken_by_the_end_of_what_they_wait_for_and_not_by_time():
    async def story():
        station = await started(imported(), trained())
        await station.settle(patience=0.0)
        return station

    station = run(story)
    assert station.status(trained())["phase"] == "Succeeded"
    assert station.seconds < 15


def test_a_fault_that_may_pass_is_followed_by_another_attempt():
    async def story():
        station = await started(imported(), script=fall_once)
        await station.settle()
        return station

    station = run(story)
    assert summary(station, imported())["base"][:2] == (
        "Succeeded",
        [(1, "Temporary", True), (2, "Succeeded", False)],
    )


def test_bad_input_ends_the_run_with_file_line_and_remedy():
    words = json.dumps(
        {"reason": "BadInput", "message": "not JSON", "file": "data.jsonl", "line": 3, "hint": "Mend the line."}
    )

    async def story():
        station = await started(imported(), script=lambda _job, _index: End(42, message=words))
        await station.settle()
        return station

    station = run(story)
    failure = station.status(imported())["failure"]
    assert (failure["message"], failure["hint"]) == ("data.jsonl, line 3: not JSON", "Mend the line.")
    assert failure["exitCode"] == 42
    events = [(event["type"], event["reason"]) for event in station.api.of("Event")]
    assert events == [("Warning", "BadInput")]


def test_a_restart_with_everything_present_writes_nothing():
    async def story():
        station = await started(*pipeline(), script=fall_once)
        await station.settle()
        before = len(station.api.writes)
        station.start()
        await station.operator.list_until_done()
        await station.settle()
        await station.operator.resync()
        await station.settle()
        return station.api.writes[before:]

    assert run(story) == []


@pytest.mark.parametrize("script", [run_on, succeed], ids=["while it runs", "when it has ended"])
def test_a_steady_state_writes_nothing(script):
    async def story():
        station = await started(*pipeline(), script=script)
        await station.settle()
        before = len(station.api.writes)
        for _ in range(3):
            station.seconds += 300
            await station.operator.resync()
            await station.settle()
        return station.api.writes[before:]

    assert run(story) == []


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


def test_suspend_stops_the_job_and_resume_lets_the_same_job_go_on():
    async def story():
        station = await started(imported(), script=run_on)
        await station.settle()
        phases = [station.status(imported())["phase"]]
        for suspend in (True, False):
            station.api.change("ModelImport", NAMESPACE, "base", {"spec": {"suspend": suspend}})
            await station.settle()
            phases.append(station.status(imported())["phase"])
        station.platform.script = succeed
        await station.settle()
        return station, [*phases, station.status(imported())["phase"]]

    station, phases = run(story)
    assert phases == ["Running", "Suspended", "Running", "Succeeded"]
    assert job_makings(station) == {"mi-base-1": 1}


def test_what_kueue_injects_while_a_job_is_suspended_stays():
    async def story():
        station = await started(imported(compute={"queueName": "gpus"}), script=run_on)
        await station.settle()
        job = station.api.of("Job")[0]
        assert "suspend" not in job["spec"]
        injected = {"spec": {"suspend": True, "template": {"spec": {"nodeSelector": {"pool": "a100"}}}}}
        station.api.change("Job", NAMESPACE, "mi-base-1", injected)
        await station.settle()
        waiting = station.status(imported())
        station.api.change("Job", NAMESPACE, "mi-base-1", {"spec": {"suspend": False}})
        await station.settle()
        return station, waiting

    station, waiting = run(story)
    job = station.api.of("Job")[0]
    assert job["spec"]["template"]["spec"]["nodeSelector"] == {"pool": "a100"}
    assert (waiting["phase"], station.status(imported())["phase"]) == ("Queued", "Running")


def test_a_deleted_resource_takes_its_children_along_and_a_new_one_of_its_name_starts_afresh():
    async def story():
        station = await started(imported(), script=run_on)
        await station.settle()
        first = station.api.of("Job")[0]["metadata"]["uid"]
        station.api.remove("ModelImport", NAMESPACE, "base")
        await station.settle()
        left = len(station.api.of("Job")), len(station.api.of("ConfigMap"))
        station.put(imported())
        await station.settle()
        return first, left, station

    first, left, station = run(story)
    assert left == (0, 0)
    (job,) = station.api.of("Job")
    assert job["metadata"]["uid"] != first
    assert [item["number"] for item in station.status(imported())["attempts"]] == [1]


def test_a_thousand_broken_resources_of_one_namespace_do_not_delay_another():
    async def story():
        station = Station()
        station.start()
        noisy = builders.manifest("ModelImport", "x", {"source": {"volume": {"claim": "weights"}}}, namespace="noisy")
        for number in range(300):
            station.api.add({**noisy, "metadata": {"name": f"x-{number}", "namespace": "noisy"}})
        station.deliver()
        station.put(imported())
        station.deliver()
        order = []
        for _ in range(4):
            key = await station.shell.queue.get()
            order.append(key.namespace)
        return order

    assert NAMESPACE in run(story)[:2]


def test_an_invalid_resource_says_which_field_and_is_left_alone_until_it_changes():
    broken = builders.manifest("ModelImport", "base", {"source": {}, "nonsense": 1}, namespace=NAMESPACE)

    async def story():
        station = await started(broken)
        await station.settle()
        before = len(station.api.calls)
        await station.settle(patience=1000)
        return station, len(station.api.calls) - before

    station, more = run(story)
    status = station.status(broken)
    accepted = next(item for item in status["conditions"] if item["type"] == "Accepted")
    assert (accepted["status"], accepted["reason"]) == ("False", "InvalidSpec")
    assert "spec.nonsense" in accepted["message"]
    assert (more, station.api.of("Job")) == (0, [])
