"""Making children exist, over the API server in memory: what is written, and what is left alone."""

import copy

import pytest

import builders
from herdsman.kube.comparing import APPLIED
from herdsman.kube.errors import ApiError
from kube.fake_platform import run_on, succeed
from kube.station import NAMESPACE, Station, claim, run


def imported(name="base", **spec):
    spec.setdefault("workspace", {"claim": "weights", "path": name})
    return builders.model_import(name, **spec)


async def started(*resources, script=run_on, claims=("weights",)):
    station = Station(script)
    station.claims(*claims)
    station.put(*resources)
    station.start()
    await station.operator.list_until_done()
    await station.settle()
    return station


def reason(station, resource, kind):
    conditions = {item["type"]: item for item in station.status(resource)["conditions"]}
    return conditions[kind]["status"], conditions[kind]["reason"]


def foreign(kind, name, owner=None):
    other = {"apiVersion": "v1", "kind": "Thing", "name": "x", "uid": "uid-x", "controller": True}
    owners = [{**other, **(owner or {})}]
    metadata = {"name": name, "namespace": NAMESPACE, "ownerReferences": owners}
    body = {"apiVersion": "v1", "kind": kind, "metadata": metadata}
    return body | (
        {
            "spec": {
                "completions": 1,
                "parallelism": 1,
            }
        }
        if kind == "Job"
        else {"data": {}}
    )


@pytest.mark.parametrize("kind", ["Job", "ConfigMap"])
def test_an_object_of_somebody_else_is_not_touched_and_the_status_names_it(kind):
    async def story():
        station = Station(run_on)
        station.claims("weights")
        theirs = copy.deepcopy(station.api.add(foreign(kind, "mi-base-1")))
        station.put(imported())
        station.start()
        await station.operator.list_until_done()
        await station.settle(patience=5)
        return station, theirs

    station, theirs = run(story)
    assert station.api.objects[kind, NAMESPACE, "mi-base-1"] == theirs
    assert reason(station, imported(), "Accepted") == ("False", "NameConflict")
    assert f"{kind} mi-base-1" in station.status(imported())["failure"]["message"]


def test_a_server_does_not_take_over_a_deployment_of_somebody_else():
    async def story():
        station = Station()
        station.claims("weights")
        station.api.add(foreign("Deployment", "ms-chat") | {"spec": {"replicas": 7}})
        server = builders.model_server("chat", model={"volume": {"claim": "weights", "path": "m"}})
        station.put(server)
        station.start()
        await station.operator.list_until_done()
        await station.work()
        station.seconds += 1
        await station.work()
        return station, server

    station, server = run(story)
    assert station.api.of("Deployment")[0]["spec"] == {"replicas": 7}
    assert reason(station, server, "Accepted") == ("False", "NameConflict")


def test_a_name_that_was_freed_is_taken():
    async def story():
        station = Station(run_on)
        station.claims("weights")
        station.api.add(foreign("Job", "mi-base-1"))
        station.put(imported())
        station.start()
        await station.operator.list_until_done()
        await station.settle(patience=5)
        station.api.remove("Job", NAMESPACE, "mi-base-1")
        await station.settle(patience=70)
        return station

    station = run(story)
    assert station.status(imported())["phase"] == "Running"


def test_what_an_earlier_resource_of_the_name_left_is_waited_for():
    async def story():
        station = Station(run_on)
        station.claims("weights")
        owner = {"apiVersion": "herdsman.dev/v1alpha1", "kind": "ModelImport", "name": "base", "uid": "uid-of-old"}
        station.api.add(foreign("Job", "mi-base-1", owner))
        station.put(imported())
        station.start()
        await station.operator.list_until_done()
        await station.settle(patience=3)
        before = station.status(imported())
        station.api.remove("Job", NAMESPACE, "mi-base-1")
        await station.settle(patience=70)
        return station, before

    station, before = run(story)
    assert before == {}  # nothing was decided, nothing is wrong
    assert station.status(imported())["phase"] == "Running"


