"""Argo CD installs chart and pipeline from Git: Synced, without drift, with the health the resources have."""

import json
import os
import shutil
import subprocess
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from admission import PROJECT
from builders import CLUSTER, failed, finished, model_import, pretrain_job, suspended, with_status, world
from e2e_cluster import crds_to_oneself, kubectl
from e2e_images import TEST_CLUSTER, image, parts
from e2e_operator import Namespace
from e2e_runs import base, filled_claim, training
from herdsman.api.v1alpha1.registry import KINDS
from herdsman.core.plan import plan
from herdsman.core.status import status
from herdsman.generate.examples import EXAMPLES

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]

EXAMPLE = PROJECT / "gitops/argocd/application.yaml"
HEALTH = PROJECT / "gitops/argocd/health/argocd-cm.yaml"

DRIFT_SECONDS = float(os.environ.get("HERDSMAN_DRIFT_SECONDS", "15"))
"""How long an Application is watched for drift."""


def eventually(true: Callable[[], bool], seconds: float) -> bool:
    """Whether something comes true in time."""
    end = time.monotonic() + seconds
    while not (now := true()) and time.monotonic() < end:
        threading.Event().wait(1)
    return now


class Repository:
    """A Git repository with the chart and a pipeline of one resource."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.mkdir()
        self._git("init", "--quiet", "--initial-branch=main")
        shutil.copytree(PROJECT / "charts", path / "charts")
        (path / "pipeline").mkdir()

    def commit(self, *manifests: dict[str, Any]) -> None:
        """Make these the pipeline."""
        for old in (self.path / "pipeline").iterdir():
            old.unlink()
        for manifest in manifests:
            name = f"{manifest['kind']}-{manifest['metadata']['name']}.yaml"
            (self.path / "pipeline" / name).write_text(yaml.safe_dump(manifest), encoding="utf-8")
        self._git("add", "--all")
        identity = ("-c", "user.name=test", "-c", "user.email=test@example.com")
        self._git(*identity, "commit", "--quiet", "--message", "A change")

    def _git(self, *arguments: str) -> None:
        subprocess.run(["git", "-C", str(self.path), *arguments], check=True, capture_output=True, timeout=60)


class Application:
    """An Application in the namespace argocd, for a namespace of these tests."""

    def __init__(self, repository: Repository, values: dict[str, Any]) -> None:
        self.name = f"herdsman-{uuid.uuid4().hex[:8]}"
        body = yaml.safe_load(EXAMPLE.read_text(encoding="utf-8"))
        body["metadata"] = {"name": self.name, "namespace": "argocd"}
        body["spec"]["destination"]["namespace"] = self.name
        for source in body["spec"]["sources"]:
            source["repoURL"] = f"file://{repository.path}"
        body["spec"]["sources"][0]["helm"]["valuesObject"] |= values
        self.body = body

    def seen(self) -> dict[str, Any]:
        return json.loads(kubectl("-n", "argocd", "get", "application", self.name, "-o", "json")).get("status", {})

    def look_again(self) -> None:
        """Have Argo CD read Git and cluster anew, and wait until it has."""
        mark = ("-n", "argocd", "annotate", "--overwrite", "application", self.name)
        kubectl(*mark, "argocd.argoproj.io/refresh=hard")
        path = r"jsonpath={.metadata.annotations.argocd\.argoproj\.io/refresh}"
        asked = ("-n", "argocd", "get", "application", self.name, "-o", path)
        assert eventually(lambda: not kubectl(*asked), 60), "Argo CD did not look again"

    def comes_to(self, health: str) -> None:
        """Wait until the Application is Synced with this health."""

        def arrived() -> bool:
            now = self.seen()
            return (now.get("sync", {}).get("status"), now.get("health", {}).get("status")) == ("Synced", health)

        if not eventually(arrived, 120):
            now = self.seen()
            told = {name: now.get(name) for name in ("sync", "health", "conditions", "resources", "operationState")}
            pytest.fail(f"not Synced and {health}: {json.dumps(told)[:6000]}")


@pytest.fixture(scope="module")
def argocd(crds) -> None:
    """Argo CD with our health checks."""
    there = ("get", "configmap", "-A", "--field-selector=metadata.name=argocd-cm", "-o", "name")
    if not kubectl(*there):
        if not TEST_CLUSTER.is_file():
            pytest.skip("needs Argo CD in the cluster, and a repository server that reads file:// repositories")
        argv = [str(TEST_CLUSTER), "argocd"]  # its first try may come before the API server knows the new kinds
        assert eventually(lambda: subprocess.run(argv, capture_output=True, timeout=300).returncode == 0, 120)
    kubectl("-n", "argocd", "patch", "configmap", "argocd-cm", "--patch-file", str(HEALTH))


@pytest.fixture
def repository(tmp_path) -> Repository:
    return Repository(tmp_path / "repository")


@pytest.fixture
def application(argocd, repository, request, tmp_path) -> Iterator[Application]:
    made = Application(repository, request.param())
    with crds_to_oneself():
        yield made
    kubectl("-n", "argocd", "delete", "application", made.name, "--ignore-not-found")
    kubectl("delete", "namespace", made.name, "--ignore-not-found", "--wait=false")
    roles = (f"{made.name}-herdsman-{role}" for role in ("view", "edit"))
    kubectl("delete", "clusterroles", *roles, "--ignore-not-found")


def created(application: Application, scratch: Path) -> None:
    (scratch / "application.json").write_text(json.dumps(application.body), encoding="utf-8")
    kubectl("apply", "-f", str(scratch / "application.json"))


def report(application: Application, of: Any, scratch: Path) -> None:
    """Write a status as the operator does: by the status subresource."""
    stored = kubectl("-n", application.name, "get", KINDS[of.kind].plural, of.metadata.name, "-o", "json")
    generation = json.loads(stored)["metadata"]["generation"]
    found = of.status.to_json() | {"observedGeneration": generation}
    (scratch / "status.json").write_text(json.dumps({"status": found}), encoding="utf-8")
    target = (KINDS[of.kind].plural, of.metadata.name, "--type=merge", "--subresource=status")
    kubectl("-n", application.name, "patch", *target, "--patch-file", str(scratch / "status.json"))


def without_operator() -> dict[str, Any]:
    return {"replicas": 0}


def with_operator() -> dict[str, Any]:
    return {"images": {"operator": parts(image("operator"))}}


def with_all_images() -> dict[str, Any]:
    return {"images": {name: parts(image(name)) for name in ("operator", "trainer")}}


@pytest.mark.parametrize("application", [without_operator], indirect=True)
def test_an_application_has_the_health_of_its_resources_and_does_not_drift(application, repository, tmp_path):
    run = pretrain_job("zh")
    repository.commit(manifest_of(run))
    created(application, tmp_path)
    application.comes_to("Progressing")

    stopped = suspended(run)
    seen = world(finished(model_import()))
    report(application, with_status(run, status(stopped, plan(stopped, seen, CLUSTER), seen)), tmp_path)
    application.comes_to("Suspended")
    report(application, failed(run), tmp_path)
    application.comes_to("Degraded")
    report(application, finished(run), tmp_path)
    application.comes_to("Healthy")

    synced = application.seen()["operationState"]["finishedAt"]
    end = time.monotonic() + DRIFT_SECONDS
    while time.monotonic() < end:
        application.look_again()
        application.comes_to("Healthy")
    assert application.seen()["operationState"]["finishedAt"] == synced, "something was applied again"


@pytest.mark.parametrize("application", [with_operator], indirect=True)
def test_the_operator_it_installs_tells_it_what_waits_and_what_is_refused(application, repository, tmp_path):
    waiting = EXAMPLES["PretrainJob"]
    repository.commit(waiting)
    created(application, tmp_path)
    application.comes_to("Progressing")
    phase = ("-n", application.name, "get", "pretrainjobs", "-o", "jsonpath={.items[*].status.phase}")
    assert eventually(lambda: kubectl(*phase) == "Waiting", 90)
    application.comes_to("Progressing")

    itself = {"pretrainJob": "circle"}
    circle = {**waiting, "metadata": {"name": "circle"}, "spec": {**waiting["spec"], "adapter": itself}}
    repository.commit(waiting, circle)
    application.look_again()
    application.comes_to("Degraded")


@pytest.mark.images
@pytest.mark.parametrize("application", [with_all_images], indirect=True)
def test_a_pipeline_from_git_runs_to_its_end_and_a_failed_run_is_told_with_its_cause(application, repository, tmp_path):
    """Chart and pipeline from Git, trainers as pods: Progressing, Healthy at the end, Degraded by bad data."""
    namespace = Namespace(tmp_path, application.name)
    filled_claim(namespace, tmp_path)
    repository.commit(base(), training("zh", recipe={"maxSteps": 60}))
    created(application, tmp_path)
    application.comes_to("Progressing")
    assert eventually(lambda: phase_of(application, "zh") == "Succeeded", 240)
    application.comes_to("Healthy")
    assert namespace.status("pretrainjob", "zh")["artifact"]["kind"] == "adapter"

    wrong = training("wrong", dataset={"volume": {"claim": "data", "path": "nothing-there"}})
    repository.commit(base(), training("zh", recipe={"maxSteps": 60}), wrong)
    application.look_again()
    assert eventually(lambda: phase_of(application, "wrong") == "Failed", 180)
    application.comes_to("Degraded")
    assert phase_of(application, "zh") == "Succeeded"
    assert "nothing-there" in namespace.status("pretrainjob", "wrong")["failure"]["message"]


def phase_of(application: Application, run: str) -> str:
    """The phase of a PretrainJob; empty while it is not there."""
    path = "jsonpath={.status.phase}"
    return kubectl("-n", application.name, "get", "pretrainjob", run, "--ignore-not-found", "-o", path)


def manifest_of(of: Any) -> dict[str, Any]:
    body = of.to_json()
    return {key: body[key] for key in ("apiVersion", "kind", "spec")} | {"metadata": {"name": of.metadata.name}}
