"""doctor: one line for each thing that can be missing, and what to do about it."""

import json
from functools import cache

import pytest
import yaml

from admission import PROJECT
from herdsman.api.v1alpha1.registry import KINDS
from herdsman.kube.rules import RULES
from herdsman.kubectl.cluster_checks import OLDEST
from herdsman.kubectl.namespace_checks import amount
from kubectl.objects import model_import, pretrain, running
from kubectl.test_planning import node, operator


@pytest.fixture
def sound(cluster):
    """A cluster in which nothing is missing."""
    for crd in crds():
        cluster.add(crd, None)
    cluster.add(operator("--namespace=team"), "ops")
    cluster.add(role())
    cluster.add(binding())
    cluster.add({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "team"}}, None)
    cluster.add(storage("standard", "example.com/block", default=True), None)
    cluster.add(storage("shared", "nfs.csi.k8s.io"), None)
    cluster.add(node("node-0", 8), None)
    cluster.add(node("node-1", 8), None)
    cluster.add(policy("herdsman-runs", {"app.kubernetes.io/part-of": "herdsman"}))
    cluster.groups.append("monitoring.coreos.com")
    return cluster


@cache
def crds():
    folder = PROJECT / "crds"
    return [yaml.safe_load((folder / f"herdsman.dev_{info.plural}.yaml").read_text()) for info in KINDS.values()]


def role(rules=None):
    given = rules if rules is not None else [rule.to_json() for rule in RULES]
    return {"kind": "Role", "metadata": {"name": "herdsman"}, "rules": given}


def binding():
    subject = {"kind": "ServiceAccount", "name": "herdsman", "namespace": "ops"}
    reference = {"kind": "Role", "name": "herdsman"}
    return {"kind": "RoleBinding", "metadata": {"name": "herdsman"}, "roleRef": reference, "subjects": [subject]}


def storage(name, provisioner, *, default=False):
    notes = {"storageclass.kubernetes.io/is-default-class": "true"} if default else {}
    return {"kind": "StorageClass", "metadata": {"name": name, "annotations": notes}, "provisioner": provisioner}


def policy(name, labels=None, **spec):
    body = {"podSelector": {}, "policyTypes": ["Ingress"], **spec}
    return {"kind": "NetworkPolicy", "metadata": {"name": name, "labels": labels or {}}, "spec": body}


def quota(**hard):
    named = {name.replace("__", "/").replace("_", "."): most for name, most in hard.items()}
    used = dict.fromkeys(named, "0")
    return {"kind": "ResourceQuota", "metadata": {"name": "small"}, "status": {"hard": named, "used": used}}


def test_a_sound_cluster_is_well(sound, plugin):
    sound.add(pretrain(), **running())
    code, out, _ = plugin("doctor")
    assert code == 0, out
    head, *lines, verdict = out.splitlines()
    assert "context here" in head
    assert verdict == "all is well"
    assert {line.split()[0] for line in lines} == {"✔"}
    assert "16 on 2 of 2 ready nodes (2 x 8)" in out
    assert "default StorageClass standard (example.com/block)" in out


def no_crds(cluster):
    cluster.served = []


def one_crd_less(cluster):
    cluster.served.remove("sftjobs")


def old_crds(cluster):
    spec = cluster.get("CustomResourceDefinition", "pretrainjobs.herdsman.dev", "")["spec"]
    properties = spec["versions"][0]["schema"]["openAPIV3Schema"]["properties"]
    del properties["spec"]["properties"]["stage"]
    del properties["status"]["properties"]["attempts"]["items"]["properties"]["exitCode"]


def nothing_to_run_it(cluster):
    cluster.objects.pop(("Deployment", "ops", "herdsman"))


def elsewhere_only(cluster):
    cluster.add(operator("--namespace", "blue", "--namespace", "green"), "ops")


def two_operators(cluster):
    cluster.add(operator("--all-namespaces"), "more")


def crashing_operator(cluster):
    cluster.add(operator("--namespace=team", ready=0), "ops")


def too_few_rights(cluster):
    cluster.add(role([rule.to_json() for rule in RULES if rule.group != "batch"]))


def silent_operator(cluster):
    cluster.add(pretrain())


def old_kubernetes(cluster):
    cluster.version = {"major": "1", "minor": "29+", "gitVersion": "v1.29.3-eks"}


def no_storage(cluster):
    cluster.objects = {key: body for key, body in cluster.objects.items() if key[0] != "StorageClass"}


def no_pods_allowed(cluster):
    cluster.add(quota(pods="0"))


def no_such_namespace(cluster):
    cluster.objects.pop(("Namespace", "", "team"))


def no_node_ready(cluster):
    for number in range(2):
        cluster.get("Node", f"node-{number}", "")["status"]["conditions"][0]["status"] = "Unknown"


def no_queue(cluster):
    cluster.add(model_import(compute={"queueName": "gold", "priorityClassName": "high"}), **running())


