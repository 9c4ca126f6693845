"""plan: what would be made, what the API server says to it, what the cluster lacks; nothing is written."""

import json

import pytest
import yaml

from builders import manifest
from kubectl.objects import claim, failed, job, labels, model_import, pod, pretrain, running, server, succeeded

MERGE = manifest("LoRAMerge", "merged", {"model": {"modelImport": "base"}, "adapters": [{"pretrainJob": "zh"}]})
SAME = {"claim": "weights", "path": "x"}
LORA = {"recipe": {"maxSteps": 10}}


@pytest.fixture
def volumes(cluster):
    cluster.add({**claim("weights"), "status": {"phase": "Bound"}})
    cluster.add({**claim("corpora"), "status": {"phase": "Bound"}})
    cluster.add(node("node-0", 8), None)
    return cluster


def node(name, gpus):
    ready = {"type": "Ready", "status": "True"}
    allocatable = {"nvidia.com/gpu": str(gpus)} if gpus else {}
    status = {"conditions": [ready], "allocatable": allocatable}
    return {"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}, "status": status}


def table(out):
    return [line.split()[:2] for line in out.splitlines()[1:] if line.startswith(tuple("✘○+✔")) and ": " not in line]


def test_a_pipeline_is_planned_whole_and_nothing_is_written(volumes, plugin):
    pipeline = plugin.write(server(model={"loraMerge": "merged"}), MERGE, pretrain(**LORA), model_import())
    code, out, err = plugin("plan", pipeline)
    assert (code, err) == (0, "")
    assert table(out) == [
        ["+", "ModelImport/base"],
        ["+", "PretrainJob/zh"],
        ["+", "LoRAMerge/merged"],
        ["+", "ModelServer/chat"],
    ]
    assert "Deployment ms-chat  lm/merged" in out
    assert "4 of 4 resources can run; nothing was touched." in out
    assert {path.rpartition("/")[2] for path in volumes.requests("POST")} == {
        "modelimports",
        "pretrainjobs",
        "loramerges",
        "modelservers",
    }
    assert all(query["dryRun"] == "All" for method, _, query, _ in volumes.seen if method != "GET")


WRONG = {
    "a reference to nothing": ([pretrain()], "PretrainJob/zh: spec.model.modelImport: there is no ModelImport base"),
    "a volume that is not there": (
        [model_import(source={"volume": {"claim": "nowhere"}})],
        "ModelImport/base: spec.source.volume: the volume nowhere does not exist. Create the PersistentVolumeClaim",
    ),
    "one path for two": (
        [model_import(workspace=SAME), model_import("second", workspace=SAME)],
        "ModelImport/second: spec.workspace: x on the volume weights belongs to ModelImport base",
    ),
    "several nodes on a volume of one": (
        [model_import(), pretrain(compute={"nodes": 2}, workspace={"claim": "single"})],
        "PretrainJob/zh: spec.workspace.claim: the volume single is ReadWriteOnce",
    ),
}


@pytest.mark.parametrize(("manifests", "told"), WRONG.values(), ids=WRONG)
def test_what_would_never_run_is_told_and_ends_with_1(volumes, plugin, manifests, told):
    volumes.add({**claim("single", "ReadWriteOnce"), "status": {"phase": "Bound"}})
    code, out, _ = plugin("plan", plugin.write(*manifests))
    assert code == 1
    assert any(told in line for line in out.splitlines() if line.startswith("✘ ")), out


def test_a_claim_of_the_same_manifests_is_there_soon(volumes, plugin):
    new = model_import(source={"volume": {"claim": "new"}})
    assert plugin("plan", plugin.write(claim("new"), new))[0] == 0


def test_the_api_servers_own_refusal_is_told(volumes, plugin):
    volumes.refusals["POST", "/modelimports"] = (
        403,
        'admission webhook "quota.example.com" denied the request: too many',
    )
    code, out, _ = plugin("plan", plugin.write(model_import()))
    assert code == 1
    assert "denied the request: too many" in out


def test_a_forbidden_change_is_refused_in_the_words_of_the_crd(volumes, plugin):
    volumes.add(model_import(), **running())
    code, out, _ = plugin("plan", plugin.write(model_import(source={"volume": {"claim": "corpora"}})))
    assert code == 1
    assert "The API server refuses it: spec.source: Invalid value." in out


def test_an_allowed_change_is_an_update_and_the_same_again_is_none(volumes, plugin):
    volumes.add(model_import(), phase="Pending")
    again = json.loads(plugin("plan", plugin.write(model_import()), "-o", "json")[1])
    other = yaml.safe_load(plugin("plan", plugin.write(model_import(maxRestarts=9)), "-o", "yaml")[1])
    assert (again[0]["action"], other["action"]) == ("unchanged", "updated")
    assert [child["kind"] for child in again[0]["children"]] == ["PersistentVolumeClaim", "ConfigMap", "Job"]


def test_a_run_at_work_stays_at_work(volumes, plugin):
    volumes.add(model_import(), **succeeded("model", "weights"))
    zh = volumes.add(pretrain(**LORA), **running())
    owner = {"apiVersion": "x", "kind": "PretrainJob", "name": "zh", "uid": zh["metadata"]["uid"], "controller": True}
    made = volumes.add(job(startTime="2026-01-02T03:00:00Z", active=1))
    made["metadata"]["ownerReferences"] = [owner]
    of_job = {**owner, "kind": "Job", "name": "pj-zh-1", "uid": made["metadata"]["uid"]}
    volumes.add(pod(0, ownerReferences=[of_job]))
    found = json.loads(plugin("plan", plugin.write(pretrain(**LORA)), "-o", "json")[1])
    assert (found[0]["attempt"], found[0]["action"], found[0]["problems"]) == (1, "unchanged", [])


def test_what_is_done_and_what_has_failed_is_told(volumes, plugin):
    volumes.add(model_import(), **succeeded("model", "weights"))
    volumes.add(pretrain(**LORA), **failed())
    code, out, _ = plugin("plan", plugin.write(model_import(), pretrain(**LORA)))
    assert code == 1
    assert "nothing, it is done" in out
    assert "It has failed before, which never changes" in out


def test_gpus_that_no_node_has_are_no_refusal(volumes, plugin):
    sixteen = pretrain(compute={"gpusPerNode": 16}, **LORA)
    code, out, _ = plugin("plan", plugin.write(model_import(), sixteen))
    assert code == 0
    assert "! PretrainJob/zh: asks for 16 GPUs a pod (nvidia.com/gpu), and the largest has 8" in out
    assert "1 of them not on this cluster as it is" in out
    volumes.refusals["GET", "/nodes"] = 403, "nodes is forbidden"
    assert "asks for" not in plugin("plan", plugin.write(model_import(), sixteen))[1]


def test_the_images_are_those_of_the_operator_that_serves_the_namespace(volumes, plugin):
    volumes.add(
        operator("--namespace=team", "--trainer-image=mirror/trainer:7", "--server-image=mirror/server:7"), "ops"
    )
    children = json.loads(plugin("plan", plugin.write(model_import()), "-o", "json")[1])[0]["children"]
    assert children[-1]["spec"]["template"]["spec"]["containers"][0]["image"] == "mirror/trainer:7"


def operator(*arguments, **more):
    marks = {"app.kubernetes.io/part-of": "herdsman", "app.kubernetes.io/component": "operator"}
    pod_spec = {"serviceAccountName": "herdsman", "containers": [{"name": "operator", "args": list(arguments)}]}
    spec = {"replicas": 1, "template": {"spec": pod_spec}}
    metadata = {"name": "herdsman", "labels": {**marks, "app.kubernetes.io/version": more.get("version", "0.1.0")}}
    status = {"readyReplicas": more.get("ready", 1)}
    return {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": metadata, "spec": spec, "status": status}


def test_a_manifest_says_its_namespace_or_the_options_do(volumes, plugin):
    volumes.add({**claim("weights"), "status": {"phase": "Bound"}}, "other")
    placed = {**model_import(), "metadata": {"name": "base", "namespace": "other"}}
    assert plugin("plan", plugin.write(placed))[0] == 0
    assert volumes.requests("POST")[-1].startswith("/apis/herdsman.dev/v1alpha1/namespaces/other/")
    code, _, err = plugin("plan", plugin.write(placed), "-n", "team")
    assert (code, "says namespace: other, and -n says team" in err) == (2, True)


def test_wrong_manifests_end_with_2_before_the_cluster_is_asked(volumes, plugin):
    code, _, err = plugin("plan", plugin.write(pretrain(stage="Lora")))
    assert (code, "did you mean LoRA?" in err) == (2, True)
    assert volumes.seen == []


def test_labels_of_the_pods_are_asked_for(volumes, plugin):
    plugin("plan", plugin.write(model_import()))
    selectors = [query["labelSelector"] for _, path, query, _ in volumes.seen if path.endswith("/pods")]
    name = "app.kubernetes.io/managed-by"
    assert selectors == [f"{name}={labels('PretrainJob', 'zh')[name]}"]
