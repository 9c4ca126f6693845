"""The attempt on a CPU that comes before a training on GPUs: when it is made, as what, and how the run goes on."""

import json
from dataclasses import replace

import pytest

from builders import (
    CLUSTER,
    LAPTOP,
    NOW,
    artifact,
    checked,
    done,
    ended,
    finished,
    job,
    later,
    model_import,
    pod,
    pretrain_job,
    said,
    sft_job,
    suspended,
    volume,
    with_status,
    world,
)
from herdsman.api.job_config import RUN_CONFIG
from herdsman.api.v1alpha1.status import Attempt, CheckpointStatus, Status
from herdsman.core.attempts import MAX_KEPT
from herdsman.core.endings import ending
from herdsman.core.plan import plan
from herdsman.core.status import status

BASE = finished(model_import())
GPUS = {"nodes": 2, "gpusPerNode": 8, "resources": {"memory": "400Gi"}}
ZH = pretrain_job("zh", compute=GPUS)


def step(resource, *, jobs=(), now=NOW, site=CLUSTER, **seen):
    """Plan and report once; returns (plan, the resource with the new status)."""
    observed = world(BASE, jobs=jobs, now=now, **seen)
    planned = plan(resource, observed, site)
    return planned, with_status(resource, status(resource, planned, observed))


def made(planned):
    return {child["kind"]: child for child in planned.children}


def config(planned):
    return RUN_CONFIG.validate_json(made(planned)["ConfigMap"]["data"]["job.json"])


def gpus(planned):
    """How many GPUs a pod of the planned Job asks for."""
    (container,) = made(planned)["Job"]["spec"]["template"]["spec"]["containers"]
    return int(container["resources"]["limits"].get("nvidia.com/gpu", 0))


def preflight(of, attempt=1, state="Running", **facts):
    return job(of, attempt, state, preflight=True, **facts)


def fallen(of, exit_code, attempt=1, **pod_facts):
    return replace(ended(of, exit_code, attempt, **pod_facts), preflight=True)


def message(resource, kind):
    return next(entry.message for entry in resource.status.conditions if entry.type == kind)


@pytest.mark.parametrize(
    ("resource", "site", "first"),
    [
        (ZH, CLUSTER, True),
        (sft_job(compute={"gpusPerNode": 1}), CLUSTER, True),
        (ZH, LAPTOP, False),
        (pretrain_job(), CLUSTER, False),
        (model_import("other", compute={"gpusPerNode": 1}), CLUSTER, False),
    ],
    ids=["a training on GPUs", "a tuning on GPUs", "on one machine", "a training on the CPU", "no training"],
)
def test_a_preflight_comes_first_where_a_training_asks_for_gpus_of_a_cluster(resource, site, first):
    planned, _ = step(resource, site=site)
    assert planned.preflight is first
    assert ("herdsman.dev/preflight" in made(planned)["Job"]["metadata"]["labels"]) is first


