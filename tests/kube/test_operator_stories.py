"""Whole runs: the operator over an API server in memory, with a platform and a time of the test's own."""

import json

import pytest

import builders
from kube.fake_platform import End, run_on, succeed
from kube.pipelines import fall_once, imported, job_makings, pipeline, started, summary, trained
from kube.station import NAMESPACE, Station, run


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


def test_a_set_that_asks_a_server_begins_when_that_answers():
    asked = builders.instruction_set(
        "made", generate={"endpoint": {"modelServer": "chat"}}, metadata={"namespace": NAMESPACE}
    )

    async def story():
        station = await started(asked, *reversed(pipeline()))
        await station.settle(patience=0.0)
        return station

    station = run(story)
    assert station.status(asked)["phase"] == "Succeeded"
    made = [
        call.name for call in station.api.calls if call.name in ("ms-chat", "is-made-1") and call.kind != "ConfigMap"
    ]
    assert made.index("ms-chat") < made.index("is-made-1")
    (job,) = (body for body in station.api.of("Job") if body["metadata"]["name"] == "is-made-1")
    assert job["spec"]["template"]["metadata"]["labels"]["herdsman.dev/asks-servers"] == "true"


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
