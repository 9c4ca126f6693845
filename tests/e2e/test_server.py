"""A ModelServer on a real cluster: changed and scaled without a client noticing; what it cannot have is told."""

import json
import time
from datetime import datetime

import pytest

from e2e_cluster import kubectl
from e2e_operator import API, eventually
from e2e_runs import SMALL, base, on_claim, python_pod, reached, succeeded

pytestmark = [pytest.mark.e2e, pytest.mark.images, pytest.mark.timeout(1800)]

ASKING = """
import collections, json, socket, sys, time, urllib.error, urllib.request
url, seconds, key = sys.argv[1], float(sys.argv[2]), sys.argv[3]
found, end = collections.Counter(), time.monotonic() + seconds
body = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 4, "temperature": 0}
while time.monotonic() < end:
    try:
        listed = urllib.request.Request(url + "/models", headers={"Authorization": key})
        with urllib.request.urlopen(listed, timeout=30) as answer:
            served = json.load(answer)["data"][0]
        body["model"] = served["id"]
        headers = {"Authorization": key, "Content-Type": "application/json"}
        asked = urllib.request.Request(url + "/chat/completions", json.dumps(body).encode(), headers)
        with urllib.request.urlopen(asked, timeout=30) as answer:
            found[f"a server of {served['created']}" if json.load(answer)["choices"] else "no choices"] += 1
    except urllib.error.HTTPError as error:
        found[f"{error.code} {error.read().decode()[:200]}"] += 1
    except OSError as error:
        # Where the name server has failed, nobody was asked.
        if not isinstance(getattr(error, "reason", error), socket.gaierror):
            found[repr(error)] += 1
    time.sleep(0.02)
print(json.dumps(found))
"""


@pytest.fixture(scope="module", autouse=True)
def model(namespace, operator):
    """ModelImport/base, which all of them serve."""
    namespace.apply(base())
    reached(namespace, operator, "modelimport", "base", "Succeeded")


def server(name, **more):
    spec = {"model": {"modelImport": "base"}, "template": "alpaca", "compute": SMALL, **more}
    return {**API, "kind": "ModelServer", "metadata": {"name": name}, "spec": spec}


def asking(namespace, name, where, seconds, key="none"):
    """A pod that asks a server again and again for so long; at its end its log holds what it was answered."""
    pod = python_pod(name, ASKING, {})
    pod["spec"]["containers"][0]["command"] += [f"http://ms-{where}:8000/v1", str(seconds), f"Bearer {key}"]
    namespace.apply(pod)
    kubectl("-n", namespace.name, "wait", "--for=condition=Ready", f"pod/{name}", "--timeout=60s")


def answers(namespace, name, seconds):
    path = "--for=jsonpath={.status.phase}=Succeeded"
    kubectl("-n", namespace.name, "wait", path, f"pod/{name}", f"--timeout={seconds:.0f}s")
    return json.loads(kubectl("-n", namespace.name, "logs", name))


def pods_of(namespace, name):
    return {pod["metadata"]["name"] for pod in namespace.all("pods", "-l", f"herdsman.dev/name={name}")}


def test_a_change_is_rolled_out_and_no_request_is_lost(namespace, operator):
    namespace.apply(server("chat", limits={"maxTokens": 100}))
    reached(namespace, operator, "modelserver", "chat", "Ready")
    old = pods_of(namespace, "chat")
    asking(namespace, "client", "chat", 75)
    time.sleep(3)
    namespace.apply(server("chat", limits={"maxTokens": 200}))
    eventually(
        lambda: (found := pods_of(namespace, "chat")) and not found & old,
        70,
        "the old pod is still there",
        operator.log,
    )
    assert reached(namespace, operator, "modelserver", "chat", "Ready")["replicas"] == 1
    told = answers(namespace, "client", 110)
    assert len(told) == 2, told
    assert all(said.startswith("a server of") and times > 10 for said, times in told.items()), told


BREAK = """
import pathlib, shutil
shutil.copytree("/data/runs/base/artifact", "/data/runs/broken")
(weights,) = pathlib.Path("/data/runs/broken").glob("*.safetensors")
with weights.open("r+b") as file:
    file.truncate(weights.stat().st_size // 2)
"""
BROKEN = {
    "a damaged file": (
        {"model": {"volume": {"claim": "data", "path": "runs/broken"}}},
        "ChecksumMismatch",
        "model.safetensors: The file has",
    ),
    "too little memory": ({"compute": {"resources": {"cpu": "100m", "memory": "64Mi"}}}, "OutOfMemory", "memory"),
}


@pytest.fixture(scope="module")
def broken(namespace, model):
    """A model on the volume whose weights end in the middle."""
    namespace.apply(python_pod("break", BREAK, {"data": ("/data", on_claim("data"))}))
    succeeded(namespace, "break")


