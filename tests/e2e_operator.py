"""The operator as a process of its own against a real API server, with a Role and nothing else; and pretend nodes."""

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from admission import PROJECT
from e2e_cluster import kubectl
from herdsman.kube.rules import LEASE_RULES, RULES

NODES = "herdsman-test"
STAGES = PROJECT / "benchmarks" / "operator_stages.yaml"
API = {"apiVersion": "herdsman.dev/v1alpha1"}


class Namespace:
    """A namespace that enforces the restricted Pod Security Standard, and the operator's account in it."""

    def __init__(self, directory: Path, name: str | None = None):
        self.name = name or f"herdsman-op-{uuid.uuid4().hex[:6]}"
        self.kubeconfig = directory / f"{self.name}.kubeconfig"
        labels = {"pod-security.kubernetes.io/enforce": "restricted"}
        self.apply(
            {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": self.name, "labels": labels}},
            {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "operator"}},
            {
                "apiVersion": "rbac.authorization.k8s.io/v1",
                "kind": "Role",
                "metadata": {"name": "operator"},
                "rules": [rule.to_json() for rule in (*RULES, *LEASE_RULES)],
            },
            {
                "apiVersion": "rbac.authorization.k8s.io/v1",
                "kind": "RoleBinding",
                "metadata": {"name": "operator"},
                "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "operator"},
                "subjects": [{"kind": "ServiceAccount", "name": "operator", "namespace": self.name}],
            },
        )
        self._write_kubeconfig()

    def apply(self, *bodies: dict[str, Any]) -> None:
        items = [_placed(body, self.name) for body in bodies]
        document = json.dumps({"apiVersion": "v1", "kind": "List", "items": items})
        command = ["kubectl", "apply", "--server-side", "-f", "-"]
        ran = subprocess.run(command, input=document, text=True, capture_output=True, timeout=60)
        assert ran.returncode == 0, ran.stderr

    def get(self, kind: str, name: str) -> dict[str, Any]:
        return json.loads(kubectl("-n", self.name, "get", kind, name, "-o", "json"))

    def all(self, kind: str, *more: str) -> list[dict[str, Any]]:
        return json.loads(kubectl("-n", self.name, "get", kind, "-o", "json", *more))["items"]

    def status(self, kind: str, name: str) -> dict[str, Any]:
        return self.get(kind, name).get("status") or {}

    def delete(self) -> None:
        kubectl("delete", "namespace", self.name, "--wait=false")

    def _write_kubeconfig(self) -> None:
        config = json.loads(kubectl("config", "view", "--raw", "--minify", "-o", "json"))
        token = kubectl("-n", self.name, "create", "token", "operator", "--duration=1h").strip()
        config["users"] = [{"name": config["users"][0]["name"], "user": {"token": token}}]
        self.kubeconfig.write_text(yaml.safe_dump(config))


def _placed(body: dict[str, Any], namespace: str) -> dict[str, Any]:
    if body["kind"] in ("Namespace", "PersistentVolume", "Node"):
        return body
    return {**body, "metadata": {"namespace": namespace, **body["metadata"]}}


