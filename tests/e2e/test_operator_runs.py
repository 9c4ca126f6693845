"""Runs as real pods: the trainer's image on a real node, made and watched by the operator with a Role only."""

import base64
import json
import subprocess
import time

import pytest

from e2e_cluster import kubectl
from e2e_images import image
from e2e_operator import API, Namespace, Operator, eventually
from tiny import ENGLISH, tiny_sentencepiece

pytestmark = [pytest.mark.e2e, pytest.mark.images, pytest.mark.timeout(1800)]

SMALL = {"resources": {"cpu": "100m", "memory": "1Gi"}}
COPY = "import shutil; [shutil.copy(f'/given/{name}', '/data') for name in ('tokenizer.model', 'corpus.txt')]"
SHAPE = {"hiddenSize": 32, "intermediateSize": 64, "layers": 2, "attentionHeads": 4}


@pytest.fixture(scope="module")
def namespace(crds, tmp_path_factory):
    """A namespace with a claim `data` that holds a tokenizer and a corpus."""
    made = Namespace(tmp_path_factory.mktemp("operator"))
    tokenizer = tiny_sentencepiece(tmp_path_factory.mktemp("tokenizer")) / "tokenizer.model"
    shape = {"accessModes": ["ReadWriteMany"], "resources": {"requests": {"storage": "1Gi"}}}
    made.apply(
        {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "data"}, "spec": shape},
        {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": "given"},
            "data": {"corpus.txt": ENGLISH * 20},
            "binaryData": {"tokenizer.model": base64.b64encode(tokenizer.read_bytes()).decode()},
        },
        {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "fill"}, "spec": _filling()},
    )
    done = "--for=jsonpath={.status.phase}=Succeeded"
    kubectl("-n", made.name, "wait", done, "pod/fill", "--timeout=110s")
    yield made
    made.delete()


def _filling():
    safe = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    container = {
        "name": "fill",
        "image": image("trainer"),
        "command": ["python", "-c", COPY],
        "securityContext": safe,
        "volumeMounts": [{"name": "given", "mountPath": "/given"}, {"name": "data", "mountPath": "/data"}],
    }
    return {
        "restartPolicy": "Never",
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": 10001,
            "fsGroup": 10001,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [container],
        "volumes": [
            {"name": "given", "configMap": {"name": "given"}},
            {"name": "data", "persistentVolumeClaim": {"claimName": "data"}},
        ],
    }


@pytest.fixture(scope="module")
def operator(namespace, tmp_path_factory):
    log = tmp_path_factory.mktemp("log") / "operator.log"
    images = ["--trainer-image", image("trainer"), "--server-image", image("server")]
    running = Operator(namespace, log, *images).ready()
    yield running
    running.stop()
    assert "Traceback" not in log.read_text(), log.read_text()[-3000:]


def base():
    tokenizer = {"volume": {"claim": "data", "path": "."}}
    spec = {"source": {"initialise": {"tokenizer": tokenizer, **SHAPE}}, "compute": SMALL, "workspace": _place("base")}
    return {**API, "kind": "ModelImport", "metadata": {"name": "base"}, "spec": spec}


def training(name, **more):
    recipe = {
        "blockSize": 32,
        "batch": {"globalSequences": 4},
        "maxSteps": 6,
        "precision": "float32",
        "checkpoints": {"everySteps": 2},
        "lora": {"rank": 2},
        **more.pop("recipe", {}),
    }
    spec = {
        "model": {"modelImport": "base"},
        "dataset": {"volume": {"claim": "data", "path": "corpus.txt"}},
        "recipe": recipe,
        "compute": SMALL,
        "workspace": _place(name),
        **more,
    }
    return {**API, "kind": "PretrainJob", "metadata": {"name": name}, "spec": spec}


def _place(name):
    return {"claim": "data", "path": f"runs/{name}"}


def reached(namespace, operator, kind, name, phase, seconds=240):
    def look():
        status = namespace.status(kind, name)
        assert status.get("phase") in (phase, None) or status["phase"] != "Failed", json.dumps(status, indent=1)
        return status if status.get("phase") == phase else None

    return eventually(look, seconds, f"{kind} {name} is not {phase}", operator.log)


