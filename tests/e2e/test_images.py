"""The images in a namespace that enforces the restricted Pod Security Standard: what they hold, and that they work."""

import base64
import json
import os
import shutil
import subprocess
import time
import uuid
from collections.abc import Iterator
from typing import Any

import pytest

from e2e_cluster import kubectl
from e2e_images import image
from herdsman.api.job_config import Input, Launch, ModelImportConfig, Owner, PretrainConfig, ServerConfig, WorkspaceDir
from herdsman.api.v1alpha1.model_import import Initialise
from herdsman.api.v1alpha1.recipes import (
    Batch,
    Checkpoints,
    DeepSpeed,
    Lora,
    PretrainRecipe,
    Schedule,
    resolve_pretrain,
)
from herdsman.kube.rules import RULES
from tiny import ENGLISH, tiny_sentencepiece

pytestmark = [pytest.mark.e2e, pytest.mark.images, pytest.mark.timeout(3600)]

IMAGES = ("operator", "trainer", "server")
VOLUME, PORT = "/volumes/data", 8000
READY = '{.status.conditions[?(@.type=="Ready")].status}'
INSPECT = """
import importlib.util, json, os, shutil
def writable(path):
    try:
        open(path, "w").close()
    except OSError as error:
        return error.strerror
    os.remove(path)
    return "yes"
status = dict(line.split(":", 1) for line in open("/proc/self/status").read().splitlines())
print(json.dumps({
    "uid": os.getuid(),
    "gid": os.getgid(),
    "capabilities": [status[name].strip() for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")],
    "root": writable("/probe"),
    "environment": writable("/opt/herdsman/probe"),
    "tmp": writable("/tmp/probe"),
    "tools": [name for name in ("pip", "pip3", "cc", "gcc", "g++", "clang", "make") if shutil.which(name)],
    "bytecode": os.path.exists(importlib.util.cache_from_source(importlib.util.find_spec("herdsman.api.meta").origin)),
}))
"""


@pytest.fixture(scope="module")
def namespace() -> Iterator[str]:
    """A namespace that refuses every pod the restricted standard does not allow; it goes with the tests."""
    if not os.environ.get("KUBECONFIG") or not shutil.which("kubectl"):
        pytest.skip("needs a Kubernetes cluster: set KUBECONFIG and have kubectl on PATH, or use `make e2e`")
    name = f"herdsman-images-{uuid.uuid4().hex[:6]}"
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}})
    yield name
    kubectl("delete", "namespace", name, "--wait=false")


@pytest.fixture(scope="module")
def data(namespace, tmp_path_factory) -> str:
    """A volume, and a ConfigMap with a tokenizer and a corpus; their name."""
    model = tiny_sentencepiece(tmp_path_factory.mktemp("tokenizer")) / "tokenizer.model"
    claim = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}
    apply(
        {**named("v1", "PersistentVolumeClaim", namespace, "data"), "spec": claim},
        {
            **named("v1", "ConfigMap", namespace, "data"),
            "data": {"corpus.txt": ENGLISH * 8},
            "binaryData": {"tokenizer.model": base64.b64encode(model.read_bytes()).decode()},
        },
    )
    return "data"


@pytest.fixture(scope="module")
def model(namespace, data) -> str:
    """The path of a freshly initialised model, made by the trainer image."""
    shape = {"hidden_size": 32, "intermediate_size": 64, "layers": 2, "attention_heads": 4}
    config = ModelImportConfig(
        **frame("ModelImport", "base"),
        initialise=Initialise.model_validate(shape | {"tokenizer": {"volume": {"claim": "given"}}}),
        tokenizer=given(".", "spec.source.initialise.tokenizer"),
    )
    run_job(namespace, "base", config.to_json(), pods=1)
    return f"{VOLUME}/base/artifact"


def named(version: str, kind: str, namespace: str, name: str) -> dict[str, Any]:
    return {"apiVersion": version, "kind": kind, "metadata": {"name": name, "namespace": namespace}}


