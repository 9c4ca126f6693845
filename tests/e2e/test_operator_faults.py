"""Nothing is lost: one and the same run, disturbed in every way, ends with the weights of the undisturbed one."""

import json
import random
import signal
import subprocess
import time

import pytest

from e2e_cluster import kubectl
from e2e_images import TEST_CLUSTER, image
from e2e_operator import Namespace, Operator, eventually
from e2e_runs import base, evict, filled_claim, reached, training

pytestmark = [pytest.mark.e2e, pytest.mark.images, pytest.mark.timeout(1800)]

EVERY = 10
RECIPE = {"maxSteps": 600, "checkpoints": {"everySteps": EVERY, "keepLast": 2}, "lora": {"rank": 2, "dropout": 0.1}}
KILLS = 50


@pytest.fixture(scope="module")
def namespace(crds, tmp_path_factory):
    """A namespace with a claim `data` that holds a tokenizer and a corpus."""
    made = Namespace(tmp_path_factory.mktemp("operator"))
    filled_claim(made, tmp_path_factory.mktemp("tokenizer"))
    yield made
    made.delete()


@pytest.fixture(scope="module")
def log(tmp_path_factory):
    return tmp_path_factory.mktemp("log") / "operator.log"


def started(namespace, log) -> Operator:
    return Operator(namespace, log, "--trainer-image", image("trainer"), "--server-image", image("server"))


@pytest.fixture
def operator(namespace, log):
    running = started(namespace, log).ready()
    yield running
    running.stop()
    assert "Traceback" not in log.read_text(), log.read_text()[-3000:]


@pytest.fixture(scope="module")
def undisturbed(namespace, log) -> str:
    """The digest of what the run publishes when nothing happens to it."""
    running = started(namespace, log).ready()
    namespace.apply(base(), training("undisturbed", recipe=RECIPE))
    status = reached(namespace, running, "pretrainjob", "undisturbed", "Succeeded", 300)
    running.stop()
    assert len(status["attempts"]) == 1
    return status["artifact"]["digest"]


def pods_of(namespace, name):
    return namespace.all("pods", "-l", f"herdsman.dev/name={name}")


def at_work(namespace, operator, name):
    """Start a run of this name and wait until it has saved something; returns its status then."""
    namespace.apply(training(name, recipe=RECIPE))
    return eventually(
        lambda: (
            (found := namespace.status("pretrainjob", name)).get("checkpoint", {}).get("step", 0) >= EVERY and found
        ),
        180,
        f"{name} has saved nothing",
        operator.log,
    )


def ended_like(namespace, operator, name, undisturbed):
    """Wait for the end of a run and check what must hold after every disturbance; returns its attempts."""
    status = reached(namespace, operator, "pretrainjob", name, "Succeeded", 400)
    assert status["artifact"]["digest"] == undisturbed
    attempts = status["attempts"]
    jobs = sorted(job["metadata"]["name"] for job in namespace.all("jobs", "-l", f"herdsman.dev/name={name}"))
    assert jobs == sorted(f"pj-{name}-{attempt['number']}" for attempt in attempts), "a Job too many or too few"
    steps = [attempt.get("resumedFromStep", 0) for attempt in attempts]
    assert steps == sorted(steps), "the newest checkpoint went back"
    assert not [pod for pod in pods_of(namespace, name) if pod["metadata"].get("deletionTimestamp")]
    return attempts


def test_a_pod_deleted_with_time_to_save(namespace, operator, undisturbed):
    at_work(namespace, operator, "deleted")
    kubectl("-n", namespace.name, "delete", "pod", "-l", "herdsman.dev/name=deleted", "--wait=false")
    first, second = ended_like(namespace, operator, "deleted", undisturbed)
    assert (first["reason"], first["counted"]) == ("Interrupted", False)
    assert second["resumedFromStep"] > 0