class Wire:
    """A TCP connection to the API server that can be cut and mended, for one operator alone."""

    def __init__(self, namespace: Namespace):
        config = yaml.safe_load(namespace.kubeconfig.read_text())
        cluster = config["clusters"][0]["cluster"]
        server = urllib.parse.urlsplit(cluster["server"])
        self._target = server.hostname, server.port or 443
        self._open: set[socket.socket] = set()
        self._whole = True
        self._listener = socket.create_server(("127.0.0.1", 0))
        threading.Thread(target=self._accept, daemon=True).start()
        cluster["server"] = f"https://127.0.0.1:{self._listener.getsockname()[1]}"
        namespace.kubeconfig.write_text(yaml.safe_dump(config))

    def cut(self) -> None:
        """Break every connection, and every new one."""
        self._whole = False
        for end in list(self._open):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def mend(self) -> None:
        self._whole = True

    def _accept(self) -> None:
        while True:
            near, _ = self._listener.accept()
            if not self._whole:
                near.close()
                continue
            far = socket.create_connection(self._target)
            self._open |= {near, far}
            for source, sink in ((near, far), (far, near)):
                threading.Thread(target=self._copy, args=(source, sink), daemon=True).start()

    def _copy(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                sink.sendall(data)
        for end in (source, sink):
            self._open.discard(end)
            with contextlib.suppress(OSError):
                end.close()


class Operator:
    """`python -m herdsman.kube` with the namespace's own account."""

    def __init__(self, namespace: Namespace, log: Path, *more: str):
        self.port, self.log = _free_port(), log
        command = [sys.executable, "-m", "herdsman.kube", "--namespace", namespace.name, f"--metrics-port={self.port}"]
        environment = {**os.environ, "KUBECONFIG": str(namespace.kubeconfig)}
        with log.open("a") as stream:
            self.process = subprocess.Popen([*command, *more], stderr=stream, env=environment)

    def get(self, path: str) -> str | None:
        """The answer, or None while there is no good one."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=5) as answer:
                return answer.read().decode()
        except (OSError, urllib.error.HTTPError):
            return None

    def ready(self) -> "Operator":
        eventually(lambda: self.get("/readyz") is not None, 60, "the operator is not ready", self.log)
        return self

    def writes(self) -> dict[str, float]:
        """Its own writes by verb and kind."""
        found = {}
        for line in (self.get("/metrics") or "").splitlines():
            labels = dict(re.findall(r'(\w+)="([^"]*)"', line))
            if line.startswith("herdsman_api_requests_total{") and labels["verb"] != "GET":
                found[f"{labels['verb']} {labels['kind']}"] = float(line.rsplit(" ", 1)[1])
        return found

    def metric(self, name: str) -> float:
        text = self.get("/metrics") or ""
        return sum(float(line.rsplit(" ", 1)[1]) for line in text.splitlines() if line.startswith(name))

    def stop(self, number: int = signal.SIGTERM) -> tuple[int, float]:
        """Send a signal; returns the exit code and the seconds it took."""
        begun = time.monotonic()
        self.process.send_signal(number)
        return self.process.wait(timeout=40), time.monotonic() - begun


def eventually(test: Callable[[], Any], seconds: float, what: str, log: Path | None = None) -> Any:
    """Ask again and again until the answer is true; returns it."""
    until = time.monotonic() + seconds
    while not (found := test()):
        if time.monotonic() > until:
            said = "\n".join(log.read_text().splitlines()[-20:]) if log is not None and log.exists() else ""
            raise AssertionError(f"{what} after {seconds} s\n{said}")
        time.sleep(0.2)
    return found


@contextlib.contextmanager
def pretend_nodes(namespace: Namespace, count: int = 2) -> Iterator[dict[str, Any]]:
    """Nodes run by kwok, and a claim `weights` that pods on them can use; yields the compute section to use them."""
    if not shutil.which("kwok"):
        pytest.skip("needs kwok on PATH for pretend nodes")
    room = {"cpu": "64", "memory": "256Gi", "pods": "250"}
    marks = {"annotations": {"kwok.x-k8s.io/node": namespace.name}, "labels": {"type": namespace.name}}
    taint = {"key": NODES, "value": "1", "effect": "NoSchedule"}
    nodes = [
        {
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {"name": f"{namespace.name}-{number}", **marks},
            "spec": {"taints": [taint]},
            "status": {"allocatable": room, "capacity": room},
        }
        for number in range(count)
    ]
    command = ["kwok", "--kubeconfig", os.environ["KUBECONFIG"], "--config", str(STAGES)]
    command += ["--manage-nodes-with-annotation-selector", f"kwok.x-k8s.io/node={namespace.name}"]
    command += ["--node-lease-duration-seconds", "40", "--server-address", f"127.0.0.1:{_free_port()}"]
    kwok = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        namespace.apply(*nodes, *_volume(namespace.name))
        kubectl("wait", "--for=condition=Ready", "node", "-l", f"type={namespace.name}", "--timeout=60s")
        bound = "--for=jsonpath={.status.phase}=Bound"
        kubectl("-n", namespace.name, "wait", bound, "pvc/weights", "--timeout=60s")
        yield {"nodeSelector": {"type": namespace.name}, "tolerations": [{"key": NODES, "operator": "Exists"}]}
    finally:
        kubectl("delete", "node", "-l", f"type={namespace.name}", "--wait=false")
        kubectl("delete", "persistentvolume", namespace.name, "--wait=false", "--ignore-not-found")
        kwok.terminate()
        kwok.wait(timeout=10)


def _volume(namespace: str) -> list[dict[str, Any]]:
    """A volume without a place, so that pods on any node may use it."""
    shape = {"accessModes": ["ReadWriteMany"], "storageClassName": ""}
    size = {"storage": "1Gi"}
    where = {"hostPath": {"path": "/nowhere"}, "claimRef": {"namespace": namespace, "name": "weights"}}
    claim = {**shape, "volumeName": namespace, "resources": {"requests": size}}
    return [
        {
            "apiVersion": "v1",
            "kind": "PersistentVolume",
            "metadata": {"name": namespace},
            "spec": {**shape, **where, "capacity": size},
        },
        {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "weights"}, "spec": claim},
    ]


def imported(name: str, compute: dict[str, Any] | None = None, **spec: Any) -> dict[str, Any]:
    """A ModelImport of a directory on the claim `weights`, written to the same claim."""
    spec = {
        "source": {"volume": {"claim": "weights", "path": "llama"}},
        "workspace": {"claim": "weights", "path": f"runs/{name}"},
        "compute": compute or {},
        **spec,
    }
    return {**API, "kind": "ModelImport", "metadata": {"name": name}, "spec": spec}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
