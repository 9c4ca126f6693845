"""`kubectl herdsman` as kubectl runs it, against a real API server, an operator with a Role, and pretend nodes."""

import json
import os
import subprocess
import sys

import pytest
import yaml

from e2e_cluster import kubectl
from e2e_images import image
from e2e_operator import Namespace, Operator, eventually, imported, pretend_nodes
from e2e_runs import SMALL, base, filled_claim, reached, training

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]
CODE = "from herdsman.kubectl import main; main()"


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    """A folder for PATH with the plugin as pip installs it, whether or not it is installed."""
    folder = tmp_path_factory.mktemp("bin")
    plugin = folder / "kubectl-herdsman"
    plugin.write_text(f'#!/bin/sh\nexec {sys.executable} -c "{CODE}" "$@"\n')
    plugin.chmod(0o755)
    return folder


class Plugin:
    """`kubectl herdsman` in one namespace."""

    def __init__(self, program, namespace, kubeconfig=None):
        self.namespace = namespace
        self._environment = {**os.environ, "PATH": f"{program}:{os.environ['PATH']}", "COLUMNS": "250"}
        self._environment["KUBECONFIG"] = str(kubeconfig or os.environ["KUBECONFIG"])

    def start(self, *arguments):
        command = ["kubectl", "herdsman", arguments[0], "-n", self.namespace.name, *map(str, arguments[1:])]
        return subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=self._environment
        )

    def __call__(self, *arguments):
        """Run a command; return its exit code, its output and its errors."""
        process = self.start(*arguments)
        out, err = process.communicate(timeout=240)
        assert "Traceback" not in err
        return process.returncode, out, err


@pytest.fixture(scope="module")
def place(crds, tmp_path_factory):
    """A namespace with pretend nodes, their compute section, and an operator."""
    namespace = Namespace(tmp_path_factory.mktemp("kubectl"))
    log = tmp_path_factory.mktemp("log") / "operator.log"
    with pretend_nodes(namespace) as compute:
        operator = Operator(namespace, log).ready()
        yield namespace, compute
        operator.stop()
    namespace.delete()


@pytest.fixture
def plugin(program, place):
    return Plugin(program, place[0])


def manifests(tmp_path, *bodies):
    path = tmp_path / "manifests.yaml"
    path.write_text(yaml.safe_dump_all(bodies))
    return path


def step(namespace):
    return (namespace.status("pretrainjob", "zh").get("progress") or {}).get("step")


def phase(namespace, name):
    return namespace.status("modelimport", name).get("phase")


def test_a_plan_is_asked_by_dry_run_and_makes_nothing(place, plugin, tmp_path):
    namespace, compute = place
    code, out, err = plugin("plan", manifests(tmp_path, imported("planned", compute)))
    assert (code, err) == (0, "")
    assert "ModelImport/planned  Job mi-planned-1" in out
    assert [body["metadata"]["name"] for body in namespace.all("modelimport") if "planned" in str(body)] == []


def test_a_plan_tells_what_the_api_server_itself_refuses(place, plugin, tmp_path):
    namespace, compute = place
    namespace.apply(imported("changed", compute))
    other = imported("changed", compute, source={"volume": {"claim": "weights", "path": "elsewhere"}})
    code, out, _ = plugin("plan", manifests(tmp_path, other))
    assert code == 1
    assert "source cannot change, for it defines what is made" in out
    missing = imported("lost", compute, source={"volume": {"claim": "nowhere", "path": "."}})
    code, out, _ = plugin("plan", manifests(tmp_path, missing))
    assert (code, "the volume nowhere does not exist" in out) == (1, True)


def test_a_plan_of_what_is_there_already_changes_nothing(place, plugin, tmp_path):
    namespace, compute = place
    namespace.apply(imported("again", compute))
    eventually(lambda: phase(namespace, "again") == "Succeeded", 60, "it has not succeeded")
    same, more = imported("again", compute), imported("again", compute, maxRestarts=7)
    plans = [json.loads(plugin("plan", manifests(tmp_path, body), "-o", "json")[1])[0] for body in (same, more)]
    assert [(plan["action"], plan["done"]) for plan in plans] == [("unchanged", True), ("updated", True)]


