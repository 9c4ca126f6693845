"""Runs as real pods: the trainer's image on a real node, made and watched by the operator with a Role only."""

import json

import pytest

from e2e_cluster import kubectl
from e2e_operator import API, eventually
from e2e_runs import SMALL, base, claim, evict, on_claim, place, python_pod, reached, succeeded, training

pytestmark = [pytest.mark.e2e, pytest.mark.images, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module", autouse=True)
def model(namespace, operator):
    """ModelImport/base, which all of them train."""
    namespace.apply(base())


def test_a_model_is_trained_merged_and_served(namespace, operator):
    merge = {"model": {"modelImport": "base"}, "adapters": [{"pretrainJob": "zh"}], "compute": SMALL}
    server = {"model": {"loraMerge": "merged"}, "compute": SMALL}
    namespace.apply(
        {**API, "kind": "ModelServer", "metadata": {"name": "chat"}, "spec": server},
        {**API, "kind": "LoRAMerge", "metadata": {"name": "merged"}, "spec": {**merge, "workspace": place("merged")}},
        training("zh"),
    )
    for kind, name in (("modelimport", "base"), ("pretrainjob", "zh"), ("loramerge", "merged")):
        status = reached(namespace, operator, kind, name, "Succeeded")
        assert [attempt["reason"] for attempt in status["attempts"]] == ["Succeeded"]
        assert status["artifact"]["path"] == f"runs/{name}/artifact"
    figures = {item["name"] for item in namespace.status("pretrainjob", "zh")["report"]}
    assert {"steps", "train_loss_last", "trainable_parameters"} <= figures
    status = reached(namespace, operator, "modelserver", "chat", "Ready")
    assert status["url"] == f"http://ms-chat.{namespace.name}.svc:8000/v1"
    answer = kubectl("get", "--raw", f"/api/v1/namespaces/{namespace.name}/services/ms-chat:8000/proxy/v1/models")
    assert json.loads(answer)["data"][0]["id"] == "chat"


def test_bad_input_is_told_by_the_trainers_last_words_and_not_tried_again(namespace, operator):
    namespace.apply(training("wrong", dataset={"volume": {"claim": "data", "path": "nothing-there"}}))
    status = reached(namespace, operator, "pretrainjob", "wrong", "Failed", 180)
    assert len(status["attempts"]) == 1
    assert status["failure"]["exitCode"] == 42
    assert "nothing-there" in status["failure"]["message"]
    assert status["failure"]["hint"]


def test_inputs_are_checked_before_a_gpu_is_asked_for(namespace, operator):
    """The node has no GPU, so a pod that asks for one waits; what can be found out without one is found out first."""
    compute = {**SMALL, "gpusPerNode": 1}
    nowhere = {"volume": {"claim": "data", "path": "nothing-there"}}
    namespace.apply(training("good", compute=compute), training("bad", compute=compute, dataset=nowhere))

    status = reached(namespace, operator, "pretrainjob", "bad", "Failed", 180)
    assert [(attempt["preflight"], attempt["exitCode"]) for attempt in status["attempts"]] == [(True, 42)]
    assert "nothing-there" in status["failure"]["message"]
    assert [gpus_of(pod) for pod in namespace.all("pods", "-l", "herdsman.dev/name=bad")] == [0]

    def waiting() -> dict | None:
        found = namespace.status("pretrainjob", "good")
        return found if (found.get("failure") or {}).get("reason") == "Unschedulable" else None

    status = eventually(waiting, 180, "the training does not wait for a GPU", operator.log)
    assert (status["attempts"][0]["preflight"], status["attempts"][0]["reason"]) == (True, "Succeeded")
    asked = {
        pod["metadata"]["labels"]["herdsman.dev/attempt"]: gpus_of(pod)
        for pod in namespace.all("pods", "-l", "herdsman.dev/name=good")
    }
    assert asked == {"1": 0, "2": 1}
    kubectl("-n", namespace.name, "delete", "pretrainjob", "good")


def gpus_of(pod) -> int:
    limits = pod["spec"]["containers"][0]["resources"].get("limits", {})
    return int(limits.get("nvidia.com/gpu", 0))


def test_too_little_memory_is_told_and_a_second_time_ends_it(namespace, operator):
    little = {"resources": {"cpu": "100m", "memory": "64Mi"}}
    namespace.apply(training("starved", compute=little))
    status = reached(namespace, operator, "pretrainjob", "starved", "Failed", 240)
    assert {attempt["reason"] for attempt in status["attempts"]} == {"OutOfMemory"}
    assert len(status["attempts"]) == 2  # a third would end the same way
    assert "compute.resources.memory" in status["failure"]["hint"]


def test_a_full_volume_is_told_and_costs_nothing_that_was_saved(namespace, operator):
    """The workspace's claim is of just the size of a few checkpoints; a file takes the rest of it, and goes again."""
    namespace.apply(claim("small", "24Mi", storageClassName="sized", accessModes=["ReadWriteOnce"]))
    recipe = {"maxSteps": 240, "checkpoints": {"everySteps": 20, "keepLast": 2}}
    workspace = {"claim": "small", "path": "run"}
    namespace.apply(training("fills", recipe=recipe, workspace=workspace, maxRestarts=100))
    reached(namespace, operator, "pretrainjob", "fills", "Running")
    pod = namespace.all("pods", "-l", "herdsman.dev/name=fills")[0]["metadata"]["name"]
    there = ("-n", namespace.name, "exec", pod, "--", "python", "-c")
    saved = "import glob; print(len(glob.glob('/volumes/small/run/checkpoints/step-*/manifest.json')))"
    eventually(lambda: int(kubectl(*there, saved) or 0) > 0, 120, "no checkpoint", operator.log)
    fill = (
        "import os\n"
        "with open('/volumes/small/filler', 'wb', buffering=0) as out:\n"
        "    try:\n"
        "        while True: out.write(b'x' * 65536)\n"
        "    except OSError as error: print(error.errno)\n"
    )
    assert kubectl(*there, fill).strip() == "28"
    status = eventually(
        lambda: (
            (found := namespace.status("pretrainjob", "fills"))
            and any(attempt.get("reason") == "DiskFull" for attempt in found.get("attempts", ()))
            and found
        ),
        120,
        "DiskFull is not told",
        operator.log,
    )
    assert status["failure"]["reason"] == "DiskFull"
    assert "larger" in status["failure"]["hint"] or "delete" in status["failure"]["hint"]

    # Not in a pod of the run: on a full volume none of them lives long.
    namespace.apply(python_pod("broom", "import os; os.remove('/data/filler')", {"data": ("/data", on_claim("small"))}))
    succeeded(namespace, "broom")
    status = reached(namespace, operator, "pretrainjob", "fills", "Succeeded", 300)
    assert status["attempts"][-1]["resumedFromStep"] > 0
    assert "failure" not in status


def test_two_pods_train_with_zero_2(namespace, operator):
    compute = {**SMALL, "nodes": 2}
    namespace.apply(training("zero", compute=compute, recipe={"deepspeed": {"zeroStage": 2}}))
    status = reached(namespace, operator, "pretrainjob", "zero", "Succeeded", 400)
    assert [attempt["reason"] for attempt in status["attempts"]] == ["Succeeded"]
    assert status["artifact"]["kind"] == "adapter"
    names = [service["metadata"]["name"] for service in namespace.all("services", "-l", "herdsman.dev/name=zero")]
    assert names == ["pj-zero-1"]


def test_two_pods_train_together_and_one_eviction_interrupts_both(namespace, operator):
    compute = {**SMALL, "nodes": 2}
    recipe = {"maxSteps": 300, "checkpoints": {"everySteps": 5}}
    namespace.apply(training("pair", compute=compute, recipe=recipe))
    reached(namespace, operator, "pretrainjob", "pair", "Running")
    pods = namespace.all("pods", "-l", "herdsman.dev/name=pair")
    assert sorted(pod["spec"]["hostname"] for pod in pods) == ["pj-pair-1-0", "pj-pair-1-1"]
    eventually(
        lambda: namespace.status("pretrainjob", "pair").get("checkpoint", {}).get("step", 0) > 0,
        120,
        "no checkpoint",
        operator.log,
    )
    evict(namespace, pods[1]["metadata"]["name"])
    status = reached(namespace, operator, "pretrainjob", "pair", "Succeeded", 400)
    assert [(attempt["reason"], attempt["counted"]) for attempt in status["attempts"]] == [
        ("Interrupted", False),
        ("Succeeded", False),
    ]
    assert status["attempts"][1].get("resumedFromStep", 0) > 0
    names = [service["metadata"]["name"] for service in namespace.all("services", "-l", "herdsman.dev/name=pair")]
    assert names == ["pj-pair-1", "pj-pair-2"]
