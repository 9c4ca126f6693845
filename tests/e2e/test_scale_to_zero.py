"""A ModelServer that sleeps while nobody asks, on a real cluster: what is asked then is held, and nothing is lost."""

import json
import signal
import time

import pytest

from e2e_cluster import kubectl
from e2e_disturbed import operating
from e2e_images import image
from e2e_operator import API, eventually
from e2e_runs import SMALL, base, python_pod, reached

pytestmark = [pytest.mark.e2e, pytest.mark.images, pytest.mark.long, pytest.mark.timeout(1800)]

IDLE_SECONDS = 12
MANY = 5
AT_ONCE = """
import json, sys, threading, time, urllib.error, urllib.request
url, number, found = sys.argv[1], int(sys.argv[2]), []
JSON = {"Content-Type": "application/json"}
def ask(index):
    body = {"model": "sleepy", "messages": [{"role": "user", "content": f"Hello {index}"}], "max_tokens": 4}
    asked = urllib.request.Request(url + "/chat/completions", json.dumps(body).encode(), JSON)
    began = time.monotonic()
    try:
        with urllib.request.urlopen(asked, timeout=400) as answer:
            said = "answered" if json.load(answer)["choices"] else "no choices"
    except urllib.error.HTTPError as error:
        said = f"{error.code} {error.read().decode()[:200]}"
    except OSError as error:
        said = repr(error)
    found.append([said, round(time.monotonic() - began, 1)])
threads = [threading.Thread(target=ask, args=(index,)) for index in range(number)]
[thread.start() for thread in threads], [thread.join() for thread in threads]
print(json.dumps(found))
"""
ASKING = """
import collections, json, sys, time, urllib.error, urllib.request
url, seconds, found = sys.argv[1], float(sys.argv[2]), collections.Counter()
JSON = {"Content-Type": "application/json"}
body = {"model": "sleepy", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 4, "temperature": 0}
end = time.monotonic() + seconds
while time.monotonic() < end:
    asked = urllib.request.Request(url + "/chat/completions", json.dumps(body).encode(), JSON)
    try:
        with urllib.request.urlopen(asked, timeout=60) as answer:
            found["answered" if json.load(answer)["choices"] else "no choices"] += 1
    except urllib.error.HTTPError as error:
        found[f"{error.code} {error.read().decode()[:200]}"] += 1
    except OSError as error:
        found[repr(error)] += 1
    time.sleep(0.05)
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def options() -> tuple[str, str]:
    """Names the image of the activators, which is the operator's."""
    return ("--activator-image", image("operator"))


@pytest.fixture(scope="module")
def operator(namespace, log, options):
    """An operator, and ModelServer/sleepy, which has answered once and fallen asleep."""
    with operating(namespace, log, *options) as running:
        namespace.apply(base(), base("other"))
        for name in ("base", "other"):
            reached(namespace, running, "modelimport", name, "Succeeded")
        namespace.apply(server())
        reached(namespace, running, "modelserver", "sleepy", "Ready")
        asleep(namespace, running)
        yield running


def server(model="base"):
    scaling = {"afterIdleSeconds": IDLE_SECONDS, "holdSeconds": 300}
    spec = {"model": {"modelImport": model}, "template": "alpaca", "compute": SMALL, "scaleToZero": scaling}
    return {**API, "kind": "ModelServer", "metadata": {"name": "sleepy"}, "spec": spec}


def replicas(namespace):
    return [pod["metadata"]["name"] for pod in namespace.all("pods", "-l", "herdsman.dev/name=sleepy")]


def activators(namespace):
    return [pod["metadata"]["name"] for pod in namespace.all("pods", "-l", "herdsman.dev/activates=sleepy")]


def asleep(namespace, operator):
    status = reached(namespace, operator, "modelserver", "sleepy", "Idle", 180)
    ready = next(item for item in status["conditions"] if item["type"] == "Ready")
    assert (ready["status"], ready["reason"]) == ("True", "ScaledToZero")
    eventually(lambda: not replicas(namespace), 150, "its pods stay", operator.log)


def asking(namespace, name, code, number):
    """A pod that asks, once it runs; one that is answered at once may have ended before it was seen to be ready."""
    pod = python_pod(name, code, {})
    pod["spec"]["containers"][0]["command"] += ["http://ms-sleepy:8000/v1", str(number)]
    namespace.apply(pod)
    begun = ("Running", "Succeeded")
    eventually(lambda: namespace.status("pod", name).get("phase") in begun, 60, f"the pod {name} does not start")


def answers(namespace, name, seconds):
    path = "--for=jsonpath={.status.phase}=Succeeded"
    kubectl("-n", namespace.name, "wait", path, f"pod/{name}", f"--timeout={seconds}s")
    return json.loads(kubectl("-n", namespace.name, "logs", name))


def test_requests_to_a_sleeper_are_held_and_answered_and_it_sleeps_again(namespace, operator):
    asking(namespace, "crowd", AT_ONCE, MANY)
    begun = time.monotonic()
    eventually(lambda: replicas(namespace), 15, "nobody is woken", operator.log)
    assert time.monotonic() - begun < 10
    told = answers(namespace, "crowd", 240)
    assert [said for said, _ in told] == ["answered"] * MANY, told
    assert reached(namespace, operator, "modelserver", "sleepy", "Ready")["readyReplicas"] == 1
    asleep(namespace, operator)


def test_another_model_and_another_activator_under_load_lose_no_request(namespace, operator):
    asking(namespace, "load", ASKING, 110)
    reached(namespace, operator, "modelserver", "sleepy", "Ready", 120)
    old = set(replicas(namespace))
    namespace.apply(server("other"))
    (before,) = activators(namespace)
    kubectl("-n", namespace.name, "delete", "pod", before, "--wait=false")
    eventually(
        lambda: (found := set(replicas(namespace))) and not found & old, 100, "the old replica stays", operator.log
    )
    assert before not in [
        pod["metadata"]["name"]
        for pod in namespace.all("pods", "-l", "herdsman.dev/activates=sleepy")
        if not pod["metadata"].get("deletionTimestamp")
    ]
    told = answers(namespace, "load", 180)
    assert set(told) == {"answered"}, told
    assert told["answered"] > 50, told
    asleep(namespace, operator)


def test_what_is_held_while_the_operator_is_away_is_answered_when_it_is_back(namespace, operator, log, options):
    operator.stop(signal.SIGKILL)
    asking(namespace, "patient", AT_ONCE, MANY)
    time.sleep(5)
    assert replicas(namespace) == [], "nobody else may start replicas"
    with operating(namespace, log, *options) as back:
        told = answers(namespace, "patient", 240)
        assert [said for said, _ in told] == ["answered"] * MANY, told
        kubectl("-n", namespace.name, "patch", "modelserver", "sleepy", "--type=json", "-p", json.dumps(
            [{"op": "remove", "path": "/spec/scaleToZero"}]
        ))  # fmt: skip
        eventually(lambda: not activators(namespace), 60, "the activators stay", back.log)
        assert reached(namespace, back, "modelserver", "sleepy", "Ready")["readyReplicas"] == 1
        asking(namespace, "direct", AT_ONCE, 1)
        assert [said for said, _ in answers(namespace, "direct", 60)] == ["answered"]