def test_a_claim_outlives_its_resource_and_serves_the_next_of_its_name():
    resource = builders.model_import("base")

    async def story():
        station = await started(resource)
        station.api.remove("ModelImport", NAMESPACE, "base")
        await station.settle()
        kept = [body["metadata"]["name"] for body in station.api.of("PersistentVolumeClaim")]
        station.put(resource)
        await station.settle()
        return station, kept

    station, kept = run(story)
    assert "mi-base" in kept
    assert station.status(resource)["phase"] == "Running"


def test_a_claim_goes_with_its_resource_if_that_was_asked_for():
    resource = builders.model_import("base", workspace={"retain": False})

    async def story():
        station = await started(resource)
        station.api.remove("ModelImport", NAMESPACE, "base")
        return [body["metadata"]["name"] for body in station.api.of("PersistentVolumeClaim")]

    assert run(story) == ["weights"]


REFUSALS = {
    "a quota of Jobs": (
        "Job",
        ApiError(403, "Forbidden", 'jobs.batch "mi-base-1" is forbidden: exceeded quota: none'),
        "QuotaExceeded",
    ),
    "a quota of configurations": (
        "ConfigMap",
        ApiError(403, "Forbidden", 'configmaps "mi-base-1" is forbidden: exceeded quota: none'),
        "QuotaExceeded",
    ),
    "a policy": ("Job", ApiError(403, "Forbidden", 'admission webhook "x" denied the request'), "QuotaExceeded"),
    "an invalid field": ("Job", ApiError(422, "Invalid", "spec.template: nonsense"), "QuotaExceeded"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_what_is_refused_is_told_within_seconds_and_tried_again(name):
    kind, answer, expected = REFUSALS[name]

    async def story():
        station = Station(run_on)
        station.claims("weights")
        station.put(imported())
        station.start()
        refusing = [True]

        def refuse(call):
            if refusing[0] and call.verb == "create" and call.kind == kind:
                raise answer

        station.api.before = refuse
        await station.operator.list_until_done()
        await station.settle(patience=4)
        told, seconds = station.status(imported()), station.seconds
        refusing[0] = False
        await station.settle(patience=70)
        return told, seconds, station

    told, seconds, station = run(story)
    assert seconds < 10
    assert told["failure"]["reason"] == expected
    assert answer.message in told["failure"]["message"]
    assert [item["number"] for item in told["attempts"]] == [1]
    assert station.status(imported())["phase"] == "Running"
    assert len(station.api.of("Job")) == 1


def test_a_quota_that_only_the_jobs_events_tell_of():
    async def story():
        station = await started(imported())
        return station

    async def without_pods():
        station = Station()
        station.claims("weights")
        station.put(imported())
        station.platform._make_pod = lambda *_: None
        station.start()
        await station.operator.list_until_done()
        await station.work()
        station.platform.step()
        job = station.api.of("Job")[0]
        station.api.add(
            {
                "apiVersion": "v1",
                "kind": "Event",
                "metadata": {"name": "e", "namespace": NAMESPACE},
                "type": "Warning",
                "reason": "FailedCreate",
                "message": 'pods "x" is forbidden: exceeded quota: none',
                "involvedObject": {"uid": job["metadata"]["uid"]},
            }
        )
        begun = station.seconds
        while "failure" not in station.status(imported()) and station.seconds < begun + 60:
            await station.work()
            station.seconds += 1
        return station, station.seconds - begun

    station, seconds = run(without_pods)
    assert seconds <= 10
    assert station.status(imported())["failure"]["reason"] == "QuotaExceeded"


def test_a_start_among_many_told_causes_takes_none_of_them_back():
    """Events are asked for a few at a time, so for a moment the new operator does not know what the old one told."""
    many = [imported(f"run-{number}", workspace={"claim": "weights", "path": f"p{number}"}) for number in range(12)]

    async def story():
        station = Station()
        station.claims("weights")
        station.put(*many)
        station.platform._make_pod = lambda *_: None
        station.start()
        await station.operator.list_until_done()
        await station.work()
        station.platform.step()
        for number, job in enumerate(station.api.of("Job")):
            said = {"type": "Warning", "reason": "FailedCreate", "message": "exceeded quota: none"}
            metadata = {"name": f"e{number}", "namespace": NAMESPACE}
            of = {"involvedObject": {"uid": job["metadata"]["uid"]}}
            station.api.add({"apiVersion": "v1", "kind": "Event", "metadata": metadata, **said, **of})
        for _ in range(60):
            await station.work()
            station.seconds += 1
        told = [station.status(each)["failure"]["reason"] for each in many]
        station.start()
        before = len(station.api.writes)
        await station.operator.list_until_done()
        for _ in range(60):
            await station.work()
            station.seconds += 1
        return told, station.api.writes[before:]

    told, written = run(story)
    assert told == ["QuotaExceeded"] * len(many)
    assert written == []


def test_a_claim_that_comes_late_is_noticed_within_seconds():
    async def story():
        station = await started(imported(), claims=())
        waiting = reason(station, imported(), "DependenciesReady")
        await station.settle(patience=1)
        begun = station.seconds
        station.api.add(claim("weights"))
        while station.status(imported())["phase"] != "Running" and station.seconds < begun + 60:
            await station.work()
            station.platform.step()
            station.seconds += 1
        return waiting, station.seconds - begun

    waiting, seconds = run(story)
    assert waiting == ("False", "VolumeNotFound")
    assert seconds <= 12


def server_story(change):
    """Start a server, change something, and return the Deployment and the writes since."""
    server = builders.model_server("chat", model={"volume": {"claim": "weights", "path": "m"}})

    async def story():
        station = await started(server)
        before = len(station.api.writes)
        change(station)
        station.start()
        await station.operator.list_until_done()
        await station.settle()
        writes = [repr(call) for call in station.api.writes[before:] if call.kind == "Deployment"]
        return station.api.of("Deployment")[0], writes

    return run(story)


def test_what_somebody_changed_on_a_deployment_is_put_right():
    def change(station):
        station.api.change("Deployment", NAMESPACE, "ms-chat", {"spec": {"replicas": 9}})

    deployment, writes = server_story(change)
    assert deployment["spec"]["replicas"] == 1
    assert writes == ["apply Deployment ms-chat"]


def test_what_somebody_added_to_a_deployment_stays():
    def change(station):
        station.api.change("Deployment", NAMESPACE, "ms-chat", {"metadata": {"annotations": {"note": "mine"}}})

    deployment, writes = server_story(change)
    assert (deployment["metadata"]["annotations"]["note"], writes) == ("mine", [])


def test_a_field_that_the_operator_applied_and_no_longer_plans_vanishes():
    def change(station):
        where = "Deployment", NAMESPACE, "ms-chat"
        patch = {"spec": {"paused": True}, "metadata": {"annotations": {APPLIED: "of-an-older-operator"}}}
        station.api.change(*where, patch)
        station.api.fields[where]["herdsman"].add(("spec", "paused"))

    deployment, writes = server_story(change)
    assert "paused" not in deployment["spec"]
    assert writes == ["apply Deployment ms-chat"]


def test_an_upgraded_operator_does_not_touch_a_job_that_is_there():
    async def story():
        station = await started(imported())
        before = copy.deepcopy(station.api.of("Job")), len(station.api.writes)
        station.start()
        station.operator._site = station.operator._site.__class__(trainer_image="herdsman/trainer:9")
        await station.operator.list_until_done()
        await station.settle()
        return before, (station.api.of("Job"), len(station.api.writes))

    before, after = run(story)
    assert before == after


def test_a_configuration_made_just_before_a_crash_is_replaced_if_the_plan_has_changed():
    async def story():
        station = await started(imported())
        station.api.remove("Job", NAMESPACE, "mi-base-1")
        station.start()
        station.operator._site = station.operator._site.__class__(metrics_port=9999)
        await station.operator.list_until_done()
        await station.settle()
        return station

    station = run(story)
    assert '"metricsPort": 9999' in station.api.of("ConfigMap")[0]["data"]["job.json"]


def test_jobs_of_a_finished_run_go_when_their_time_has_come_with_what_belongs_to_them():
    resource = imported(ttlSecondsAfterFinished=600)

    async def story():
        station = await started(resource, script=succeed)
        kept = len(station.api.of("Job")), len(station.api.of("ConfigMap"))
        await station.settle(patience=700)
        return station, kept

    station, kept = run(story)
    assert (kept, station.api.of("Job"), station.api.of("ConfigMap")) == ((1, 1), [], [])
    assert station.status(resource)["phase"] == "Succeeded"
