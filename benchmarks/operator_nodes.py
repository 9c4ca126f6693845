"""The pretend nodes of the operator's benchmark, and a volume that pods on any of them may use."""

import json
import subprocess
from typing import Any

ANNOTATION = "kwok.x-k8s.io/node=herdsman-bench"
PODS_A_NODE = 250


def prepare(namespace: str, nodes: int) -> None:
    status = {"cpu": "128", "memory": "1Ti", "pods": str(PODS_A_NODE)}
    objects: list[dict[str, Any]] = [
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}},
        {
            "apiVersion": "v1",
            "kind": "PersistentVolume",
            "metadata": {"name": namespace},
            "spec": {
                "capacity": {"storage": "1Gi"},
                "accessModes": ["ReadWriteMany"],
                "storageClassName": "",
                "hostPath": {"path": "/nowhere"},
                "claimRef": {"namespace": namespace, "name": "weights"},
            },
        },
        {
            "apiVersion": "v1",
            "kind": "PersistentVolumeClaim",
            "metadata": {"name": "weights", "namespace": namespace},
            "spec": {
                "accessModes": ["ReadWriteMany"],
                "storageClassName": "",
                "volumeName": namespace,
                "resources": {"requests": {"storage": "1Gi"}},
            },
        },
    ]
    for number in range(nodes):
        key, _, value = ANNOTATION.partition("=")
        name = f"herdsman-bench-{number}"
        objects.append(
            {
                "apiVersion": "v1",
                "kind": "Node",
                "metadata": {"name": name, "annotations": {key: value}, "labels": {"type": "herdsman-bench"}},
                "spec": {"taints": [{"key": "herdsman-bench", "value": "1", "effect": "NoSchedule"}]},
                "status": {"allocatable": status, "capacity": status},
            }
        )
    document = json.dumps({"apiVersion": "v1", "kind": "List", "items": objects})
    subprocess.run(
        ["kubectl", "apply", "--server-side", "-f", "-"],
        input=document,
        text=True,
        check=True,
        stdout=subprocess.DEVNULL,
    )
    bound = ["kubectl", "-n", namespace, "wait", "--for=jsonpath={.status.phase}=Bound", "pvc/weights", "--timeout=60s"]
    subprocess.run(bound, check=True, stdout=subprocess.DEVNULL)
    wait = ["kubectl", "wait", "--for=condition=Ready", "node", "-l", "type=herdsman-bench", "--timeout=60s"]
    subprocess.run(wait, check=True, stdout=subprocess.DEVNULL)


def tidy(namespace: str) -> None:
    """Remove everything, and wait until it is gone, so that the next case has the cluster for itself."""
    for what in (["namespace", namespace], ["persistentvolume", namespace], ["node", "-l", "type=herdsman-bench"]):
        subprocess.run(["kubectl", "delete", *what, "--timeout=10m"], stdout=subprocess.DEVNULL, check=False)
