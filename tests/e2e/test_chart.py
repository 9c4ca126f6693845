"""The chart on a real cluster: installed, upgraded together with its CRDs, uninstalled without losing anything."""

import json
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from admission import PROJECT
from e2e_cluster import crds_to_oneself, kubectl
from e2e_images import image, parts
from e2e_operator import Namespace
from e2e_runs import base, filled_claim, reached, training
from helm import CHART, helm
from herdsman.api.v1alpha1.registry import KINDS
from herdsman.generate.examples import EXAMPLES
from herdsman.kube.rules import RULES

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]

NAME = "herdsman"


@pytest.fixture
def namespace(crds) -> Iterator[str]:
    """A namespace that enforces the restricted Pod Security Standard."""
    name = f"chart-{uuid.uuid4().hex[:8]}"
    kubectl("create", "namespace", name)
    kubectl("label", "namespace", name, "pod-security.kubernetes.io/enforce=restricted")
    yield name
    helm("uninstall", NAME, "--namespace", name, "--ignore-not-found")
    kubectl("delete", "namespace", name, "--wait=false")


def installed(namespace: str, chart: Path = CHART, **values: Any) -> str:
    """Install or upgrade the release and wait until it is there; returns what helm says."""
    options = ["--namespace", namespace, "--wait", "--timeout", "150s", "--values", "-"]
    # The CRDs of these tests' cluster may have been applied without Helm, or by a release that is gone.
    given = json.dumps({"images": {"operator": parts(image("operator"))}} | values)
    ended = helm("upgrade", "--install", NAME, str(chart), "--take-ownership", *options, stdin=given)
    problem = "" if ended.returncode == 0 else ended.stderr + told(namespace)
    assert ended.returncode == 0, problem
    return ended.stdout


def told(namespace: str) -> str:
    """What pods, events and logs say when an installation does not come up."""
    deployment = f"deployment/{NAME}"
    return "\n".join(
        (
            kubectl("-n", namespace, "get", "pods,events", "-o", "wide"),
            kubectl("-n", namespace, "logs", deployment, "--tail=40", "--ignore-errors"),
        )
    )


def columns(plural: str) -> list[str]:
    body = json.loads(kubectl("get", "crd", f"{plural}.herdsman.dev", "-o", "json"))
    return [column["name"] for column in body["spec"]["versions"][0]["additionalPrinterColumns"]]


def older(chart: Path) -> Path:
    """The chart as it might have been: another version, and a CRD without its last column."""
    shutil.copytree(CHART, chart)
    about = yaml.safe_load((chart / "Chart.yaml").read_text(encoding="utf-8"))
    (chart / "Chart.yaml").write_text(yaml.safe_dump({**about, "version": "0.0.9"}), encoding="utf-8")
    template = chart / "templates/crds/tokenizermerges.yaml"
    lines = template.read_text(encoding="utf-8").splitlines(keepends=True)
    start = lines.index("    - name: Age\n")
    template.write_text("".join([*lines[:start], *lines[start + 4 :]]), encoding="utf-8")
    return chart


@pytest.fixture
def crds_alone() -> Iterator[None]:
    with crds_to_oneself():
        yield


@pytest.mark.usefixtures("crds_alone")
def test_an_upgrade_takes_the_crds_along_and_an_uninstallation_leaves_them_and_every_resource(namespace, tmp_path):
    installed(namespace, older(tmp_path / "older"), replicas=0)
    before = columns("tokenizermerges")
    manifest = EXAMPLES["TokenizerMerge"]
    (tmp_path / "resource.yaml").write_text(yaml.safe_dump(manifest), encoding="utf-8")
    kubectl("-n", namespace, "apply", "-f", str(tmp_path / "resource.yaml"))
    uid = ("-n", namespace, "get", "tokenizermerge", manifest["metadata"]["name"], "-o", "jsonpath={.metadata.uid}")
    created = kubectl(*uid)

    installed(namespace, replicas=0)
    assert [*before, "Age"] == columns("tokenizermerges")
    assert kubectl(*uid) == created

    ended = helm("uninstall", NAME, "--namespace", namespace, "--wait")
    assert ended.returncode == 0, ended.stderr
    assert "CustomResourceDefinition" in ended.stdout, "helm says what it kept"
    assert [columns(info.plural)[-1] for info in KINDS.values()] == ["Age"] * len(KINDS)
    assert kubectl(*uid) == created
    left = kubectl(
        "-n", namespace, "get", "deployments,roles,rolebindings,networkpolicies,serviceaccounts", "-o", "name"
    )
    assert left.split() == ["serviceaccount/default"]


