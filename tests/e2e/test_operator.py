"""The operator on a real API server, as a process with a Role only, in a namespace of the restricted standard."""

import random
import signal
import time

import pytest

from e2e_cluster import kubectl
from e2e_operator import Namespace, Operator, Wire, eventually, imported, pretend_nodes

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def place(crds, tmp_path_factory):
    """A namespace with pretend nodes and their compute section."""
    namespace = Namespace(tmp_path_factory.mktemp("operator"))
    with pretend_nodes(namespace) as compute:
        yield namespace, compute
    namespace.delete()


@pytest.fixture
def operator(place, tmp_path):
    running = Operator(place[0], tmp_path / "operator.log").ready()
    yield running
    if running.process.poll() is None:
        running.stop()
    text = running.log.read_text()
    assert "Traceback" not in text, text[-3000:]


def phase(namespace, name):
    return namespace.status("modelimport", name).get("phase")


def test_a_run_is_made_watched_and_reported(place, operator):
    namespace, compute = place
    namespace.apply(imported("first", compute))
    eventually(lambda: phase(namespace, "first") == "Succeeded", 60, "the run has not succeeded", operator.log)
    status = namespace.status("modelimport", "first")
    assert status["artifact"]["path"] == "runs/first/artifact"
    assert [attempt["reason"] for attempt in status["attempts"]] == ["Succeeded"]
    told = eventually(
        lambda: [
            event["reason"]
            for event in namespace.all("events")
            if event["involvedObject"]["kind"] == "ModelImport" and event["involvedObject"]["name"] == "first"
        ],
        10,
        "no Events",
    )
    assert told == ["Succeeded"]
    described = kubectl("-n", namespace.name, "get", "modelimport", "first").splitlines()[1]
    assert "Succeeded" in described


def test_a_pod_that_ends_well_without_a_word_is_no_success(place, operator):
    namespace, compute = place
    namespace.apply(imported("says-nothing", compute, maxRestarts=0))
    eventually(lambda: phase(namespace, "says-nothing") == "Failed", 60, "it has not failed", operator.log)
    assert "names no artifact" in namespace.status("modelimport", "says-nothing")["failure"]["message"]


def test_out_of_memory_is_told_and_counted(place, operator):
    namespace, compute = place
    namespace.apply(imported("out-of-memory", compute, maxRestarts=0))
    eventually(lambda: phase(namespace, "out-of-memory") == "Failed", 60, "it has not failed", operator.log)
    status = namespace.status("modelimport", "out-of-memory")
    assert status["attempts"][0]["reason"] == "OutOfMemory"
    assert "OOMKilled" in status["failure"]["message"]


def cause_within_ten_seconds(namespace, operator, name, reason):
    begun = time.monotonic()
    found = eventually(
        lambda: (namespace.status("modelimport", name).get("failure") or {}).get("reason"), 30, "no cause", operator.log
    )
    assert (found, time.monotonic() - begun < 12) == (reason, True)
    return namespace.status("modelimport", name)


def test_no_node_fits(place, operator):
    namespace, compute = place
    namespace.apply(imported("huge", {**compute, "gpusPerNode": 16}))
    status = cause_within_ten_seconds(namespace, operator, "huge", "Unschedulable")
    assert "nvidia.com/gpu" in status["failure"]["message"]
    assert status["phase"] == "Queued"


def test_an_image_that_does_not_exist(place, operator):
    namespace, _ = place
    spec = {"workspace": {"size": "1Gi"}, "source": {"volume": {"claim": "images", "path": "."}}}
    claim = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}
    body = {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "images"}, "spec": claim}
    namespace.apply(body, imported("no-image", {"image": "localhost/no/such:image"}, **spec))
    begun = time.monotonic()
    eventually(
        lambda: (namespace.status("modelimport", "no-image").get("failure") or {}).get("reason") == "ImageUnavailable",
        60,
        "no cause",
        operator.log,
    )
    pod = next(pod for pod in namespace.all("pods") if pod["metadata"]["labels"]["herdsman.dev/name"] == "no-image")
    assert pod["spec"]["securityContext"]["runAsNonRoot"] is True
    assert time.monotonic() - begun < 60  # a pull is tried, which takes as long as the network's refusal


