"""The chart: what it renders for which values."""

import json
from typing import Any

import pytest
import yaml

from chart_values import DIGEST, VALUES
from helm import CHART, MONITORING, Rendered, helm, refusal, render, text
from herdsman.api.v1alpha1.registry import KINDS
from herdsman.core.site import Site
from herdsman.generate.crds import crd
from herdsman.kube.__main__ import make_parser
from herdsman.kube.rules import LEASE_RULES, RULES

LABELS = {
    "app.kubernetes.io/name",
    "app.kubernetes.io/instance",
    "app.kubernetes.io/version",
    "app.kubernetes.io/managed-by",
    "app.kubernetes.io/part-of",
    "helm.sh/chart",
}


def test_helm_finds_nothing_to_complain_about():
    linted = helm("lint", "--strict", "--kube-version", "1.34.0", str(CHART))
    assert linted.returncode == 0, linted.stdout + linted.stderr


@pytest.mark.parametrize("what", VALUES)
def test_every_object_has_the_labels_and_an_identity_of_its_own(what):
    rendered = render(VALUES[what])
    missing = {
        f"{body['kind']} {body['metadata']['name']}": sorted(LABELS - set(body["metadata"].get("labels", ())))
        for body in rendered.objects
        if LABELS - set(body["metadata"].get("labels", ()))
    }
    assert missing == {}
    known = [(body["kind"], body["metadata"].get("namespace"), body["metadata"]["name"]) for body in rendered.objects]
    assert len(known) == len(set(known))
    cluster_wide = {"CustomResourceDefinition", "ClusterRole", "ClusterRoleBinding"}
    assert [entry for entry in known if (entry[1] is None) != (entry[0] in cluster_wide)] == []


@pytest.mark.parametrize("what", VALUES)
def test_no_right_is_a_wildcard_or_reaches_beyond_what_the_operator_does(what):
    rendered = render(VALUES[what])
    roles = [*rendered.of("Role"), *rendered.of("ClusterRole")]
    rules = [rule for role in roles for rule in role["rules"]]
    assert [rule for rule in rules if "*" in rule["apiGroups"] + rule["resources"] + rule["verbs"]] == []
    forbidden = {"secrets", "pods/exec", "nodes", "roles", "serviceaccounts"}
    assert [rule for rule in rules if forbidden & set(rule["resources"])] == []
    assert [rule for rule in rules if {"escalate", "bind", "impersonate"} & set(rule["verbs"])] == []


def bound(rendered: Rendered) -> list[dict[str, Any]]:
    """The roles that are bound to the operator's ServiceAccount."""
    roles = {
        (body["kind"], body["metadata"].get("namespace"), body["metadata"]["name"]): body
        for body in (*rendered.of("Role"), *rendered.of("ClusterRole"))
    }
    account = {"kind": "ServiceAccount", "name": rendered.pod["serviceAccountName"], "namespace": "home"}
    found = []
    for binding in (*rendered.of("RoleBinding"), *rendered.of("ClusterRoleBinding")):
        assert binding["subjects"] == [account]
        reference = binding["roleRef"]
        found.append(roles[reference["kind"], binding["metadata"].get("namespace"), reference["name"]])
    return found


SHELL = [rule.to_json() for rule in RULES]
LEASE = [rule.to_json() for rule in LEASE_RULES]
RIGHTS = {
    "the defaults": [("Role", "home", SHELL)],
    "two namespaces": [("Role", "team-a", SHELL), ("Role", "team-b", SHELL)],
    "all namespaces": [("ClusterRole", None, SHELL)],
    "two replicas and a lease": [("Role", "home", LEASE), ("Role", "home", SHELL)],
    "everything switched off": [],
}


@pytest.mark.parametrize("what", RIGHTS)
def test_the_operator_has_the_rights_its_shell_uses_where_it_watches_and_no_others(what):
    roles = bound(render(VALUES[what]))
    found = [(role["kind"], role["metadata"].get("namespace"), role["rules"]) for role in roles]
    assert sorted(found, key=str) == sorted(RIGHTS[what], key=str)