@pytest.mark.long
@pytest.mark.parametrize("what", BROKEN)
def test_what_cannot_be_loaded_is_told_within_ten_seconds_and_the_replica_of_before_goes_on(
    namespace, operator, broken, what
):
    change, reason, words = BROKEN[what]
    name = f"sturdy-{list(BROKEN).index(what)}"
    namespace.apply(server(name))
    reached(namespace, operator, "modelserver", name, "Ready")
    old = pods_of(namespace, name)
    asking(namespace, f"client-{name}", name, 60)
    namespace.apply(server(name, **change))
    ended = eventually(lambda: first_end(namespace, name), 60, "the new replica does not end", operator.log)
    failure = eventually(
        lambda: namespace.status("modelserver", name).get("failure"), 20, "nothing is told", operator.log
    )
    assert time.time() - ended < 10 + 1, "the kubelet writes whole seconds"
    assert failure["reason"] == reason, failure
    assert words in failure["message"], failure
    told = answers(namespace, f"client-{name}", 120)
    assert all(said.startswith("a server of") for said in told), told
    assert old <= pods_of(namespace, name), "the replica of before is still there"
    status = namespace.status("modelserver", name)
    assert status["phase"] == "Degraded"
    assert next(item["status"] for item in status["conditions"] if item["type"] == "Ready") == "True"
    kubectl("-n", namespace.name, "delete", "modelserver", name)


def first_end(namespace, name):
    """When a container of a server first ended, in seconds since the epoch; None where none has."""
    for pod in namespace.all("pods", "-l", f"herdsman.dev/name={name}"):
        for container in pod["status"].get("containerStatuses", ()):
            for state in (container.get("lastState") or {}, container.get("state") or {}):
                if "terminated" in state:
                    return datetime.fromisoformat(state["terminated"]["finishedAt"]).timestamp()
    return None


def test_it_is_scaled_by_kubectl_and_several_replicas_have_a_budget(namespace, operator):
    namespace.apply(server("wide"))
    reached(namespace, operator, "modelserver", "wide", "Ready")
    assert not namespace.all("poddisruptionbudgets", "-l", "herdsman.dev/name=wide")
    kubectl("-n", namespace.name, "scale", "modelserver/wide", "--replicas=2")
    eventually(lambda: namespace.status("modelserver", "wide").get("readyReplicas") == 2, 120, "not two", operator.log)
    (budget,) = namespace.all("poddisruptionbudgets", "-l", "herdsman.dev/name=wide")
    assert budget["spec"]["maxUnavailable"] == 1
    kubectl("-n", namespace.name, "scale", "modelserver/wide", "--replicas=0")
    eventually(lambda: not pods_of(namespace, "wide"), 60, "pods stay", operator.log)
    eventually(
        lambda: not namespace.all("poddisruptionbudgets", "-l", "herdsman.dev/name=wide"), 30, "it stays", operator.log
    )


def test_a_key_from_a_secret_that_comes_late(namespace, operator):
    key = {"secret": {"name": "keys", "key": "token"}}
    begun = time.monotonic()
    namespace.apply(server("private", apiKey=key))
    failure = eventually(
        lambda: namespace.status("modelserver", "private").get("failure"), 30, "no cause", operator.log
    )
    assert time.monotonic() - begun < 12
    assert "keys" in failure["message"]
    assert failure["reason"] == "SecretNotFound"
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "keys"}, "stringData": {"token": "let-me-in"}}
    namespace.apply(secret)
    status = reached(namespace, operator, "modelserver", "private", "Ready", 240)
    assert "failure" not in status
    asking(namespace, "stranger", "private", 1)
    asking(namespace, "friend", "private", 1, "let-me-in")
    (refusal,) = answers(namespace, "stranger", 60)
    assert refusal.startswith("401 ")
    assert all(said.startswith("a server of") for said in answers(namespace, "friend", 60))


def test_ingress_and_autoscaler_are_made_and_unmade_and_a_monitor_without_its_kind_stops_nothing(namespace, operator):
    there = {
        "ingress": {"host": "chat.example.com"},
        "autoscaling": {"minReplicas": 1, "maxReplicas": 2, "targetWaitingRequests": 4},
        "monitoring": {"serviceMonitor": True},
    }
    namespace.apply(server("open", **there))
    reached(namespace, operator, "modelserver", "open", "Ready")
    mine = ("-l", "herdsman.dev/name=open")
    (ingress,) = namespace.all("ingresses", *mine)
    (rule,) = ingress["spec"]["rules"]
    assert rule["host"] == "chat.example.com"
    (scaler,) = namespace.all("hpa", *mine)
    assert scaler["spec"]["scaleTargetRef"]["name"] == "ms-open"
    told = eventually(
        lambda: [
            item["message"]
            for item in namespace.status("modelserver", "open")["conditions"]
            if "ServiceMonitor" in item["message"]
        ],
        30,
        "the missing kind is not told",
        operator.log,
    )
    assert told
    kubectl("-n", namespace.name, "patch", "modelserver", "open", "--type=json", "-p", json.dumps(
        [{"op": "remove", "path": "/spec/ingress"}, {"op": "remove", "path": "/spec/autoscaling"}]
    ))  # fmt: skip
    for kind in ("ingresses", "hpa"):
        eventually(lambda kind=kind: not namespace.all(kind, *mine), 30, f"{kind} stay", operator.log)
    assert namespace.status("modelserver", "open")["phase"] == "Ready"