def test_a_run_is_listed_described_and_stopped_and_goes_on(place, plugin):
    namespace, compute = place
    namespace.apply(imported("runs-on", compute))
    eventually(lambda: phase(namespace, "runs-on") == "Running", 60, "it does not run")
    rows = {line.split()[0]: line.split()[1] for line in plugin("get", "mi")[1].splitlines()}
    assert rows["ModelImport/runs-on"] == "Running"
    code, out, _ = plugin("describe", "mi/runs-on")
    described = [" ".join(line.split()) for line in out.splitlines()]
    assert code == 0
    assert any(line.startswith("mi-runs-on-1-0-") and " Running " in line for line in described)
    assert any(line.startswith("Job mi-runs-on-1 1 of 1 pods active") for line in described)
    assert any(line.startswith("PersistentVolumeClaim weights Bound 1Gi") for line in described)
    assert any("SuccessfulCreate" in line for line in described)
    assert "ModelImport/runs-on" in plugin("top")[1]
    code, out, _ = plugin("suspend", "mi", "runs-on", "--wait", "--timeout", "60")
    assert (code, out.splitlines()[-1]) == (0, "ModelImport/runs-on is Suspended")
    code, _, err = plugin("logs", "mi", "runs-on")
    assert (code, "the pods of attempt 1 of ModelImport/runs-on are gone" in err) == (1, True), err
    code, out, _ = plugin("resume", "mi", "runs-on", "--wait", "--timeout", "60")
    assert code == 0
    eventually(lambda: phase(namespace, "runs-on") == "Running", 60, "it does not go on")


def test_a_finished_run_is_told_to_be(place, plugin):
    namespace, compute = place
    namespace.apply(imported("over", compute))
    eventually(lambda: phase(namespace, "over") == "Succeeded", 60, "it has not succeeded")
    code, _, err = plugin("suspend", "mi", "over")
    assert (code, "is finished (it is Succeeded)" in err) == (1, True)


def test_who_may_do_nothing_is_told_what_to_ask_for(program, place):
    """The operator's own account reads resources and may not change them."""
    namespace, compute = place
    namespace.apply(imported("untouched", compute))
    account = Plugin(program, namespace, namespace.kubeconfig)
    assert account("get", "mi")[0] == 0
    code, _, err = account("suspend", "mi", "untouched")
    assert (code, err.count("\n")) == (1, 1)
    assert "ask for a role such as view or edit" in err or "is finished" in err
    code, out, _ = account("doctor")
    assert code in (0, 1)
    assert any(line.startswith("?") and "GPUs" in line for line in out.splitlines())


def test_a_quota_of_nothing_is_found(crds, program, tmp_path):
    namespace = Namespace(tmp_path)
    try:
        quota = {"hard": {"pods": "0"}}
        namespace.apply({"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "none"}, "spec": quota})
        kubectl(
            "-n", namespace.name, "wait", "--for=jsonpath={.status.hard.pods}=0", "resourcequota/none", "--timeout=60s"
        )
        code, out, _ = Plugin(program, namespace)("doctor", "-o", "json")
        found = {item["subject"]: item for item in json.loads(out)}
        assert code == 1
        assert found["API server"]["level"] == found["CRDs"]["level"] == "ok"
        assert (found["quotas"]["level"], found["quotas"]["message"]) == ("fail", "quota none: pods 0 of 0 used")
        assert found["operator"]["level"] == "fail"
        assert found["Pod Security"]["message"].startswith("restricted is enforced")
    finally:
        namespace.delete()


def test_what_kubectl_prints_by_itself_reads_well(place):
    namespace, compute = place
    namespace.apply(imported("plain", compute))
    eventually(lambda: phase(namespace, "plain") == "Succeeded", 60, "it has not succeeded")
    head = kubectl("-n", namespace.name, "get", "mi", "-o", "wide").splitlines()[0].split()
    assert head[:2] == ["NAME", "PHASE"]
    assert head[-2:] == ["MESSAGE", "AGE"]
    for path in ("pretrainjob.spec.recipe.lora", "modelserver.spec", "sftjob.status.failure"):
        described = kubectl("explain", path)
        assert "<no description>" not in described.replace("apiVersion", ""), described


@pytest.mark.images
@pytest.mark.timeout(1200)
def test_logs_of_two_ranks_are_followed_over_an_attempt_that_was_killed(crds, program, tmp_path):
    namespace = Namespace(tmp_path)
    try:
        filled_claim(namespace, tmp_path)
        operator = Operator(namespace, tmp_path / "log", "--trainer-image", image("trainer")).ready()
        try:
            recipe = {"maxSteps": 400, "checkpoints": {"everySteps": 20}}
            namespace.apply(base(), training("zh", recipe=recipe, compute={**SMALL, "nodes": 2}))
            following = Plugin(program, namespace).start("logs", "pj", "zh", "--follow")
            eventually(lambda: step(namespace), 240, "no step", operator.log)
            kubectl("-n", namespace.name, "delete", "pod", "-l", "herdsman.dev/name=zh", "--wait=false")
            reached(namespace, operator, "pretrainjob", "zh", "Succeeded", 600)
            out, err = following.communicate(timeout=60)
        finally:
            operator.stop()
        assert following.returncode == 0, err
        prefixes = {line.partition(" | ")[0] for line in out.splitlines()}
        assert prefixes
        assert prefixes <= {"rank 0", "rank 1"}
        assert "attempt 2 of PretrainJob/zh:" in err
        assert err.splitlines()[-1].startswith("PretrainJob/zh is Succeeded")
        assert Plugin(program, namespace)("logs", "pj", "zh", "--rank", "1")[0] == 0
    finally:
        namespace.delete()
