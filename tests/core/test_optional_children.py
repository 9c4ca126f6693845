"""What a server may have beside its Deployment and Service, and what of it goes again."""

import pytest

from builders import CLUSTER, finished, lora_merge, model_server, world
from herdsman.core.optional_children import OPTIONAL_KINDS
from herdsman.core.plan import plan
from herdsman.core.world import Key, ServerFacts

MERGED = finished(lora_merge())
NO_ACTIVATOR = (Key("Deployment", "ma-chat"), Key("Service", "mr-chat"))


def planned(server=None, **spec):
    return plan(model_server(**spec), world(MERGED, server=server), CLUSTER)


def optional(**spec):
    return {child["kind"]: child for child in planned(**spec).children if child["kind"] in OPTIONAL_KINDS}


def test_a_plain_server_has_nothing_beside_it():
    assert optional() == {}
    assert planned().unwanted == (*(Key(kind, "ms-chat") for kind in OPTIONAL_KINDS), *NO_ACTIVATOR)


def test_an_ingress_leads_to_the_service():
    tls = {"tlsSecretName": "chat-tls", "className": "nginx", "annotations": {"b/x": "1", "a/y": "2"}}
    made = optional(ingress={"host": "chat.example.com", "path": "/", **tls})["Ingress"]
    assert made["apiVersion"] == "networking.k8s.io/v1"
    assert made["metadata"]["annotations"] == {"a/y": "2", "b/x": "1"}
    (rule,) = made["spec"]["rules"]
    assert rule["host"] == "chat.example.com"
    assert rule["http"]["paths"] == [
        {"path": "/", "pathType": "Prefix", "backend": {"service": {"name": "ms-chat", "port": {"name": "http"}}}}
    ]
    assert made["spec"]["tls"] == [{"hosts": ["chat.example.com"], "secretName": "chat-tls"}]
    assert made["spec"]["ingressClassName"] == "nginx"


def test_an_ingress_of_few_words_shows_the_api_only_and_leaves_the_rest_to_the_cluster():
    made = optional(ingress={"host": "chat.example.com"})["Ingress"]
    assert made["spec"]["rules"][0]["http"]["paths"][0]["path"] == "/v1"
    assert set(made["spec"]) == {"rules"}
    assert "annotations" not in made["metadata"]


AUTO = {"autoscaling": {"minReplicas": 2, "maxReplicas": 4, "targetWaitingRequests": 3}}


def test_autoscaling_owns_the_number_of_replicas_of_the_deployment():
    found = {child["kind"]: child for child in planned(replicas=3, **AUTO).children}
    assert "replicas" not in found["Deployment"]["spec"]
    scaler = found["HorizontalPodAutoscaler"]["spec"]
    assert scaler["scaleTargetRef"] == {"apiVersion": "apps/v1", "kind": "Deployment", "name": "ms-chat"}
    assert (scaler["minReplicas"], scaler["maxReplicas"]) == (2, 4)
    (metric,) = scaler["metrics"]
    assert metric["pods"]["metric"] == {"name": "herdsman_server_waiting_requests"}
    assert metric["pods"]["target"] == {"type": "AverageValue", "averageValue": "3"}


def test_no_replicas_switch_autoscaling_off_too():
    found = {child["kind"]: child for child in planned(replicas=0, **AUTO).children}
    assert found["Deployment"]["spec"]["replicas"] == 0


def test_the_share_of_a_cpu_and_the_waiting_requests_may_count_together():
    scaling = {**AUTO["autoscaling"], "targetCPUUtilizationPercentage": 70}
    made = optional(autoscaling=scaling, compute={"resources": {"cpu": "4"}})["HorizontalPodAutoscaler"]
    first, second = made["spec"]["metrics"]
    assert first == {
        "type": "Resource",
        "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 70}},
    }
    assert second["type"] == "Pods"


