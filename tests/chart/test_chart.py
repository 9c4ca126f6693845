"""The chart: what it renders for which values, and which values it refuses."""

import json
from typing import Any

import pytest
import yaml
from jsonschema import Draft7Validator

from helm import CHART, MONITORING, Rendered, helm, refusal, render, text
from herdsman.api.v1alpha1.registry import KINDS
from herdsman.generate.crds import crd
from herdsman.kube.__main__ import make_parser
from herdsman.kube.rules import LEASE_RULES, RULES

DIGEST = "sha256:" + "ab" * 32
LABELS = {
    "app.kubernetes.io/name",
    "app.kubernetes.io/instance",
    "app.kubernetes.io/version",
    "app.kubernetes.io/managed-by",
    "app.kubernetes.io/part-of",
    "helm.sh/chart",
}

VALUES: dict[str, dict[str, Any]] = {
    "the defaults": {},
    "all namespaces": {"watchNamespaces": ["*"], "networkPolicy": {"namespaces": ["team-a"]}},
    "two namespaces": {"watchNamespaces": ["team-a", "team-b"]},
    "two replicas and a lease": {"replicas": 2, "lease": True},
    "a mirror, digests and pull secrets": {
        "global": {"imageRegistry": "mirror.example.com/x"},
        "images": {"operator": {"digest": DIGEST}, "trainer": {"digest": DIGEST}, "server": {"tag": "9"}},
        "imagePullSecrets": [{"name": "mirror"}],
    },
    "everything switched off": {
        "crds": {"install": False},
        "rbac": {"create": False, "aggregateToUserRoles": False},
        "serviceAccount": {"create": False, "name": "theirs"},
        "networkPolicy": {"enabled": False},
    },
    "everything switched on": {
        "serviceMonitor": {"create": "always", "labels": {"release": "prometheus"}},
        "podMonitors": {"create": "always"},
        "prometheusRule": {"create": "always"},
        "dashboards": {"create": "always", "annotations": {"folder": "ML"}},
        "extraLabels": {"team": "ml"},
        "extraArgs": ["--workers=3"],
        "extraEnv": [{"name": "HTTPS_PROXY", "value": "http://proxy:3128"}],
        "podLabels": {"a": "b"},
        "podAnnotations": {"c": "d"},
        "serviceAccount": {"annotations": {"e": "f"}},
        "nodeSelector": {"kubernetes.io/os": "linux"},
        "tolerations": [{"key": "infra", "operator": "Exists"}],
        "affinity": {"nodeAffinity": {}},
        "topologySpreadConstraints": [{"maxSkew": 1}],
        "priorityClassName": "system-cluster-critical",
        "networkPolicy": {"apiServer": {"cidrs": ["10.0.0.1/32"], "ports": [6443]}},
    },
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
    "the defaults": {"namespace": ["home"], "trainer_image": "herdsman/trainer:0.1.0", "lease": None},
    "all namespaces": {"all_namespaces": True, "namespace": None},
    "two namespaces": {"namespace": ["team-a", "team-b"], "all_namespaces": False},
    "two replicas and a lease": {"lease": ("home", "release-herdsman")},
    "a mirror, digests and pull secrets": {
        "trainer_image": f"mirror.example.com/x/herdsman/trainer@{DIGEST}",
        "server_image": "mirror.example.com/x/herdsman/server:9",
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


MONITORED = ["ServiceMonitor", "PodMonitor", "PodMonitor", "PrometheusRule"]


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


def selected(selector: dict[str, Any], labels: dict[str, str]) -> bool:
    """Whether a label selector takes these labels."""
    expressions = {
        "Exists": lambda entry: entry["key"] in labels,
        "NotIn": lambda entry: labels.get(entry["key"]) not in entry["values"],
        "In": lambda entry: labels.get(entry["key"]) in entry["values"],
    }
    return all(labels.get(key) == value for key, value in selector.get("matchLabels", {}).items()) and all(
        expressions[entry["operator"]](entry) for entry in selector.get("matchExpressions", ())
    )


CHILD = {"app.kubernetes.io/managed-by": "herdsman", "herdsman.dev/name": "x"}
FENCED = {
    "a run": ({**CHILD, "herdsman.dev/kind": "PretrainJob"}, {"release-herdsman-runs"}),
    "an import": (
        {**CHILD, "herdsman.dev/kind": "ModelImport"},
        {"release-herdsman-runs", "release-herdsman-imports"},
    ),
    "a server": ({**CHILD, "herdsman.dev/kind": "ModelServer"}, {"release-herdsman-servers"}),
    "a pod of somebody else": ({"app": "web"}, set()),
}


@pytest.mark.parametrize("what", [*FENCED, "the operator"])
def test_each_pod_has_the_fences_of_its_role(what):
    rendered = render()
    operator = rendered.one("Deployment")["spec"]["template"]["metadata"]["labels"]
    labels, expected = {**FENCED, "the operator": (operator, {"release-herdsman-operator"})}[what]
    policies = rendered.of("NetworkPolicy")
    found = {body["metadata"]["name"] for body in policies if selected(body["spec"]["podSelector"], labels)}
    assert found == expected


def test_runs_are_reached_by_runs_of_their_namespace_and_for_metrics_only_otherwise():
    policy = render().one("NetworkPolicy", "release-herdsman-runs")["spec"]
    own, metrics = policy["ingress"]
    assert own == {"from": [{"podSelector": policy["podSelector"]}]}
    assert metrics["ports"] == [{"port": "metrics", "protocol": "TCP"}]
    assert all("namespaceSelector" in peer for peer in metrics["from"])


def test_servers_are_reached_from_their_namespace_and_from_labelled_ones_only():
    (rule,) = render().one("NetworkPolicy", "release-herdsman-servers")["spec"]["ingress"]
    assert rule["from"][:2] == [
        {"podSelector": {}},
        {"namespaceSelector": {"matchLabels": {"herdsman.dev/clients": "true"}}},
    ]


def test_the_operator_reaches_the_api_server_and_trainers_only():
    policy = render(VALUES["everything switched on"]).one("NetworkPolicy", "release-herdsman-operator")["spec"]
    api_server, trainers, names = policy["egress"]
    assert api_server == {"ports": [{"port": 6443, "protocol": "TCP"}], "to": [{"ipBlock": {"cidr": "10.0.0.1/32"}}]}
    assert trainers["ports"] == [{"port": 9400, "protocol": "TCP"}]
    assert {port["port"] for port in names["ports"]} == {53}


def test_fences_stand_in_every_watched_namespace_that_is_known():
    def homes(what: str) -> set[str]:
        return {body["metadata"]["namespace"] for body in render(VALUES[what]).of("NetworkPolicy")}

    assert homes("two namespaces") == {"home", "team-a", "team-b"}
    assert homes("all namespaces") == {"home", "team-a"}


SCHEMA = json.loads(text(CHART / "values.schema.json"))
WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "an unknown value": ({"watchNamespace": ["a"]}, "watchNamespace"),
    "an unknown value deep inside": ({"images": {"operator": {"digset": DIGEST}}}, "digset"),
    "a namespace that is no name": ({"watchNamespaces": ["Team A"]}, "watchNamespaces"),
    "a namespace twice": ({"watchNamespaces": ["a", "a"]}, "watchNamespaces"),
    "a text for a list": ({"watchNamespaces": "a"}, "watchNamespaces"),
    "a digest without its algorithm": ({"images": {"trainer": {"digest": "ab" * 32}}}, "digest"),
    "a repository with a tag": ({"images": {"trainer": {"repository": "a/b:1"}}}, "repository"),
    "a repository with capitals": ({"images": {"trainer": {"repository": "A/b"}}}, "repository"),
    "a negative number of replicas": ({"replicas": -1}, "replicas"),
    "a text for a number": ({"replicas": "1"}, "replicas"),
    "a boolean for a choice": ({"serviceMonitor": {"create": True}}, "create"),
    "a port out of range": ({"metrics": {"port": 70000}}, "port"),
    "a pull policy that does not exist": ({"images": {"operator": {"pullPolicy": "Sometimes"}}}, "pullPolicy"),
    "a pull secret that is a text": ({"imagePullSecrets": ["mirror"]}, "imagePullSecrets"),
    "an address without its mask": ({"networkPolicy": {"apiServer": {"cidrs": ["10.0.0.1"]}}}, "cidrs"),
    "a log level that does not exist": ({"log": {"level": "chatty"}}, "level"),
    "an interval without a unit": ({"serviceMonitor": {"interval": "30"}}, "interval"),
    "null for an object": ({"metrics": {"port": None}, "crds": 1}, "crds"),
}


@pytest.mark.parametrize("what", WRONG)
def test_wrong_values_are_refused_by_the_schema_at_their_place(what):
    values, place = WRONG[what]
    merged = merge(yaml.safe_load(text(CHART / "values.yaml")), values)
    told = [
        f"{'.'.join(map(str, error.absolute_path))} {error.message}"
        for error in Draft7Validator(SCHEMA).iter_errors(merged)
    ]
    assert any(place in line for line in told), told


def merge(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """Values over values, as Helm lays them."""
    deep = {
        key: merge(below[key], value)
        for key, value in above.items()
        if isinstance(below.get(key), dict) and isinstance(value, dict)
    }
    return {**below, **above, **deep}


def test_helm_refuses_by_the_schema_too():
    assert "watchNamespace" in refusal({"watchNamespace": ["a"]})


CONTRADICTIONS = {
    "all namespaces beside one": ({"watchNamespaces": ["*", "a"]}, "cannot stand beside others"),
    "fences elsewhere than it watches": (
        {"networkPolicy": {"namespaces": ["a"]}},
        "networkPolicy.namespaces: it belongs",
    ),
    "an account of nobody": ({"serviceAccount": {"create": False}}, "serviceAccount.name: give the name"),
    "an alert that does not exist": (
        {"prometheusRule": {"create": "always", "overrides": {"HerdsmanRunFaild": {"disabled": True}}}},
        "prometheusRule.overrides.HerdsmanRunFaild: there is no such alert; there are HerdsmanRunFailed,",
    ),
}


@pytest.mark.parametrize("what", CONTRADICTIONS)
def test_values_that_contradict_each_other_are_refused_in_a_sentence(what):
    values, sentence = CONTRADICTIONS[what]
    assert sentence in refusal(values)


def test_the_defaults_and_every_example_of_these_tests_are_valid_by_the_schema():
    defaults = yaml.safe_load(text(CHART / "values.yaml"))
    wrong = {
        what: [error.message for error in Draft7Validator(SCHEMA).iter_errors(merge(defaults, values))]
        for what, values in VALUES.items()
    }
    assert {what: told for what, told in wrong.items() if told} == {}


def test_every_value_has_its_place_in_the_schema():
    assert list(missing_places(yaml.safe_load(text(CHART / "values.yaml")), SCHEMA)) == []


def missing_places(values: dict[str, Any], schema: dict[str, Any], path: str = ""):
    """The values that the schema does not name, and what it names that has no default."""
    properties = schema.get("properties")
    if properties is None:
        return
    optional = {"matchExpressions"}
    yield from (f"{path}{name} stands on one side only" for name in (set(values) ^ set(properties)) - optional)
    for name in set(values) & set(properties):
        if isinstance(values[name], dict) and values[name]:
            yield from missing_places(values[name], properties[name], f"{path}{name}.")
