"""NetworkPolicies: who reaches the operator, runs and servers, and whom they reach."""

from ipaddress import ip_address, ip_network
from typing import Any

import pytest

from chart_values import VALUES
from helm import render
from herdsman.core import names
from herdsman.core.names import LABEL_ASKS_SERVERS, LABEL_DOWNLOADS


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
    "an import that downloads": (
        {**CHILD, "herdsman.dev/kind": "ModelImport", LABEL_DOWNLOADS: "true"},
        {"release-herdsman-runs", "release-herdsman-imports"},
    ),
    "an import from a volume": ({**CHILD, "herdsman.dev/kind": "ModelImport"}, {"release-herdsman-runs"}),
    "a set whose records are given": ({**CHILD, "herdsman.dev/kind": "InstructionSet"}, {"release-herdsman-runs"}),
    "a set that asks an API elsewhere": (
        {**CHILD, "herdsman.dev/kind": "InstructionSet", LABEL_DOWNLOADS: "true"},
        {"release-herdsman-runs", "release-herdsman-imports"},
    ),
    "a set that asks a server of ours": (
        {**CHILD, "herdsman.dev/kind": "InstructionSet", LABEL_ASKS_SERVERS: "true"},
        {"release-herdsman-runs", "release-herdsman-asks-servers"},
    ),
    "a server": ({**CHILD, "herdsman.dev/kind": "ModelServer"}, {"release-herdsman-servers"}),
    "an activator": (names.activator_labels("x"), {"release-herdsman-activators"}),
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


def test_downloads_reach_everything_but_the_metadata_of_a_cloud():
    policy = render().one("NetworkPolicy", "release-herdsman-imports")["spec"]
    assert policy["policyTypes"] == ["Egress"]
    (rule,) = policy["egress"]
    assert "ports" not in rule, "a store may answer on any port"
    four, six = (peer["ipBlock"] for peer in rule["to"])
    assert (four["cidr"], six["cidr"]) == ("0.0.0.0/0", "::/0")
    metadata = ip_address("169.254.169.254")
    assert any(metadata in ip_network(block) for block in four["except"])
    assert any(ip_address("fd00:ec2::254") in ip_network(block) for block in six["except"])


def test_activators_reach_replicas_and_are_asked_by_the_operator():
    rendered = render()
    policy = rendered.one("NetworkPolicy", "release-herdsman-activators")["spec"]
    clients, control = policy["ingress"]
    assert clients["from"][0] == {"podSelector": {}}
    assert clients["ports"] == [{"port": "http", "protocol": "TCP"}]
    operator = rendered.one("Deployment")["spec"]["template"]["metadata"]["labels"]
    assert selected(control["from"][0]["podSelector"], operator)
    replicas, _ = policy["egress"]
    assert selected(replicas["to"][0]["podSelector"], {**CHILD, "herdsman.dev/kind": "ModelServer"})
    rules = rendered.one("NetworkPolicy", "release-herdsman-operator")["spec"]["egress"]
    asked = [rule for rule in rules if "to" in rule and any("podSelector" in peer for peer in rule["to"])]
    stand_in = names.activator_labels("x")
    (reaching,) = [rule for rule in asked if selected(rule["to"][0]["podSelector"], stand_in)]
    assert [port["port"] for port in reaching["ports"]] == [9400, 9401]


def test_who_asks_a_server_reaches_servers_and_nothing_else():
    rendered = render()
    policy = rendered.one("NetworkPolicy", "release-herdsman-asks-servers")["spec"]
    assert policy["policyTypes"] == ["Egress"]
    (rule,) = policy["egress"]
    server, stand_in = FENCED["a server"][0], names.activator_labels("chat")

    def reached(labels: dict[str, str]) -> bool:
        return any(selected(peer["podSelector"], labels) for peer in rule["to"])

    assert reached(server)
    assert reached(stand_in)
    others = [labels for who, (labels, _) in FENCED.items() if who not in ("a server", "an activator")]
    assert not any(reached(labels) for labels in others)
    assert not any("namespaceSelector" in peer for peer in rule["to"])


def test_servers_are_reached_from_their_namespace_and_from_labelled_ones_only():
    clients, metrics = render().one("NetworkPolicy", "release-herdsman-servers")["spec"]["ingress"]
    assert clients["from"] == [
        {"podSelector": {}},
        {"namespaceSelector": {"matchLabels": {"herdsman.dev/clients": "true"}}},
    ]
    assert clients["ports"] == [{"port": "http", "protocol": "TCP"}]
    operator, monitoring = metrics["from"]
    assert operator["namespaceSelector"]["matchLabels"] == {"kubernetes.io/metadata.name": "home"}
    assert operator["podSelector"]["matchLabels"]["app.kubernetes.io/component"] == "operator"
    assert monitoring["namespaceSelector"]["matchLabels"] == {"kubernetes.io/metadata.name": "monitoring"}
    assert metrics["ports"] == [{"port": "metrics", "protocol": "TCP"}]


def test_the_operator_reaches_the_api_server_trainers_activators_and_servers_only():
    policy = render(VALUES["everything switched on"]).one("NetworkPolicy", "release-herdsman-operator")["spec"]
    api_server, trainers, activators, servers, dns = policy["egress"]
    assert servers["ports"] == [{"port": "metrics", "protocol": "TCP"}]
    assert servers["to"][0]["podSelector"]["matchLabels"]["herdsman.dev/kind"] == "ModelServer"
    assert api_server == {"ports": [{"port": 6443, "protocol": "TCP"}], "to": [{"ipBlock": {"cidr": "10.0.0.1/32"}}]}
    assert trainers["ports"] == [{"port": 9400, "protocol": "TCP"}]
    assert [port["port"] for port in activators["ports"]] == [9400, 9401]
    assert {port["port"] for port in dns["ports"]} == {53}


def test_fences_stand_in_every_watched_namespace_that_is_known():
    def homes(what: str) -> set[str]:
        return {body["metadata"]["namespace"] for body in render(VALUES[what]).of("NetworkPolicy")}

    assert homes("two namespaces") == {"home", "team-a", "team-b"}
    assert homes("all namespaces") == {"home", "team-a"}