def test_tokens_a_second_may_count_too():
    made = optional(autoscaling={**AUTO["autoscaling"], "targetTokensPerSecond": 400})["HorizontalPodAutoscaler"]
    assert [metric["pods"]["metric"]["name"] for metric in made["spec"]["metrics"]] == [
        "herdsman_server_waiting_requests",
        "herdsman_server_completion_tokens_per_second",
    ]
    assert made["spec"]["metrics"][1]["pods"]["target"] == {"type": "AverageValue", "averageValue": "400"}


BUDGETS = {
    "one replica needs none": ({}, None),
    "of several one may go": ({"replicas": 2}, {"maxUnavailable": 1}),
    "of as many as autoscaling makes one may go": (AUTO, {"maxUnavailable": 1}),
    "replicas that stay": ({"disruptionBudget": {"minAvailable": 2}}, {"minAvailable": 2}),
    "a share that may go": ({"disruptionBudget": {"maxUnavailablePercent": 50}}, {"maxUnavailable": "50%"}),
    "a share that stays": ({"disruptionBudget": {"minAvailablePercent": 0}}, {"minAvailable": "0%"}),
}


@pytest.mark.parametrize("what", BUDGETS)
def test_the_budget_for_evictions(what):
    spec, expected = BUDGETS[what]
    made = optional(**spec).get("PodDisruptionBudget")
    assert (made is None) == (expected is None)
    if made is not None:
        assert expected.items() <= made["spec"].items()
        assert made["spec"]["unhealthyPodEvictionPolicy"] == "AlwaysAllow"


def test_budget_and_monitor_select_what_is_the_servers():
    monitoring = {"serviceMonitor": True, "interval": "15s", "labels": {"release": "prometheus"}}
    found = {child["kind"]: child for child in planned(replicas=2, monitoring=monitoring).children}
    pods = found["Deployment"]["spec"]["template"]["metadata"]["labels"]
    assert found["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"] == pods
    monitor = found["ServiceMonitor"]
    assert monitor["spec"]["selector"]["matchLabels"].items() <= found["Service"]["metadata"]["labels"].items()
    assert monitor["spec"]["endpoints"] == [{"targetPort": "metrics", "interval": "15s"}]
    ports = found["Deployment"]["spec"]["template"]["spec"]["containers"][0]["ports"]
    assert "metrics" in {port["name"] for port in ports}
    assert monitor["metadata"]["labels"] == {**pods, "release": "prometheus"}
    assert "release" not in found["Service"]["metadata"]["labels"]


def test_all_of_it_belongs_to_the_server_and_has_its_name():
    monitoring = {"serviceMonitor": True}
    found = optional(ingress={"host": "a.b"}, monitoring=monitoring, **AUTO)
    assert list(found) == list(OPTIONAL_KINDS)
    assert {child["metadata"]["name"] for child in found.values()} == {"ms-chat"}
    assert {child["metadata"]["ownerReferences"][0]["uid"] for child in found.values()} == {"uid-ms-chat"}


def test_what_is_no_longer_asked_for_is_unwanted():
    assert planned(ingress={"host": "a.b"}).unwanted == (
        *(Key(kind, "ms-chat") for kind in OPTIONAL_KINDS if kind != "Ingress"),
        *NO_ACTIVATOR,
    )


def test_nothing_is_unwanted_while_nothing_can_be_planned():
    assert plan(model_server(), world(), CLUSTER).unwanted == ()


def configs_to_go(server):
    return [key.name for key in planned(server=server).unwanted if key.kind == "ConfigMap"]


def test_a_configuration_goes_once_no_replica_has_it():
    (now,) = (child["metadata"]["name"] for child in planned().children if child["kind"] == "ConfigMap")
    both = ("ms-chat-before", now)
    assert configs_to_go(ServerFacts(2, 1, "u", 0, config=None, configs=both)) == [], "a rollout is under way"
    assert configs_to_go(ServerFacts(1, 1, "u", 1, config="ms-chat-before", configs=both)) == [], "it has not begun"
    assert configs_to_go(ServerFacts(1, 1, "u", 1, config=now, configs=both)) == ["ms-chat-before"]
    assert configs_to_go(ServerFacts(1, 1, "u", 1, config=now, configs=(now,))) == []