def test_all_pods_killed_without_warning(namespace, operator, undisturbed):
    saved = at_work(namespace, operator, "killed")["checkpoint"]["step"]
    kubectl("-n", namespace.name, "delete", "pod", "-l", "herdsman.dev/name=killed", "--force", "--grace-period=0")
    attempts = ended_like(namespace, operator, "killed", undisturbed)
    assert len(attempts) == 2
    assert attempts[1]["resumedFromStep"] >= saved


def test_an_eviction(namespace, operator, undisturbed):
    at_work(namespace, operator, "evicted")
    evict(namespace, pods_of(namespace, "evicted")[0]["metadata"]["name"])
    first, _ = ended_like(namespace, operator, "evicted", undisturbed)
    assert (first["reason"], first["counted"]) == ("Interrupted", False)


def test_suspended_and_resumed(namespace, operator, undisturbed):
    at_work(namespace, operator, "paused")
    for suspend, phase in (("true", "Suspended"), ("false", "Running")):
        change = f'{{"spec": {{"suspend": {suspend}}}}}'
        kubectl("-n", namespace.name, "patch", "pretrainjob", "paused", "--type=merge", "-p", change)
        reached(namespace, operator, "pretrainjob", "paused", phase, 120)
        if phase == "Suspended":
            assert not [pod for pod in pods_of(namespace, "paused") if pod["status"]["phase"] == "Running"]
    attempts = ended_like(namespace, operator, "paused", undisturbed)
    assert not any(attempt["counted"] for attempt in attempts)


def test_the_operator_killed_fifty_times_at_random(namespace, log, undisturbed):
    """Between two kills it lives long enough to do something, or not quite."""
    chance, names, kills = random.Random(time.time_ns()), ["hunted"], 0
    namespace.apply(training("hunted", recipe=RECIPE))
    until = time.monotonic() + 600
    while kills < KILLS:
        assert time.monotonic() < until
        running = started(namespace, log)
        time.sleep(chance.uniform(0.5, 4.0))
        running.stop(signal.SIGKILL)
        kills += 1
        if namespace.status("pretrainjob", names[-1]).get("phase") == "Succeeded":
            names.append(f"hunted-{len(names)}")
            namespace.apply(training(names[-1], recipe=RECIPE))
    running = started(namespace, log).ready()
    try:
        for name in names:
            attempts = ended_like(namespace, running, name, undisturbed)
            assert len(attempts) == 1
            assert [pod["status"]["phase"] for pod in pods_of(namespace, name)] == ["Succeeded"]
    finally:
        running.stop()
    assert "Traceback" not in log.read_text()


@pytest.mark.skipif(not TEST_CLUSTER.is_file(), reason="needs the test cluster, whose components can be restarted")
@pytest.mark.parametrize("component", ["kubelet", "apiserver"])
def test_a_component_restarted(namespace, operator, undisturbed, component):
    name = f"through-{component}"
    at_work(namespace, operator, name)
    uids = [pod["metadata"]["uid"] for pod in pods_of(namespace, name)]
    subprocess.run([str(TEST_CLUSTER), "restart", component], check=True, capture_output=True, timeout=120)
    eventually(lambda: _answers(namespace), 60, "the API server is not back")
    attempts = ended_like(namespace, operator, name, undisturbed)
    assert len(attempts) == 1
    assert [pod["metadata"]["uid"] for pod in pods_of(namespace, name)] == uids


def _answers(namespace) -> bool:
    command = ["kubectl", "-n", namespace.name, "get", "pods", "-o", "json"]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=30)
    return ran.returncode == 0 and "items" in json.loads(ran.stdout)


def test_a_namespace_with_a_run_at_work_goes_while_the_operator_is_down(crds, tmp_path):
    namespace = Namespace(tmp_path)
    filled_claim(namespace, tmp_path)
    running = started(namespace, tmp_path / "operator.log").ready()
    namespace.apply(base(), training("alone", recipe=RECIPE))
    reached(namespace, running, "pretrainjob", "alone", "Running")
    running.stop(signal.SIGKILL)
    kubectl("delete", "namespace", namespace.name, "--timeout=60s")
    assert namespace.name not in kubectl("get", "namespaces", "-o", "name")
