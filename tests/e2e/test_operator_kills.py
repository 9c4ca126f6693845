"""The operator killed at random, and components of the cluster restarted, while a run works: nothing is lost.

These tests disturb whatever else runs on the cluster, so they run alone.
"""

import json
import random
import signal
import subprocess
import time

import pytest

from e2e_disturbed import RECIPE, at_work, ended_like, operating, pods_of, started, undisturbed_digest
from e2e_images import TEST_CLUSTER
from e2e_operator import eventually
from e2e_runs import training

pytestmark = [pytest.mark.e2e, pytest.mark.images, pytest.mark.long, pytest.mark.alone, pytest.mark.timeout(1800)]

KILLS = 50


@pytest.fixture(scope="module")
def undisturbed(namespace, log) -> str:
    with operating(namespace, log) as operator:
        return undisturbed_digest(namespace, operator)


@pytest.fixture
def operator(namespace, log):
    with operating(namespace, log) as running:
        yield running


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