def test_a_model_is_trained_merged_and_served(namespace, operator):
    merge = {"model": {"modelImport": "base"}, "adapters": [{"pretrainJob": "zh"}], "compute": SMALL}
    server = {"model": {"loraMerge": "merged"}, "compute": SMALL}
    namespace.apply(
        {**API, "kind": "ModelServer", "metadata": {"name": "chat"}, "spec": server},
        {**API, "kind": "LoRAMerge", "metadata": {"name": "merged"}, "spec": {**merge, "workspace": _place("merged")}},
        training("zh"),
        base(),
    )
    for kind, name in (("modelimport", "base"), ("pretrainjob", "zh"), ("loramerge", "merged")):
        status = reached(namespace, operator, kind, name, "Succeeded")
        assert [attempt["reason"] for attempt in status["attempts"]] == ["Succeeded"]
        assert status["artifact"]["path"] == f"runs/{name}/artifact"
    status = reached(namespace, operator, "modelserver", "chat", "Ready")
    assert status["url"] == f"http://ms-chat.{namespace.name}.svc:8000/v1"
    answer = kubectl("get", "--raw", f"/api/v1/namespaces/{namespace.name}/services/ms-chat:8000/proxy/v1/models")
    assert json.loads(answer)["data"][0]["id"] == "chat"


def test_bad_input_is_told_by_the_trainers_last_words_and_not_tried_again(namespace, operator):
    namespace.apply(training("wrong", dataset={"volume": {"claim": "data", "path": "nothing-there"}}))
    status = eventually(
        lambda: (found := namespace.status("pretrainjob", "wrong")).get("phase") == "Failed" and found,
        180,
        "it has not failed",
        operator.log,
    )
    assert len(status["attempts"]) == 1
    assert status["failure"]["exitCode"] == 42
    assert "nothing-there" in status["failure"]["message"]
    assert status["failure"]["hint"]


def test_a_deleted_pod_is_an_interruption_that_costs_no_restart(namespace, operator):
    namespace.apply(training("stopped", recipe={"maxSteps": 400, "checkpoints": {"everySteps": 5}}))
    reached(namespace, operator, "pretrainjob", "stopped", "Running")
    time.sleep(5)
    kubectl("-n", namespace.name, "delete", "pod", "-l", "herdsman.dev/name=stopped", "--wait=false")
    status = reached(namespace, operator, "pretrainjob", "stopped", "Succeeded", 300)
    assert [attempt["counted"] for attempt in status["attempts"]] == [False, False]
    assert status["attempts"][0]["reason"] == "Interrupted"
    assert status["restarts"] == 0


def test_two_pods_train_together_and_one_eviction_interrupts_both(namespace, operator):
    compute = {**SMALL, "nodes": 2}
    recipe = {"maxSteps": 300, "checkpoints": {"everySteps": 5}}
    namespace.apply(training("pair", compute=compute, recipe=recipe))
    reached(namespace, operator, "pretrainjob", "pair", "Running")
    pods = namespace.all("pods", "-l", "herdsman.dev/name=pair")
    assert sorted(pod["spec"]["hostname"] for pod in pods) == ["pj-pair-1-0", "pj-pair-1-1"]
    time.sleep(10)
    name = pods[1]["metadata"]["name"]
    eviction = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": name, "namespace": namespace.name}}
    path = f"/api/v1/namespaces/{namespace.name}/pods/{name}/eviction"
    command = ["kubectl", "create", "--raw", path, "-f", "-"]
    subprocess.run(command, input=json.dumps(eviction), text=True, check=True, capture_output=True, timeout=30)
    status = reached(namespace, operator, "pretrainjob", "pair", "Succeeded", 400)
    assert [(attempt["reason"], attempt["counted"]) for attempt in status["attempts"]] == [
        ("Interrupted", False),
        ("Succeeded", False),
    ]
    assert status["attempts"][1].get("resumedFromStep", 0) > 0
    names = [service["metadata"]["name"] for service in namespace.all("services", "-l", "herdsman.dev/name=pair")]
    assert names == ["pj-pair-1", "pj-pair-2"]