def test_users_roles_are_bound_to_nobody_and_added_to_those_of_kubernetes():
    rendered = render()
    assert rendered.of("ClusterRoleBinding") == []
    view, edit = (rendered.one("ClusterRole", f"home-release-herdsman-{name}") for name in ("view", "edit"))
    assert {verb for rule in view["rules"] for verb in rule["verbs"]} == {"get", "list", "watch"}
    assert view["metadata"]["labels"]["rbac.authorization.k8s.io/aggregate-to-view"] == "true"
    assert "rbac.authorization.k8s.io/aggregate-to-view" not in edit["metadata"]["labels"]
    plurals = {info.plural for info in KINDS.values()}
    assert plurals <= set(view["rules"][0]["resources"])
    assert plurals == set(edit["rules"][0]["resources"])


COMMANDS = {
    "the defaults": {
        "namespace": ["home"],
        "trainer_image": "herdsman/trainer:0.1.0",
        "vllm_image": Site().vllm_image,
        "lease": None,
        "image_pull_policy": None,
        "image_pull_secret": [],
        "hub_endpoint": None,
    },
    "all namespaces": {"all_namespaces": True, "namespace": None},
    "two namespaces": {"namespace": ["team-a", "team-b"], "all_namespaces": False},
    "two replicas and a lease": {"lease": ("home", "release-herdsman")},
    "a mirror, digests and pull secrets": {
        "trainer_image": f"mirror.example.com/x/herdsman/trainer@{DIGEST}",
        "server_image": "mirror.example.com/x/herdsman/server:9",
        "vllm_image": "mirror.example.com/x/vllm/vllm-openai:v0.33.0",
        "image_pull_policy": "Always",
        "image_pull_secret": ["mirror", "other"],
        "hub_endpoint": "https://hub.example.com",
    },
    "everything switched on": {"workers": 3, "metrics_port": 8080, "log_format": "json", "log_level": "info"},
}


@pytest.mark.parametrize("what", COMMANDS)
def test_the_operators_own_command_line_understands_what_the_chart_gives_it(what):
    given = vars(make_parser().parse_args(render(VALUES[what]).container["args"]))
    assert {name: given[name] for name in COMMANDS[what]} == COMMANDS[what]


def test_images_come_from_the_mirror_by_digest_with_the_pull_secret():
    rendered = render(VALUES["a mirror, digests and pull secrets"])
    assert rendered.container["image"] == f"mirror.example.com/x/herdsman/operator@{DIGEST}"
    assert rendered.pod["imagePullSecrets"] == [{"name": "mirror"}]
    one = render({"images": {"operator": {"registry": "ghcr.io/", "tag": "1.2"}}})
    assert one.container["image"] == "ghcr.io/herdsman/operator:1.2"


@pytest.mark.parametrize("what", VALUES)
def test_the_pod_meets_the_restricted_standard_and_writes_to_tmp_only(what):
    rendered = render(VALUES[what])
    pod, container = rendered.pod, rendered.container
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert [(mount["mountPath"]) for mount in container["volumeMounts"]] == ["/tmp"]
    assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod)


def test_the_operator_is_small_watched_by_probes_and_leaves_a_lost_node_soon():
    rendered = render()
    assert rendered.container["resources"] == {
        "requests": {"cpu": "100m", "memory": "128Mi"},
        "limits": {"memory": "512Mi"},
    }
    assert rendered.container["livenessProbe"]["httpGet"] == {"path": "/livez", "port": "metrics"}
    assert rendered.container["readinessProbe"]["httpGet"] == {"path": "/readyz", "port": "metrics"}
    assert {entry["tolerationSeconds"] for entry in rendered.pod["tolerations"]} == {30}


def test_one_operator_is_replaced_and_several_take_turns():
    assert render().one("Deployment")["spec"]["strategy"] == {"type": "Recreate"}
    assert render().of("PodDisruptionBudget") == []
    several = render(VALUES["two replicas and a lease"])
    assert several.one("Deployment")["spec"]["strategy"] == {
        "type": "RollingUpdate",
        "rollingUpdate": {"maxUnavailable": 1, "maxSurge": 0},
    }
    assert several.one("PodDisruptionBudget")["spec"]["maxUnavailable"] == 1
    assert "replicas: more than one needs lease: true" in refusal({"replicas": 2})