def test_it_is_one_process_without_gpus_and_otherwise_like_a_pod_of_the_training():
    own = {"key": "gpu", "operator": "Exists"}
    compute = {**GPUS, "nodeSelector": {"pool": "h200"}, "tolerations": [own], "queueName": "team"}
    planned, _ = step(pretrain_job("zh", compute=compute))
    spec = made(planned)["Job"]["spec"]
    pod_spec = spec["template"]["spec"]
    (container,) = pod_spec["containers"]
    assert (spec["completions"], spec["parallelism"]) == (1, 1)
    assert container["resources"] == {"requests": {"memory": "400Gi"}, "limits": {"memory": "400Gi"}}
    assert (pod_spec["nodeSelector"], pod_spec["tolerations"][0]) == ({"pool": "h200"}, own)
    assert made(planned)["Job"]["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "team"
    assert "Service" not in made(planned)
    claim = made(planned)["PersistentVolumeClaim"]["spec"]
    assert claim["accessModes"] == ["ReadWriteMany"], "the volume is the training's"


def test_it_goes_where_gpus_are_if_it_can_because_a_volume_may_bind_there():
    (term,) = made(step(ZH)[0])["Job"]["spec"]["template"]["spec"]["affinity"]["nodeAffinity"].values()
    assert term[0]["preference"]["matchExpressions"] == [{"key": "nvidia.com/gpu.present", "operator": "Exists"}]
    assert "affinity" not in made(step(checked(ZH))[0])["Job"]["spec"]["template"]["spec"]


def test_its_configuration_is_the_trainings_but_for_the_devices():
    first, second = config(step(ZH)[0]), config(step(checked(ZH))[0])
    assert (first.device, first.launch.nodes, first.launch.processes_per_node) == ("cpu", 1, 1)
    assert (first.preflight.device, first.preflight.world_size, first.verify_inputs) == ("cuda", 16, "Digests")
    assert (second.device, second.launch.nodes, second.launch.processes_per_node) == ("cuda", 2, 8)
    assert (second.preflight, second.verify_inputs) == (None, "Sizes")
    changed = {"attempt", "device", "launch", "preflight", "verify_inputs"}
    assert first.model_dump(exclude=changed) == second.model_dump(exclude=changed)


def test_while_it_works_the_run_runs_and_says_that_no_gpu_is_taken():
    _, resource = step(ZH)
    assert "checks the inputs and tokenises the data on a CPU, before any GPU" in message(resource, "Progressing")
    planned, resource = step(resource, jobs=[preflight(ZH)])
    assert (resource.status.phase, resource.status.restarts, resource.status.failure) == ("Running", 0, None)
    told = "Attempt 1 checks the inputs and tokenises the data on a CPU, before any GPU is taken."
    assert message(resource, "Progressing") == told
    (attempt,) = resource.status.attempts
    assert (attempt.preflight, attempt.ended) == (True, None)
    assert gpus(planned) == 0


def test_the_training_follows_a_success_at_once_and_as_no_restart():
    resource = pretrain_job("zh", compute=GPUS, maxRestarts=0)
    planned, resource = step(resource, jobs=[preflight(ZH, state="Complete", ended=later(5))], now=later(5))
    assert (planned.attempt, planned.not_before, planned.preflight, gpus(planned)) == (2, None, False, 8)
    assert (resource.status.restarts, resource.status.failure, resource.status.artifact) == (0, None, None)
    assert [(a.number, a.reason, a.counted, a.preflight) for a in resource.status.attempts] == [
        (1, "Succeeded", False, True)
    ]
    assert message(resource, "Progressing") == "Attempt 2 is being started. The inputs are checked."
    assert message(resource, "Complete") == "The run is not finished."
    assert "Service" in made(planned)
    _, resource = step(resource, jobs=[done(ZH, 2)], now=later(2000))
    assert resource.status.phase == "Succeeded"
    assert [a.preflight for a in resource.status.attempts] == [True, False]


def test_bad_input_ends_the_run_and_no_gpu_was_asked_for():
    words = said("BadInput", "The text is not JSON.", file="zh/a.jsonl", line=7, hint="Mend the line.")
    planned, resource = step(ZH, jobs=[fallen(ZH, 42, termination=words)])
    assert planned.children == ()
    assert (resource.status.phase, resource.status.failure.message) == (
        "Failed",
        "zh/a.jsonl, line 7: The text is not JSON.",
    )


FALLS = [
    ("evicted", {"exit_code": 143, "disrupted": True}, 0, 0),
    ("stopped", {"exit_code": 75, "termination": said("Interrupted", "x")}, 0, 0),
    ("its node lost", {"exit_code": None, "reason": "Lost"}, 0, 0),
    ("short of memory", {"exit_code": 137, "reason": "OOMKilled"}, 1, 10),
    ("short of disk", {"exit_code": 75, "termination": said("DiskFull", "x")}, 1, 10),
    ("crashed", {"exit_code": 1}, 1, 10),
]


@pytest.mark.parametrize(("facts", "restarts", "pause"), [row[1:] for row in FALLS], ids=[row[0] for row in FALLS])
def test_one_that_fell_is_made_again_as_a_preflight(facts, restarts, pause):
    fell = [fallen(ZH, facts["exit_code"], **{name: value for name, value in facts.items() if name != "exit_code"})]
    planned, resource = step(ZH, jobs=fell, now=later(500))
    assert resource.status.restarts == restarts
    assert planned.not_before == (later(500 + pause) if pause else None)
    planned, resource = step(resource, now=later(500 + pause))
    assert (planned.attempt, planned.preflight, gpus(planned)) == (2, True, 0)
    planned, resource = step(resource, jobs=[preflight(ZH, 2, "Complete")], now=later(1500))
    assert (planned.attempt, planned.preflight, gpus(planned)) == (3, False, 8)
    assert resource.status.failure is None


def test_an_interrupted_training_needs_no_second_preflight():
    jobs = [preflight(ZH, 1, "Complete"), ended(ZH, 143, 2, disrupted=True)]
    planned, resource = step(ZH, jobs=jobs, now=later(1500))
    assert (planned.attempt, planned.preflight, gpus(planned)) == (3, False, 8)
    assert step(resource, now=later(1500))[0].children == planned.children, "nor when its Jobs are gone"


def test_a_training_from_before_there_were_preflights_goes_on_as_it_is():
    living = with_status(ZH, Status(attempts=[Attempt(number=1, started=NOW, counted=False)]))
    for jobs in ([job(ZH)], []):
        planned, resource = step(living, jobs=jobs)
        assert (planned.attempt, planned.preflight, gpus(planned)) == (1, False, 8)
        assert resource.status.attempts[0].preflight is False


def test_success_in_quick_succession_is_no_fault():
    short = [
        Attempt(number=number, started=NOW, ended=later(5), reason="Interrupted", counted=False, preflight=True)
        for number in (1, 2)
    ]
    passed = Attempt(number=3, started=NOW, ended=later(5), reason="Succeeded", counted=False, preflight=True)
    planned, resource = step(with_status(ZH, Status(attempts=[*short, passed])), now=later(5))
    assert (planned.attempt, planned.not_before) == (4, None)
    planned, _ = step(resource, jobs=[replace(ended(ZH, 143, 4, disrupted=True), ended=later(3002))], now=later(3002))
    assert (planned.attempt, planned.not_before) == (5, None)


def test_the_success_is_remembered_however_many_attempts_follow():
    passed = checked(ZH).status.attempts
    more = [
        Attempt(number=n, started=later(n), ended=later(n + 900), reason="Interrupted", exit_code=75, counted=False)
        for n in range(2, MAX_KEPT + 1)
    ]
    _, resource = step(
        with_status(ZH, Status(attempts=[*passed, *more])),
        jobs=[ended(ZH, 143, MAX_KEPT + 1, disrupted=True)],
        now=later(10**6),
    )
    kept = resource.status.attempts
    assert (len(kept), kept[0].number, kept[0].preflight, kept[1].number) == (MAX_KEPT, 1, True, 3)


def test_it_resumes_from_nothing():
    before = with_status(ZH, Status(checkpoint=CheckpointStatus(step=400)))
    _, resource = step(before, jobs=[preflight(ZH)])
    assert resource.status.attempts[0].resumed_from_step is None


def test_its_time_counts_against_the_deadline():
    resource = pretrain_job("zh", compute=GPUS, activeDeadlineSeconds=700)
    planned, told = step(resource, jobs=[preflight(ZH, state="Complete")], now=later(500))
    assert made(planned)["Job"]["spec"]["activeDeadlineSeconds"] == 200
    planned, told = step(resource, jobs=[preflight(ZH, state="Complete", ended=later(800))], now=later(800))
    assert (planned.children, told.status.failure.reason) == ((), "DeadlineExceeded")


def test_a_suspended_run_makes_none_and_one_that_is_suspended_goes_on_as_itself():
    assert step(suspended(ZH))[0].children == ()
    planned, resource = step(suspended(ZH), jobs=[preflight(ZH, state="Suspended")])
    assert (resource.status.phase, made(planned)["Job"]["spec"]["suspend"]) == ("Suspended", True)
    planned, resource = step(suspended(resource, suspend=False), jobs=[preflight(ZH, state="Suspended")])
    assert (planned.attempt, planned.preflight, made(planned)["Job"]["spec"]["suspend"]) == (1, True, False)


def test_want_of_memory_twice_in_a_row_fails_the_run():
    first = fallen(ZH, 137, reason="OOMKilled")
    _, resource = step(ZH, jobs=[first], now=later(500))
    _, resource = step(resource, jobs=[first, fallen(ZH, 137, 2, reason="OOMKilled")], now=later(1500))
    assert (resource.status.phase, resource.status.failure.reason) == ("Failed", "OutOfMemory")


def test_several_nodes_need_a_volume_for_several_before_anything_is_checked():
    resource = pretrain_job("zh", compute=GPUS, workspace={"claim": "mine"})
    planned, _ = step(resource, volumes=["weights", "corpora", "mi-base", volume("mine", "ReadWriteOnce")])
    assert planned.children == ()
    assert "mounted by one node" in planned.refused.message


def test_work_that_was_published_already_ends_the_run_without_gpus():
    words = said("Succeeded", artifact=artifact(ZH))
    found = preflight(ZH, state="Complete", pods=(pod(exit_code=0, phase="Succeeded", termination=words),))
    planned, resource = step(ZH, jobs=[found], now=later(500))
    assert (planned.children, resource.status.phase) == ((), "Succeeded")
    assert step(resource, now=later(900))[1].status == resource.status


def test_only_a_preflight_may_end_without_an_artifact():
    assert ending(preflight(ZH, state="Complete")).reason == "Succeeded"
    assert ending(job(ZH, state="Complete")).reason == "Crashed"


WAY = [
    ("nothing is made", []),
    ("the preflight waits", [preflight(ZH, state="Pending")]),
    ("the preflight works", [preflight(ZH)]),
    ("the preflight was evicted", [fallen(ZH, 143, disrupted=True)]),
    ("the second preflight works", [fallen(ZH, 143, disrupted=True), preflight(ZH, 2)]),
    ("it succeeded", [fallen(ZH, 143, disrupted=True), preflight(ZH, 2, "Complete")]),
    ("the training works", [fallen(ZH, 143, disrupted=True), preflight(ZH, 2, "Complete"), job(ZH, 3)]),
]


def along_the_way():
    """Each place of the way with the status that was reported up to it."""
    resource = ZH
    for number, (where, jobs) in enumerate(WAY):
        _, resource = step(resource, jobs=jobs, now=later(1000 * number))
        yield pytest.param(resource, jobs, later(1000 * number), id=where)


@pytest.mark.parametrize(("resource", "jobs", "now"), along_the_way())
def test_the_plan_is_the_same_with_the_status_lost_with_the_jobs_lost_or_with_both_there(resource, jobs, now):
    """The last write may be lost at any point, and so may the Jobs once they are recorded."""
    planned, told = step(resource, jobs=jobs, now=now)
    assert told.status == resource.status
    for lost in (with_status(resource, None), resource):
        for left in (jobs, jobs[-1:]):
            again, _ = step(lost, jobs=left, now=now)
            assert json.dumps(again.children) == json.dumps(planned.children)
    recorded, _ = step(resource, jobs=[], now=now)
    assert json.dumps(recorded.children) == json.dumps(planned.children)


def test_where_status_and_jobs_are_lost_the_checks_are_made_anew():
    planned, _ = step(with_status(ZH, None), now=later(10**6))
    assert (planned.attempt, planned.preflight) == (1, True)
