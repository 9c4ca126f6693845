"""Trainings on GPUs over an API server in memory: checked on a CPU first, and no GPU asked for in vain."""

import json

from herdsman.api.job_config import RUN_CONFIG
from herdsman.kube.errors import ApiError
from kube.fake_api import Crash
from kube.fake_platform import End
from kube.pipelines import imported, job_makings, started, summary, trained
from kube.station import Station, run

PREFLIGHT = "herdsman.dev/preflight"
DONE = End(message=json.dumps({"reason": "Succeeded"}))
"""What a preflight says at its end: no artifact."""
BAD = End(42, message=json.dumps({"reason": "BadInput", "message": "not JSON", "file": "zh.jsonl", "line": 9}))


def on_gpus(**spec):
    return trained(compute={"nodes": 2, "gpusPerNode": 8}, **spec)


def is_preflight(job):
    return PREFLIGHT in job["metadata"]["labels"]


def good(job, _index):
    return DONE if is_preflight(job) else End()


def endless(job, _index):
    """The import ends, and whatever the training does goes on for ever."""
    return End() if job["metadata"]["name"].startswith("mi-") else None


def endless_training(job, index):
    return DONE if is_preflight(job) else endless(job, index)


def stubborn(job, _index):
    """The first preflight and the first training are evicted, and then all goes well."""
    if job["metadata"]["name"] in ("pj-zh-1", "pj-zh-3"):
        return End(143, condition={"type": "DisruptionTarget", "status": "True", "reason": "EvictionByEvictionAPI"})
    return good(job, _index)


def jobs(station):
    """(name, whether a preflight, GPUs of a pod, pods) of all Jobs of the training, in order."""
    found = []
    for job in sorted(station.api.of("Job"), key=lambda job: job["metadata"]["name"]):
        if job["metadata"]["name"].startswith("pj-"):
            limits = job["spec"]["template"]["spec"]["containers"][0]["resources"].get("limits", {})
            gpus, pods = int(limits.get("nvidia.com/gpu", 0)), job["spec"]["completions"]
            found.append((job["metadata"]["name"], is_preflight(job), gpus, pods))
    return found


def settled(*resources, script, patience=120.0):
    async def story():
        station = await started(*resources, script=script)
        await station.settle(patience=patience)
        return station

    return run(story)


def test_a_training_on_gpus_is_checked_on_a_cpu_first():
    station = settled(imported(), on_gpus(), script=good)
    assert jobs(station) == [("pj-zh-1", True, 0, 1), ("pj-zh-2", False, 8, 2)]
    status = station.status(on_gpus())
    assert (status["phase"], status["restarts"], status["artifact"]["path"]) == ("Succeeded", 0, "zh/artifact")
    assert [(item["number"], item["reason"], item["preflight"]) for item in status["attempts"]] == [
        (1, "Succeeded", True),
        (2, "Succeeded", False),
    ]
    configs = {body["metadata"]["name"]: body["data"]["job.json"] for body in station.api.of("ConfigMap")}
    assert RUN_CONFIG.validate_json(configs["pj-zh-1"]).preflight.world_size == 16
    assert [body["metadata"]["name"] for body in station.api.of("Service")] == ["pj-zh-2"]
    assert [event["reason"] for event in station.api.of("Event") if event["type"] == "Warning"] == []
    assert station.errors() == {}


def test_while_it_is_checked_the_run_is_running_and_says_so():
    station = settled(imported(), on_gpus(), script=endless)
    status = station.status(on_gpus())
    progressing = next(item for item in status["conditions"] if item["type"] == "Progressing")
    assert (status["phase"], progressing["reason"]) == ("Running", "Running")
    assert "before any GPU is taken" in progressing["message"]


def test_bad_input_costs_no_gpu():
    station = settled(imported(), on_gpus(), script=lambda job, _index: BAD if is_preflight(job) else End())
    assert jobs(station) == [("pj-zh-1", True, 0, 1)]
    status = station.status(on_gpus())
    assert (status["phase"], status["failure"]["message"]) == ("Failed", "zh.jsonl, line 9: not JSON")


def test_evictions_repeat_what_was_evicted_and_no_more():
    station = settled(imported(), on_gpus(), script=stubborn)
    assert [entry[:3] for entry in jobs(station)] == [
        ("pj-zh-1", True, 0),
        ("pj-zh-2", True, 0),
        ("pj-zh-3", False, 8),
        ("pj-zh-4", False, 8),
    ]
    status = station.status(on_gpus())
    assert (status["phase"], status["restarts"]) == ("Succeeded", 0)


def test_a_steady_state_writes_nothing():
    async def story():
        station = await started(imported(), on_gpus(), script=endless_training)
        await station.settle()
        before = len(station.api.writes)
        for _ in range(2):
            station.seconds += 300
            await station.operator.resync()
            await station.settle()
        return station, station.api.writes[before:]

    station, written = run(story)
    assert (station.status(on_gpus())["phase"], written) == ("Running", [])


def test_a_preflight_that_a_quota_refuses_stays_one():
    async def story():
        station = await started(imported())
        await station.settle()
        station.platform.script = good

        def refuse(call):
            if call.verb == "create" and call.kind == "Job" and station.seconds < 100:
                raise ApiError(403, "Forbidden", "exceeded quota: team")

        station.api.before = refuse
        station.put(on_gpus())
        await station.settle(patience=5)
        refused = station.status(on_gpus())
        station.seconds = 100
        await station.settle()
        return station, refused

    station, refused = run(story)
    assert refused["failure"]["reason"] == "QuotaExceeded"
    assert [item["preflight"] for item in refused["attempts"]] == [True]
    assert [entry[:3] for entry in jobs(station)] == [("pj-zh-1", True, 0), ("pj-zh-2", False, 8)]


def test_a_job_that_is_deleted_is_made_again_as_what_it_was():
    async def story():
        station = await started(imported(), on_gpus(), script=endless)
        await station.settle()
        station.platform.script = endless_training
        station.api.remove("Job", "team", "pj-zh-1")
        await station.settle()
        before = jobs(station)
        station.api.remove("Job", "team", "pj-zh-1")
        station.api.remove("Job", "team", "pj-zh-2")
        await station.settle()
        return station, before

    station, before = run(story)
    assert before == [("pj-zh-1", True, 0, 1), ("pj-zh-2", False, 8, 2)]
    assert jobs(station) == [("pj-zh-2", False, 8, 2)]
    assert job_makings(station)["pj-zh-1"] == 2


REFERENCE = settled(imported(), on_gpus(), script=stubborn)


def test_killed_after_any_request_the_next_operator_goes_on():
    """The process dies right after request k, for every k of a whole run."""

    async def story(number):
        def kill(call):
            if call.number == number:
                raise Crash(repr(call))

        station, killed = Station(stubborn), 0
        station.claims("weights", "corpora")
        station.put(imported(), on_gpus())
        station.api.after = kill
        for _ in range(2):
            station.start()
            try:
                await station.operator.list_until_done()
                await station.settle()
            except Crash:
                killed += 1
        return station, killed

    total = len(REFERENCE.api.calls)
    assert total > 35
    for number in range(total):
        station, killed = run(lambda number=number: story(number))
        where = f"killed after request {number}, {REFERENCE.api.calls[number]}"
        assert killed == 1, where
        assert jobs(station) == jobs(REFERENCE), where
        assert summary(station, imported(), on_gpus()) == summary(REFERENCE, imported(), on_gpus()), where
        assert len(station.platform.started) == len(REFERENCE.platform.started), where