def test_a_claim_that_does_not_exist_and_then_does(place, operator):
    namespace, compute = place
    spec = {"source": {"volume": {"claim": "late", "path": "."}}}
    namespace.apply(imported("waits", compute, **spec))
    eventually(lambda: phase(namespace, "waits") == "Waiting", 10, "it does not wait", operator.log)
    conditions = {item["type"]: item for item in namespace.status("modelimport", "waits")["conditions"]}
    assert conditions["DependenciesReady"]["reason"] == "VolumeNotFound"
    shape = {"accessModes": ["ReadWriteMany"], "resources": {"requests": {"storage": "1Gi"}}, "storageClassName": "no"}
    body = {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "late"}, "spec": shape}
    namespace.apply(body)
    eventually(lambda: phase(namespace, "waits") != "Waiting", 15, "the claim is not noticed", operator.log)


def test_a_quota_of_no_pods(crds, tmp_path):
    namespace = Namespace(tmp_path)
    operator = Operator(namespace, tmp_path / "operator.log").ready()
    try:
        quota = {"hard": {"pods": "0"}}
        namespace.apply({"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "none"}, "spec": quota})
        in_force = "--for=jsonpath={.status.hard.pods}=0"  # before that the API server may let a pod pass
        kubectl("-n", namespace.name, "wait", in_force, "resourcequota/none", "--timeout=60s")
        shape = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}
        claim = {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "weights"}, "spec": shape}
        namespace.apply(claim, imported("base"))
        status = cause_within_ten_seconds(namespace, operator, "base", "QuotaExceeded")
        assert "exceeded quota: none" in status["failure"]["message"]
    finally:
        operator.stop()
        namespace.delete()


def test_suspend_and_resume(place, operator):
    namespace, compute = place
    namespace.apply(imported("runs-on", compute))
    eventually(lambda: phase(namespace, "runs-on") == "Running", 60, "it does not run", operator.log)
    job = namespace.get("job", "mi-runs-on-1")["metadata"]["uid"]
    for suspend, expected in (("true", "Suspended"), ("false", "Running")):
        change = f'{{"spec": {{"suspend": {suspend}}}}}'
        kubectl("-n", namespace.name, "patch", "modelimport", "runs-on", "--type=merge", "-p", change)
        eventually(
            lambda expected=expected: phase(namespace, "runs-on") == expected, 60, f"not {expected}", operator.log
        )
    assert namespace.get("job", "mi-runs-on-1")["metadata"]["uid"] == job


def test_a_restart_with_everything_present_writes_nothing_and_a_stop_is_quick(place, operator, tmp_path):
    namespace, compute = place
    namespace.apply(imported("runs-on", compute))
    eventually(lambda: phase(namespace, "runs-on") == "Running", 60, "it does not run", operator.log)

    def nothing_moves() -> bool:
        before = operator.writes()
        time.sleep(8)
        return operator.writes() == before

    eventually(nothing_moves, 90, "what the tests before have made does not come to rest", operator.log)
    code, seconds = operator.stop()
    assert (code, seconds < 20) == (0, True)
    again = Operator(namespace, tmp_path / "again.log").ready()
    try:
        eventually(lambda: again.metric("herdsman_reconcile_seconds_count") > 1, 20, "nothing was looked at", again.log)
        time.sleep(20)
        assert again.writes() == {}
        assert again.metric("herdsman_reconcile_errors_total") == 0
    finally:
        again.stop()


