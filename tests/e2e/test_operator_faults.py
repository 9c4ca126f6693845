"""Nothing is lost: one and the same run, disturbed in every way, ends with the weights of the undisturbed one."""

import signal

import pytest

from e2e_cluster import kubectl
from e2e_disturbed import RECIPE, at_work, ended_like, pods_of, started, undisturbed_digest
from e2e_operator import Namespace
from e2e_runs import base, evict, filled_claim, reached, training

pytestmark = [pytest.mark.e2e, pytest.mark.images, pytest.mark.long, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def undisturbed(namespace, operator) -> str:
    return undisturbed_digest(namespace, operator)


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


def test_a_namespace_with_a_run_at_work_goes_while_the_operator_is_down(crds, tmp_path):
    namespace = Namespace(tmp_path)
    filled_claim(namespace, tmp_path)
    running = started(namespace, tmp_path / "operator.log").ready()
    namespace.apply(base(), training("alone", recipe=RECIPE))
    reached(namespace, running, "pretrainjob", "alone", "Running")
    running.stop(signal.SIGKILL)
    kubectl("delete", "namespace", namespace.name, "--timeout=60s")
    assert namespace.name not in kubectl("get", "namespaces", "-o", "name")