def test_the_operator_runs_in_a_restricted_namespace_with_a_role_only_and_reports(namespace, tmp_path):
    installed(namespace)
    account = f"system:serviceaccount:{namespace}:{NAME}"
    reviews = {"authorization.k8s.io", "authentication.k8s.io"}  # everybody may ask what they may do
    wanted = {(rule.group, resource, verb) for rule in RULES for resource in rule.resources for verb in rule.verbs}
    assert {entry for entry in granted(namespace, account, tmp_path) if entry[0] not in reviews} == wanted
    assert can("list", "jobs.batch", namespace, account, tmp_path)
    assert not can("list", "jobs.batch", "default", account, tmp_path)

    manifest = EXAMPLES["TokenizerMerge"]
    (tmp_path / "resource.yaml").write_text(yaml.safe_dump(manifest), encoding="utf-8")
    kubectl("-n", namespace, "apply", "-f", str(tmp_path / "resource.yaml"))
    waiting = (
        "tokenizermerge",
        manifest["metadata"]["name"],
        "--for=jsonpath={.status.phase}=Waiting",
        "--timeout=60s",
    )
    kubectl("-n", namespace, "wait", *waiting)
    metrics = kubectl("get", "--raw", f"/api/v1/namespaces/{namespace}/services/{NAME}-metrics:metrics/proxy/metrics")
    assert f'herdsman_resource_phase{{kind="TokenizerMerge",name="{manifest["metadata"]["name"]}"' in metrics
    assert 'phase="Waiting"' in metrics


def granted(namespace: str, account: str, scratch: Path) -> set[tuple[str, str, str]]:
    """What the API server lets an account do in a namespace: group, resource and verb."""
    review = {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SelfSubjectRulesReview",
        "spec": {"namespace": namespace},
    }
    (scratch / "review.json").write_text(json.dumps(review), encoding="utf-8")
    path = "/apis/authorization.k8s.io/v1/selfsubjectrulesreviews"
    answered = kubectl("create", "--raw", path, "-f", str(scratch / "review.json"), f"--as={account}")
    return {
        (group, resource, verb)
        for rule in json.loads(answered)["status"]["resourceRules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }


def can(verb: str, resource: str, namespace: str, account: str, scratch: Path) -> bool:
    """Whether the API server would let this account do this."""
    name, _, group = resource.partition(".")
    attributes = {"verb": verb, "resource": name, "group": group, "namespace": namespace}
    review = {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SubjectAccessReview",
        "spec": {"user": account, "resourceAttributes": attributes},
    }
    (scratch / "review.json").write_text(json.dumps(review), encoding="utf-8")
    path = "/apis/authorization.k8s.io/v1/subjectaccessreviews"
    answered = json.loads(kubectl("create", "--raw", path, "-f", str(scratch / "review.json")))
    return bool(answered["status"]["allowed"])


@pytest.mark.images
def test_an_upgrade_with_a_run_at_work_restarts_no_pod_of_it(crds, tmp_path):
    """Another chart, other CRDs, another image for trainers: all of that is for what is made from then on."""
    namespace = Namespace(tmp_path)
    trainer = parts(image("trainer"))
    try:
        filled_claim(namespace, tmp_path)
        operator = {"operator": parts(image("operator"))}
        with crds_to_oneself():
            installed(namespace.name, older(tmp_path / "older"), images={**operator, "trainer": trainer})
            recipe = {"maxSteps": 1200, "checkpoints": {"everySteps": 100}}
            namespace.apply(base(), training("long", recipe=recipe))
            reached(namespace, None, "pretrainjob", "long", "Running")
            before = lives(namespace, "long")
            installed(namespace.name, images={**operator, "trainer": {**trainer, "tag": "the-next-one"}})
        assert lives(namespace, "long") == before
        status = reached(namespace, None, "pretrainjob", "long", "Succeeded", 400)
        assert lives(namespace, "long") == before
        assert len(status["attempts"]) == 1
    finally:
        helm("uninstall", NAME, "--namespace", namespace.name, "--ignore-not-found")
        namespace.delete()


def lives(namespace: Namespace, name: str) -> list[tuple[str, int]]:
    """The pods of a run, and how often each was started again."""
    return [
        (pod["metadata"]["uid"], pod["status"]["containerStatuses"][0]["restartCount"])
        for pod in namespace.all("pods", "-l", f"herdsman.dev/name={name}")
    ]


def test_plain_manifests_are_accepted_by_the_api_server(crds):
    directory = str(PROJECT / "deploy/kustomize")
    there = kubectl("get", "namespace", "herdsman", "--ignore-not-found", "-o", "name")
    if not there:
        kubectl("create", "namespace", "herdsman")
    try:
        shown = kubectl("apply", "--server-side", "--dry-run=server", "--force-conflicts", "-k", directory)
    finally:
        if not there:
            kubectl("delete", "namespace", "herdsman", "--wait=false")
    assert "customresourcedefinition.apiextensions.k8s.io/pretrainjobs.herdsman.dev serverside-applied" in shown
    assert "deployment.apps/herdsman serverside-applied" in shown