def test_killed_again_and_again_no_job_is_made_twice(place, tmp_path):
    namespace, compute = place
    names = [f"killed-{number}" for number in range(20)]
    log, chance = tmp_path / "operator.log", random.Random(4)
    namespace.apply(*(imported(name, compute) for name in names))
    kills = 0
    until = time.monotonic() + 240
    while not all(phase(namespace, name) == "Succeeded" for name in names):
        assert time.monotonic() < until, log.read_text()[-3000:]
        operator = Operator(namespace, log)
        time.sleep(1.5 + 2.5 * chance.random() * (1 + kills / 5))
        operator.stop(signal.SIGKILL)
        kills += 1
    jobs = [job for job in namespace.all("jobs") if job["metadata"]["name"].startswith("mi-killed-")]
    assert sorted(job["metadata"]["name"] for job in jobs) == sorted(f"mi-{name}-1" for name in names)
    pods = [pod for pod in namespace.all("pods") if pod["metadata"]["name"].startswith("mi-killed-")]
    assert len(pods) == len(names)
    assert kills > 1
    assert "Traceback" not in log.read_text()


def test_an_api_server_out_of_reach_for_a_minute_is_outlasted(place, tmp_path):
    namespace, compute = place
    kept = namespace.kubeconfig.read_text()
    wire = Wire(namespace)
    operator = Operator(namespace, tmp_path / "operator.log").ready()
    try:
        namespace.apply(imported("cut-off", compute))
        eventually(lambda: namespace.all("jobs", "-l", "herdsman.dev/name=cut-off"), 20, "no Job", operator.log)
        wire.cut()
        namespace.apply(imported("meanwhile", compute))
        kubectl("-n", namespace.name, "delete", "modelimport", "says-nothing", "--ignore-not-found")
        time.sleep(60)
        assert operator.process.poll() is None
        assert operator.get("/livez") == "ok\n"
        wire.mend()
        for name in ("cut-off", "meanwhile"):
            eventually(lambda name=name: phase(namespace, name) == "Succeeded", 60, f"{name} is behind", operator.log)
        assert len(namespace.all("jobs", "-l", "herdsman.dev/name=cut-off")) == 1
        assert "says-nothing" not in (operator.get("/metrics") or "")
    finally:
        operator.stop()
        namespace.kubeconfig.write_text(kept)


def test_the_second_replica_takes_over_when_the_first_is_killed(place, tmp_path):
    namespace, compute = place
    lease = f"--lease={namespace.name}/operator"
    first = Operator(namespace, tmp_path / "first.log", lease).ready()
    second = Operator(namespace, tmp_path / "second.log", lease)
    try:
        second.ready()  # to take over: a roll-out may go on
        assert second.writes().keys() <= {"PATCH Lease"}
        assert second.get("/livez") == "ok\n"
        first.stop(signal.SIGKILL)
        begun = time.monotonic()
        namespace.apply(imported("taken-over", compute))
        eventually(lambda: phase(namespace, "taken-over") == "Succeeded", 60, "nobody works", second.log)
        assert time.monotonic() - begun < 45
    finally:
        second.stop()


def test_a_deleted_resource_takes_its_children_along_and_leaves_the_claim(place, operator):
    namespace, compute = place
    namespace.apply(imported("goes", compute, workspace={"size": "1Gi"}))
    eventually(lambda: namespace.all("jobs", "-l", "herdsman.dev/name=goes"), 20, "no Job", operator.log)
    kubectl("-n", namespace.name, "delete", "modelimport", "goes")
    for kind in ("jobs", "pods", "configmaps"):
        eventually(
            lambda kind=kind: not namespace.all(kind, "-l", "herdsman.dev/name=goes"), 60, f"{kind} stay", operator.log
        )
    assert [claim["metadata"]["name"] for claim in namespace.all("pvc", "-l", "herdsman.dev/name=goes")] == ["mi-goes"]


def test_a_namespace_goes_while_the_operator_is_down(crds, tmp_path):
    namespace = Namespace(tmp_path)
    operator = Operator(namespace, tmp_path / "operator.log").ready()
    shape = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}
    claim = {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "weights"}, "spec": shape}
    namespace.apply(claim, imported("base", {"gpusPerNode": 16}))
    eventually(lambda: namespace.all("jobs"), 30, "no Job", operator.log)
    operator.stop(signal.SIGKILL)
    kubectl("delete", "namespace", namespace.name, "--timeout=60s")
    assert namespace.name not in kubectl("get", "namespaces", "-o", "name")
