"""The images in a namespace that enforces the restricted Pod Security Standard: what they hold, and that they work."""

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
from herdsman.kube.rules import RULES

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


def wait_until(namespace: str, what: str, path: str, ends: set[str], seconds: float = 120) -> str:
    """Poll a field of an object until it holds one of the words, and return the field."""
    deadline = time.monotonic() + seconds
    while True:
        value = kubectl("get", what, "-n", namespace, "-o", f"jsonpath={path}")
        if ends & set(value.split()):
            return value
        assert time.monotonic() < deadline, kubectl("describe", what, "-n", namespace)
        time.sleep(0.5)


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