def test_what_is_set_for_the_pod_arrives_there():
    rendered = render(VALUES["everything switched on"])
    template = rendered.one("Deployment")["spec"]["template"]
    assert {"a": "b", "team": "ml"}.items() <= template["metadata"]["labels"].items()
    assert template["metadata"]["annotations"] == {"c": "d"}
    assert rendered.pod["nodeSelector"] == {"kubernetes.io/os": "linux"}
    assert rendered.pod["priorityClassName"] == "system-cluster-critical"
    assert {"key": "infra", "operator": "Exists"} in rendered.pod["tolerations"]
    assert rendered.container["env"] == [{"name": "HTTPS_PROXY", "value": "http://proxy:3128"}]
    assert all(body["metadata"]["labels"]["team"] == "ml" for body in rendered.objects)


def test_the_selector_does_not_change_with_the_version():
    labels = render().one("Deployment")["spec"]["selector"]["matchLabels"]
    assert set(labels) == {"app.kubernetes.io/name", "app.kubernetes.io/instance", "app.kubernetes.io/component"}
    assert render().one("Service")["spec"]["selector"] == labels


@pytest.mark.parametrize("keep", [True, False])
def test_the_crds_are_those_of_the_models_and_kept_unless_told_otherwise(keep):
    rendered = {body["spec"]["names"]["kind"]: body for body in render({"crds": {"keep": keep}}).of(CRD)}
    assert list(rendered) == sorted(KINDS, key=lambda kind: KINDS[kind].plural)
    for kind, body in rendered.items():
        assert body["spec"] == crd(KINDS[kind])["spec"]
        assert body["metadata"]["annotations"].get("helm.sh/resource-policy") == ("keep" if keep else None)


CRD = "CustomResourceDefinition"


def test_what_is_switched_off_is_not_rendered():
    assert {body["kind"] for body in render(VALUES["everything switched off"]).objects} == {"Service", "Deployment"}
    assert render(VALUES["everything switched off"]).pod["serviceAccountName"] == "theirs"


MONITORED = ["ServiceMonitor", "PodMonitor", "PodMonitor", "PodMonitor", "PrometheusRule"]


def test_monitoring_objects_are_made_where_the_cluster_has_their_api():
    def kinds(rendered: Rendered) -> list[str]:
        return sorted(body["kind"] for body in rendered.objects if body["apiVersion"] == MONITORING)

    assert (kinds(render()), render().of("ConfigMap")) == ([], [])
    assert kinds(render(apis=(MONITORING,))) == sorted(MONITORED)
    assert kinds(render(VALUES["everything switched on"])) == sorted(MONITORED)
    never = {name: {"create": "never"} for name in ("serviceMonitor", "podMonitors", "prometheusRule", "dashboards")}
    assert kinds(render(never, apis=(MONITORING,))) == []


def test_the_dashboards_are_in_a_config_map_that_grafana_takes_up():
    made = render(VALUES["everything switched on"]).one("ConfigMap")
    assert made["metadata"]["labels"]["grafana_dashboard"] == "1"
    assert set(made["data"]) == {path.name for path in (CHART / "dashboards").glob("*.json")}
    assert all(json.loads(content)["title"] for content in made["data"].values())


def alerts(rendered: Rendered) -> dict[str, dict[str, Any]]:
    groups = rendered.one("PrometheusRule")["spec"]["groups"]
    return {rule["alert"]: rule for group in groups for rule in group["rules"]}


def test_alerts_are_those_of_the_file_and_can_be_changed_by_name():
    written = [
        rule for group in yaml.safe_load(text(CHART / "alerts/herdsman.yaml"))["groups"] for rule in group["rules"]
    ]
    plain = alerts(render(apis=(MONITORING,)))
    assert plain == {rule["alert"]: rule for rule in written}
    overrides = {
        "HerdsmanRunFailed": {"disabled": True},
        "HerdsmanQueueStuck": {"expr": "herdsman_queue_depth > 9", "for": "9m", "severity": "page"},
    }
    changed = alerts(render({"prometheusRule": {"overrides": overrides}}, apis=(MONITORING,)))
    assert set(plain) - set(changed) == {"HerdsmanRunFailed"}
    stuck = changed["HerdsmanQueueStuck"]
    assert (stuck["expr"], stuck["for"], stuck["labels"]) == ("herdsman_queue_depth > 9", "9m", {"severity": "page"})
    assert changed["HerdsmanRunStalled"] == plain["HerdsmanRunStalled"]