def apply(*manifests: dict[str, Any]) -> None:
    listed = {"apiVersion": "v1", "kind": "List", "items": list(manifests)}
    argv = ["kubectl", "apply", "--server-side", "-f", "-"]
    ran = subprocess.run(argv, input=json.dumps(listed), capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0, ran.stderr


def pod_spec(container: dict[str, Any], volumes: dict[str, tuple[str, dict[str, Any]]]) -> dict[str, Any]:
    """A pod as strict as the operator's: nothing but /tmp and the named volumes (name: (path, source)) is writable."""
    mounted = {"tmp": ("/tmp", {"emptyDir": {}}), **volumes}
    return {
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "restartPolicy": "Never",
        "securityContext": {"runAsNonRoot": True, "fsGroup": 10001, "seccompProfile": {"type": "RuntimeDefault"}},
        "terminationGracePeriodSeconds": 5,
        "containers": [
            {
                "name": "main",
                "imagePullPolicy": "IfNotPresent",
                "securityContext": {
                    "allowPrivilegeEscalation": False,
                    "capabilities": {"drop": ["ALL"]},
                    "readOnlyRootFilesystem": True,
                },
                "volumeMounts": [{"name": name, "mountPath": path} for name, (path, _) in mounted.items()],
                **container,
            }
        ],
        "volumes": [{"name": name, **source} for name, (_, source) in mounted.items()],
    }


def run_pod(namespace: str, name: str, container: dict[str, Any]) -> str:
    """Run a pod to its end and return its log; it must have succeeded."""
    apply({**named("v1", "Pod", namespace, name), "spec": pod_spec(container, {})})
    phase = wait_until(namespace, f"pod/{name}", "{.status.phase}", {"Succeeded", "Failed"})
    log = kubectl("logs", "-n", namespace, name)
    assert phase == "Succeeded", log
    return log


def run_job(namespace: str, name: str, config: dict[str, Any], *, pods: int) -> list[dict[str, Any]]:
    """Run a step of the trainer image in `pods` pods and return the termination messages; all must have succeeded."""
    volumes = {"config": ("/etc/herdsman", {"configMap": {"name": name}}), **shared_volumes()}
    argv = ["python", "-m", "herdsman_trainer", "--config", "/etc/herdsman/job.json"]
    spec = {**pod_spec({"image": image("trainer"), "command": argv}, volumes), "subdomain": name}
    selector = {"job-name": name}
    job = {"completionMode": "Indexed", "completions": pods, "parallelism": pods, "backoffLimit": 0}
    apply(
        {**named("v1", "ConfigMap", namespace, name), "data": {"job.json": json.dumps(config)}},
        {
            **named("v1", "Service", namespace, name),
            "spec": {"clusterIP": "None", "publishNotReadyAddresses": True, "selector": selector},
        },
        {**named("batch/v1", "Job", namespace, name), "spec": {**job, "template": {"spec": spec}}},
    )
    ended = '{.status.conditions[?(@.status=="True")].type}'
    types = wait_until(namespace, f"job/{name}", ended, {"Complete", "Failed"}, seconds=300)
    assert "Complete" in types, kubectl("logs", "-n", namespace, "-l", f"job-name={name}", "--tail=50", "--prefix")
    found = json.loads(kubectl("get", "pods", "-n", namespace, "-l", f"job-name={name}", "-o", "json"))["items"]
    states = [pod["status"]["containerStatuses"][0]["state"]["terminated"] for pod in found]
    return [json.loads(state["message"]) for state in states]


def wait_until(namespace: str, what: str, path: str, ends: set[str], seconds: float = 120) -> str:
    """Poll a field of an object until it holds one of the words, and return the field."""
    deadline = time.monotonic() + seconds
    while True:
        value = kubectl("get", what, "-n", namespace, "-o", f"jsonpath={path}")
        if ends & set(value.split()):
            return value
        assert time.monotonic() < deadline, kubectl("describe", what, "-n", namespace)
        time.sleep(0.5)


def shared_volumes() -> dict[str, tuple[str, dict[str, Any]]]:
    return {
        "data": (VOLUME, {"persistentVolumeClaim": {"claimName": "data"}}),
        "given": ("/volumes/given", {"configMap": {"name": "data"}}),
    }


def given(file: str, field: str) -> Input:
    return Input(root="/volumes/given", path=f"/volumes/given/{file}", field=field)


def on_volume(path: str, field: str) -> Input:
    return Input(root=VOLUME, path=path, field=field)


def frame(kind: str, name: str) -> dict[str, Any]:
    return {
        "owner": Owner(kind=kind, name=name, uid=name),
        "attempt": 1,
        "workspace": WorkspaceDir(root=VOLUME, path=f"{VOLUME}/{name}", claim="data", relative=name),
    }


@pytest.mark.parametrize("name", IMAGES)
def test_the_entry_point_answers_help(namespace, name):
    said = run_pod(namespace, f"help-{name}", {"image": image(name), "args": ["--help"]})
    assert "usage:" in said.lower()


@pytest.mark.parametrize("name", IMAGES)
def test_a_container_has_no_privileges_and_no_tools_and_writes_to_tmp_only(namespace, name):
    said = run_pod(namespace, f"inspect-{name}", {"image": image(name), "command": ["python", "-c", INSPECT]})
    assert json.loads(said) == {
        "uid": 10001,
        "gid": 10001,
        "capabilities": ["0000000000000000"] * 5,
        "root": "Read-only file system",
        "environment": "Read-only file system",
        "tmp": "yes",
        "tools": [],
        "bytecode": True,
    }


def test_the_operator_is_ready_with_nothing_but_a_role(namespace, crds):
    """Its image lacks most of the Kubernetes client; connecting, listing and watching do without."""
    who = {"kind": "ServiceAccount", "name": "operator", "namespace": namespace}
    role = {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "operator"}
    apply(
        named("v1", "ServiceAccount", namespace, "operator"),
        {**named("rbac.authorization.k8s.io/v1", "Role", namespace, "operator"), "rules": [r.to_json() for r in RULES]},
        {
            **named("rbac.authorization.k8s.io/v1", "RoleBinding", namespace, "operator"),
            "roleRef": role,
            "subjects": [who],
        },
    )
    container = {"image": image("operator"), "args": ["--namespace", namespace, "--metrics-port", str(PORT)]}
    container["readinessProbe"] = {"httpGet": {"path": "/readyz", "port": PORT}, "periodSeconds": 1}
    account = {"serviceAccountName": "operator", "automountServiceAccountToken": True}
    apply({**named("v1", "Pod", namespace, "operator"), "spec": pod_spec(container, {}) | account})
    wait_until(namespace, "pod/operator", READY, {"True"})


def test_the_trainer_initialises_a_model_on_a_volume(namespace, model):
    listed = ["python", "-c", f"import os; print(sorted(os.listdir({model!r})))"]
    container = {"image": image("trainer"), "command": listed}
    spec = pod_spec(container, shared_volumes())
    apply({**named("v1", "Pod", namespace, "look"), "spec": spec})
    assert wait_until(namespace, "pod/look", "{.status.phase}", {"Succeeded", "Failed"}) == "Succeeded"
    assert "model.safetensors" in kubectl("logs", "-n", namespace, "look")


def test_two_pods_train_with_zero_2_without_a_compiler(namespace, model):
    recipe = PretrainRecipe(
        lora=Lora(rank=2, alpha=4, dropout=0.0, targets=["q_proj", "v_proj"], train_fully=["embed_tokens", "lm_head"]),
        block_size=32,
        batch=Batch(global_sequences=4, micro_sequences=2),
        learning_rate=1e-2,
        schedule=Schedule(kind="cosine", warmup_ratio=0.1),
        precision="float32",
        gradient_checkpointing=False,
        max_steps=4,
        checkpoints=Checkpoints(every_steps=2, keep_last=1),
        seed=7,
    )
    config = PretrainConfig(
        **frame("PretrainJob", "zero"),
        launch=Launch(nodes=2, master_address="zero-0.zero", master_port=29500),
        model=on_volume(model, "spec.model"),
        dataset=given("corpus.txt", "spec.dataset"),
        deepspeed=DeepSpeed(zero_stage=2),
        stage="LoRA",
        recipe=resolve_pretrain(recipe, "LoRA"),
    )
    messages = run_job(namespace, "zero", config.to_json(), pods=2)
    assert [message["reason"] for message in messages] == ["Succeeded"] * 2
    assert max(message.get("step", 0) for message in messages) == 4  # rank 0 counts the steps
    assert {message["artifact"]["kind"] for message in messages} == {"adapter"}


def test_the_server_serves_the_model(namespace, model):
    config = ServerConfig(
        owner=Owner(kind="ModelServer", name="chat", uid="chat"),
        model=on_volume(model, "spec.model"),
        model_name="tiny",
        template="alpaca",
        port=PORT,
    )
    container = {"image": image("server"), "args": ["--config", "/etc/herdsman/job.json"]}
    volumes = {"config": ("/etc/herdsman", {"configMap": {"name": "chat"}}), **shared_volumes()}
    container["readinessProbe"] = {"httpGet": {"path": "/readyz", "port": PORT}, "periodSeconds": 1}
    apply(
        {**named("v1", "ConfigMap", namespace, "chat"), "data": {"job.json": json.dumps(config.to_json())}},
        {**named("v1", "Pod", namespace, "chat"), "spec": pod_spec(container, volumes)},
    )
    wait_until(namespace, "pod/chat", READY, {"True"})
    proxy = f"/api/v1/namespaces/{namespace}/pods/chat:{PORT}/proxy/v1/models"
    assert [served["id"] for served in json.loads(kubectl("get", "--raw", proxy))["data"]] == ["tiny"]