FAILURES = {
    no_crds: ["CRDs none are installed", "install Herdsman's chart"],
    one_crd_less: ["CRDs missing: SFTJob"],
    old_crds: ["they do not know PretrainJob.spec.stage, PretrainJob.status.attempts[].exitCode", "upgrade the CRDs"],
    nothing_to_run_it: ["operator none serves the namespace team", "watchNamespaces"],
    elsewhere_only: ["none serves the namespace team (ops/herdsman serves blue, green)"],
    two_operators: ["2 serve this namespace: more/herdsman, ops/herdsman", "uninstall all but one"],
    crashing_operator: ["0 of 1 ready", "kubectl -n ops describe pods"],
    too_few_rights: ["ServiceAccount ops/herdsman may not get jobs.batch, list jobs.batch", "and 2 more"],
    silent_operator: ["the operator says nothing of PretrainJob/zh"],
    old_kubernetes: ["Kubernetes v1.29.3-eks", "needs Kubernetes 1.30 or newer"],
    no_storage: ["there is no StorageClass"],
    no_pods_allowed: ["quota small: pods 0 of 0 used", "no run can start"],
    no_such_namespace: ["team does not exist", "kubectl create namespace team"],
    no_node_ready: ["none of 2 nodes is ready"],
    no_queue: ["there is no LocalQueue gold, which ModelImport/base asks for", "there is no PriorityClass high"],
}


@pytest.mark.parametrize("happens", FAILURES, ids=lambda happens: happens.__name__.replace("_", " "))
def test_what_keeps_runs_from_working_fails_with_a_remedy(sound, plugin, happens):
    happens(sound)
    code, out, _ = plugin("doctor")
    flat = "\n".join(" ".join(line.split()) for line in out.splitlines())
    assert code == 1, out
    assert all(told in flat for told in FAILURES[happens]), out
    assert "to be mended before runs work here" in out


def another_version(cluster):
    cluster.add(operator("--namespace=team", version="0.0.1"), "ops")


def no_default_class(cluster):
    cluster.add(storage("standard", "example.com/block"), None)


def no_shared_class(cluster):
    cluster.objects.pop(("StorageClass", "", "shared"))


def no_gpus(cluster):
    for number in range(2):
        cluster.add(node(f"node-{number}", 0), None)


def no_gpus_allowed(cluster):
    cluster.add(quota(requests_nvidia_com__gpu="0"))


def no_rights_of_mine(cluster):
    cluster.rules = [{"verbs": ["get", "list"], "apiGroups": ["*"], "resources": ["*"]}]


def cut_off(cluster):
    cluster.objects.pop(("NetworkPolicy", "team", "herdsman-runs"))
    cluster.add(policy("deny-all"))


WARNINGS = {
    another_version: ["the operator is 0.0.1 and this plugin 0.1.0"],
    no_default_class: ["no default StorageClass; there are shared, standard", "spec.workspace.storageClassName"],
    no_shared_class: ["no StorageClass looks like ReadWriteMany"],
    no_gpus: ["none of 2 ready nodes offers nvidia.com/gpu"],
    no_gpus_allowed: ["quota small: requests.nvidia.com/gpu 0 of 0 used"],
    no_rights_of_mine: ["you may not create modelimports", "ask for the role edit in team"],
    cut_off: ["deny-all denies pods here their traffic"],
}


@pytest.mark.parametrize("happens", WARNINGS, ids=lambda happens: happens.__name__.replace("_", " "))
def test_what_works_for_some_only_is_a_warning(sound, plugin, happens):
    happens(sound)
    code, out, _ = plugin("doctor")
    flat = "\n".join(" ".join(line.split()) for line in out.splitlines())
    assert code == 0, out
    assert all(told in flat for told in WARNINGS[happens]), out
    assert "runs work here; 1 to be looked at" in out


def test_what_one_may_not_look_at_is_no_failure(sound, plugin):
    for end in ("/nodes", "/storageclasses", "/deployments", "/clusterrolebindings", "/networkpolicies"):
        sound.refusals["GET", end] = 403, f"{end[1:]} is forbidden"
    sound.refusals["GET", "/pretrainjobs.herdsman.dev"] = 403, "customresourcedefinitions is forbidden"
    code, out, _ = plugin("doctor", "-o", "json")
    levels = {item["subject"]: item["level"] for item in json.loads(out)}
    assert code == 0
    assert {name for name, level in levels.items() if level == "unknown"} == {"operator", "storage", "GPUs", "network"}
    assert levels["CRDs"] == "ok"


def test_no_api_server_is_one_sentence(sound, plugin):
    sound.refusals["GET", "/version"] = 503, "shutting down"
    code, _, err = plugin("doctor")
    assert (code, err.count("\n"), "cannot answer now (503)" in err) == (1, 1, True)


def test_doctor_writes_nothing(sound, plugin):
    plugin("doctor")
    assert set(sound.requests("POST")) == {"/apis/authorization.k8s.io/v1/selfsubjectrulesreviews"}
    assert sound.requests("PATCH") + sound.requests("PUT") == []


def test_the_oldest_kubernetes_is_the_charts():
    chart = yaml.safe_load((PROJECT / "charts" / "herdsman" / "Chart.yaml").read_text())
    assert chart["kubeVersion"] == f">={OLDEST[0]}.{OLDEST[1]}.0-0"


@pytest.mark.parametrize(
    ("quantity", "number"),
    [("0", 0), ("500m", 0.5), ("2", 2), ("3k", 3000), ("2Gi", 2**31), ("1Ki", 1024), ("1.5M", 1.5e6)],
)
def test_a_quantity_is_a_number(quantity, number):
    assert amount(quantity) == number
