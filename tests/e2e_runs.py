"""Runs as real pods for the tests on a cluster: a tiny Llama on a volume, and manifests that train it."""

import base64
import json
import subprocess
from pathlib import Path
from typing import Any

from e2e_cluster import kubectl
from e2e_images import image
from e2e_operator import API, Namespace, Operator, eventually
from tiny import ENGLISH, tiny_sentencepiece

SMALL = {"resources": {"cpu": "100m", "memory": "1Gi"}}
SHAPE = {"hiddenSize": 32, "intermediateSize": 64, "layers": 2, "attentionHeads": 4}
COPY = "import shutil; [shutil.copy(f'/given/{name}', '/data') for name in ('tokenizer.model', 'corpus.txt')]"


def claim(name: str, size: str = "1Gi", **more: Any) -> dict[str, Any]:
    spec = {"accessModes": ["ReadWriteMany"], "resources": {"requests": {"storage": size}}, **more}
    return {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": name}, "spec": spec}


def python_pod(name: str, code: str, mounts: dict[str, tuple[str, dict[str, Any]]]) -> dict[str, Any]:
    """A pod of the restricted standard that runs a line of Python; mounts are name: (path, source)."""
    container = {
        "name": "python",
        "image": image("trainer"),
        "command": ["python", "-c", code],
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
        "volumeMounts": [{"name": volume, "mountPath": path} for volume, (path, _) in mounts.items()],
    }
    user = {"runAsNonRoot": True, "runAsUser": 10001, "fsGroup": 10001, "seccompProfile": {"type": "RuntimeDefault"}}
    spec = {
        "restartPolicy": "Never",
        "securityContext": user,
        "containers": [container],
        "volumes": [{"name": volume, **source} for volume, (_, source) in mounts.items()],
    }
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec}


def on_claim(name: str) -> dict[str, Any]:
    return {"persistentVolumeClaim": {"claimName": name}}


def succeeded(namespace: Namespace, pod: str) -> None:
    kubectl("-n", namespace.name, "wait", "--for=jsonpath={.status.phase}=Succeeded", f"pod/{pod}", "--timeout=110s")


def filled_claim(namespace: Namespace, scratch: Path) -> None:
    """Make the claim `data` with a tokenizer and a corpus."""
    tokenizer = tiny_sentencepiece(scratch) / "tokenizer.model"
    given = {"corpus.txt": ENGLISH * 20}
    model = base64.b64encode(tokenizer.read_bytes()).decode()
    mounts = {"given": ("/given", {"configMap": {"name": "given"}}), "data": ("/data", on_claim("data"))}
    namespace.apply(
        claim("data"),
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "given"}, "data": given}
        | {"binaryData": {"tokenizer.model": model}},
        python_pod("fill", COPY, mounts),
    )
    succeeded(namespace, "fill")


def place(name: str) -> dict[str, Any]:
    return {"claim": "data", "path": f"runs/{name}"}


def base(name: str = "base") -> dict[str, Any]:
    """A freshly initialised tiny Llama."""
    tokenizer = {"volume": {"claim": "data", "path": "."}}
    spec = {"source": {"initialise": {"tokenizer": tokenizer, **SHAPE}}, "compute": SMALL, "workspace": place(name)}
    return {**API, "kind": "ModelImport", "metadata": {"name": name}, "spec": spec}


def training(name: str, **more: Any) -> dict[str, Any]:
    """A PretrainJob of the tiny Llama on the corpus."""
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
        "workspace": place(name),
        **more,
    }
    return {**API, "kind": "PretrainJob", "metadata": {"name": name}, "spec": spec}


def reached(
    namespace: Namespace, operator: Operator | None, kind: str, name: str, phase: str, seconds: float = 240
) -> dict[str, Any]:
    """Wait for a phase and return the status; a resource that fails instead ends the wait."""

    def look() -> dict[str, Any] | None:
        status = namespace.status(kind, name)
        assert phase == "Failed" or status.get("phase") != "Failed", json.dumps(status, indent=1)
        return status if status.get("phase") == phase else None

    log = operator.log if operator is not None else None
    return eventually(look, seconds, f"{kind} {name} is not {phase}", log)


def evict(namespace: Namespace, pod: str) -> None:
    """Evict a pod as `kubectl drain` does."""
    eviction = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": pod, "namespace": namespace.name}}
    path = f"/api/v1/namespaces/{namespace.name}/pods/{pod}/eviction"
    command = ["kubectl", "create", "--raw", path, "-f", "-"]
    ran = subprocess.run(command, input=json.dumps(eviction), text=True, capture_output=True, timeout=30)
    assert ran.returncode == 0, ran.stderr
