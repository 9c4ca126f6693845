"""A server's objects and its status."""

from dataclasses import replace

import pytest

from builders import (
    CLUSTER,
    LAPTOP,
    NOW,
    finished,
    later,
    lora_merge,
    model_server,
    pod,
    said,
    sft_job,
    with_status,
    world,
)
from herdsman.core.plan import plan
from herdsman.core.status import is_final, is_refused, status
from herdsman.core.world import Key, ServerFacts

MERGED = finished(lora_merge())


def children(resource, *, site=CLUSTER):
    return {child["kind"]: child for child in plan(resource, world(MERGED), site).children}


def report(resource, *others, server=None, now=NOW, unmade=()):
    seen = replace(world(*others, server=server, now=now), unmade=dict(unmade))
    return status(resource, plan(resource, seen, CLUSTER), seen)


def condition(of, kind):
    return next(entry for entry in of.conditions if entry.type == kind)


def test_a_server_is_a_deployment_behind_a_service():
    made = children(model_server(replicas=3, port=9000))
    assert {child["metadata"]["name"] for kind, child in made.items() if kind != "ConfigMap"} == {"ms-chat"}
    deployment, service = made["Deployment"]["spec"], made["Service"]["spec"]
    assert deployment["replicas"] == 3
    assert deployment["strategy"]["rollingUpdate"]["maxUnavailable"] == 0
    assert service["selector"] == deployment["selector"]["matchLabels"] == deployment["template"]["metadata"]["labels"]
    assert service["ports"][0]["port"] == 9000
    container = deployment["template"]["spec"]["containers"][0]
    assert container["ports"] == [
        {"name": "http", "containerPort": 9000},
        {"name": "metrics", "containerPort": 9400},
    ]
    assert [port["name"] for port in service["ports"]] == ["http"], "the metrics are no business of clients"
    assert container["command"][1:3] == ["-m", "herdsman_server"]
    assert "restartPolicy" not in deployment["template"]["spec"]


def test_a_server_writes_no_volume():
    mounts = children(model_server())["Deployment"]["spec"]["template"]["spec"]["containers"][0]["volumeMounts"]
    assert [mount["readOnly"] for mount in mounts if mount["mountPath"].startswith("/volumes")] == [True]


def test_another_configuration_is_another_template_and_another_number_of_replicas_is_not():
    def template(resource):
        return children(resource)["Deployment"]["spec"]["template"]

    assert template(model_server(limits={"maxTokens": 5})) != template(model_server())
    assert template(model_server(replicas=4)) == template(model_server())
    other = model_server(metadata={"generation": 7})
    assert template(other) == template(model_server())
    assert children(other)["Deployment"]["metadata"]["annotations"]["herdsman.dev/generation"] == "7"


def test_on_one_machine_nobody_else_can_reach_the_server():
    text = children(model_server(), site=LAPTOP)["ConfigMap"]["data"]["job.json"]
    assert '"host": "127.0.0.1"' in text


def test_every_configuration_has_a_config_map_of_its_own():
    def names(resource):
        made = children(resource)
        volumes = made["Deployment"]["spec"]["template"]["spec"]["volumes"]
        mounted = [volume["configMap"]["name"] for volume in volumes if "configMap" in volume]
        assert mounted == [made["ConfigMap"]["metadata"]["name"]]
        assert made["ConfigMap"]["immutable"] is True
        return mounted[0]

    assert names(model_server()) == names(model_server(replicas=5, metadata={"generation": 4}))
    assert names(model_server()) != names(model_server(limits={"maxTokens": 5}))
    assert names(model_server()).startswith("ms-chat-")
    assert len(names(model_server("n" * 40))) <= 63


def test_a_replica_has_time_to_finish_its_answers_after_the_cluster_has_heard_that_it_stops():
    made = children(model_server(limits={"drainSeconds": 300}))
    assert '"acceptSeconds": 10' in made["ConfigMap"]["data"]["job.json"]
    assert made["Deployment"]["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] == 10 + 300 + 10
    assert '"acceptSeconds": 0' in children(model_server(), site=LAPTOP)["ConfigMap"]["data"]["job.json"]


KEY = {"apiKey": {"secret": {"name": "chat-keys", "key": "api"}}}


def test_on_a_cluster_keys_are_a_file_that_follows_its_secret():
    made = children(model_server(**KEY))
    pod_spec = made["Deployment"]["spec"]["template"]["spec"]
    container = pod_spec["containers"][0]
    (volume,) = [volume for volume in pod_spec["volumes"] if "secret" in volume]
    assert volume["secret"]["secretName"] == "chat-keys"
    assert volume["secret"]["items"] == [{"key": "api", "path": "keys"}]
    assert "optional" not in volume["secret"], "without the Secret nothing may start"
    (mount,) = [mount for mount in container["volumeMounts"] if mount["name"] == volume["name"]]
    assert mount["readOnly"]
    assert "subPath" not in mount, "a subPath never changes"
    others = [other["mountPath"] for other in container["volumeMounts"] if other is not mount]
    assert not any(mount["mountPath"].startswith(f"{other}/") for other in others), (
        "no mount point can be made in a volume"
    )
    environment = {entry["name"]: entry.get("value") for entry in container["env"]}
    assert environment["HERDSMAN_API_KEY_FILE"] == f"{mount['mountPath']}/keys"
    assert "HERDSMAN_API_KEY" not in environment, "it would go on to hold when the Secret has changed"
    assert "chat-keys" not in made["ConfigMap"]["data"]["job.json"]


def test_on_one_machine_the_key_is_a_variable():
    pod_spec = children(model_server(**KEY), site=LAPTOP)["Deployment"]["spec"]["template"]["spec"]
    reference = {"secretKeyRef": {"name": "chat-keys", "key": "api"}}
    assert {"name": "HERDSMAN_API_KEY", "valueFrom": reference} in pod_spec["containers"][0]["env"]
    assert not any("secret" in volume for volume in pod_spec["volumes"])


PORTS = {
    "the cluster's": (CLUSTER, {}, 9400),
    "the spec's": (CLUSTER, {"metricsPort": 9401}, 9401),
    "none on one machine": (LAPTOP, {}, 0),
    "the spec's on one machine": (LAPTOP, {"metricsPort": 9401}, 9401),
}


@pytest.mark.parametrize("what", PORTS)
def test_the_port_of_the_metrics(what):
    site, spec, port = PORTS[what]
    made = children(model_server(**spec), site=site)
    assert f'"metricsPort": {port}' in made["ConfigMap"]["data"]["job.json"]
    ports = made["Deployment"]["spec"]["template"]["spec"]["containers"][0]["ports"]
    assert [entry["containerPort"] for entry in ports if entry["name"] == "metrics"] == ([port] if port else [])


def test_limits_origins_and_the_dialect_reach_the_server():
    spec = {"limits": {"bodyBytes": 2048, "parallel": 7}, "corsOrigins": ["https://app.example.com"]}
    made = children(model_server(**spec, dialect="chinese-llama-alpaca"))
    text = made["ConfigMap"]["data"]["job.json"]
    assert '"bodyBytes": 2048' in text
    assert '"parallel": 7' in text
    assert '"https://app.example.com"' in text
    assert '"dialect": "chinese-llama-alpaca"' in text


CRASHED = pod("ms-chat-1", phase="Failed", exit_code=1, container="server")
STATES = [
    ("nothing is made yet", model_server(), None, "Progressing", "False"),
    ("it starts", model_server(), ServerFacts(1, 0, None, 1), "Progressing", "False"),
    ("it answers", model_server(), ServerFacts(1, 1, "http://x", 1), "Ready", "True"),
    ("some of it answers", model_server(replicas=3), ServerFacts(3, 1, "http://x", 1), "Progressing", "True"),
    ("a replica crashed", model_server(replicas=2), ServerFacts(2, 1, "u", 1, (CRASHED,)), "Degraded", "True"),
    ("all crashed", model_server(), ServerFacts(1, 0, None, 1, (CRASHED,)), "Degraded", "False"),
    ("it is rolled out", model_server(metadata={"generation": 2}), ServerFacts(1, 1, "u", 0), "Progressing", "True"),
    (
        "a rollout is stuck",
        model_server(metadata={"generation": 2}),
        ServerFacts(2, 1, "u", 0, (CRASHED,)),
        "Degraded",
        "True",
    ),
    ("it is scaled to nothing", model_server(replicas=0), ServerFacts(0, 0, None, 1), "Suspended", "False"),
]


@pytest.mark.parametrize(
    ("resource", "server", "phase", "ready"), [row[1:] for row in STATES], ids=[r[0] for r in STATES]
)
def test_the_phase_when(resource, server, phase, ready):
    found = report(resource, MERGED, server=server)
    assert (found.phase, condition(found, "Ready").status) == (phase, ready)
    assert [entry.type for entry in found.conditions] == ["Accepted", "DependenciesReady", "Progressing", "Ready"]
    assert all(entry.message for entry in found.conditions)


def test_a_server_waits_for_its_model():
    found = report(model_server())
    assert found.phase == "Waiting"
    assert condition(found, "DependenciesReady").reason == "ReferenceNotFound"
    assert not is_refused(found)


def test_a_server_goes_on_without_the_resource_its_model_came_from():
    found = report(model_server(), server=ServerFacts(1, 1, "http://x", 1))
    assert found.phase == "Ready"
    assert condition(found, "DependenciesReady").status == "False"
    assert "goes on with what it started with" in condition(found, "DependenciesReady").message


def test_what_is_wrong_with_a_replica_is_told_in_its_own_words():
    last_words = said("BadInput", "no lm_head in shard 2", file="model.safetensors", hint="Merge it anew.")
    fallen = pod("ms-chat-1", phase="Failed", exit_code=42, container="server", termination=last_words)
    found = report(model_server(), MERGED, server=ServerFacts(1, 0, None, 1, (fallen,)))
    assert found.failure.message == "model.safetensors: no lm_head in shard 2"
    assert (found.failure.hint, found.failure.exit_code, found.failure.container) == ("Merge it anew.", 42, "server")
    assert "no lm_head in shard 2" in condition(found, "Ready").message


def test_a_failure_is_forgotten_once_all_replicas_answer():
    found = report(model_server(), MERGED, server=ServerFacts(1, 1, "http://x", 1, (CRASHED,)))
    assert found.failure is None


def test_where_it_answers_and_the_selector_for_scaling_are_told():
    found = report(model_server(replicas=2), MERGED, server=ServerFacts(2, 1, "http://x:8000", 1))
    assert (found.url, found.replicas, found.ready_replicas) == ("http://x:8000", 2, 1)
    assert "herdsman.dev/name=chat" in found.selector


def test_a_servers_status_fed_back_changes_nothing_and_is_never_final():
    server = ServerFacts(1, 1, "http://x", 1)
    first = report(model_server(), MERGED, server=server)
    assert report(with_status(model_server(), first), MERGED, server=server, now=later(60)) == first
    assert not is_final(first)


CHANGED = model_server(model={"loraMerge": "next"}, metadata={"generation": 2})


def test_a_change_that_waits_for_its_model_leaves_the_replicas_as_they_are():
    found = report(CHANGED, server=ServerFacts(1, 1, "http://x", 1))
    assert plan(CHANGED, world(server=ServerFacts(1, 1, "http://x", 1)), CLUSTER).children == ()
    assert (found.phase, condition(found, "Ready").status) == ("Waiting", "True")
    assert "as before the last change, which waits: spec.model.loraMerge" in condition(found, "Progressing").message
    assert not is_refused(found)


def test_a_change_that_cannot_be_leaves_the_replicas_as_they_are_and_says_why():
    other = finished(lora_merge("next"), kind="adapter")
    wrong = model_server(model={"loraMerge": "next"}, adapters=[{"sftJob": "tuned"}], metadata={"generation": 2})
    tuned = finished(sft_job("tuned"), base_digest="f" * 64)
    found = report(wrong, finished(lora_merge("next")), tuned, other, server=ServerFacts(1, 1, "http://x", 1))
    assert (found.phase, condition(found, "Ready").status) == ("Waiting", "True")
    assert found.failure.reason == "ArtifactMismatch"
    assert found.failure.message in condition(found, "Progressing").message


def test_a_stuck_rollout_is_told_with_its_cause_while_those_of_before_answer():
    stuck = pod("ms-chat-2", container="server", reason="ImagePullBackOff", message="no such image")
    found = report(model_server(metadata={"generation": 2}), MERGED, server=ServerFacts(2, 1, "u", 0, (stuck,)))
    assert (found.phase, found.failure.reason) == ("Degraded", "ImageUnavailable")
    assert condition(found, "Progressing").message.startswith("1 of 1 replicas answer. The image cannot be pulled")
    assert (condition(found, "Ready").status, condition(found, "Ready").message) == ("True", "1 of 1 replicas answer.")


def test_a_secret_that_is_not_there_is_named_with_the_remedy():
    waits = pod("ms-chat-2", container="server", reason="SecretNotFound", message='secret "chat-keys" not found')
    found = report(model_server(), MERGED, server=ServerFacts(1, 0, None, 1, (waits,)))
    assert (found.phase, found.failure.reason) == ("Degraded", "SecretNotFound")
    assert 'secret "chat-keys" not found' in found.failure.message
    assert "spec.apiKey.secret" in found.failure.hint


AUTO = {"autoscaling": {"minReplicas": 2, "maxReplicas": 4, "targetWaitingRequests": 3}}
SCALED = [
    ("autoscaling has not begun", ServerFacts(1, 1, "u", 1, wanted=1), "Progressing", "1 of 2"),
    ("at the least", ServerFacts(2, 2, "u", 1, wanted=2), "Ready", "2 of 2"),
    ("under load", ServerFacts(4, 3, "u", 1, wanted=4), "Progressing", "3 of 4"),
    ("more than is allowed is on its way down", ServerFacts(9, 9, "u", 1, wanted=9), "Ready", "9 of 4"),
]


@pytest.mark.parametrize(("server", "phase", "told"), [row[1:] for row in SCALED], ids=[row[0] for row in SCALED])
def test_with_autoscaling_as_many_replicas_are_wanted_as_it_found(server, phase, told):
    found = report(model_server(**AUTO), MERGED, server=server)
    assert (found.phase, condition(found, "Progressing").message[:6]) == (phase, told)


def test_without_an_autoscaler_the_least_is_not_waited_for():
    key = Key("HorizontalPodAutoscaler", "ms-chat")
    found = report(model_server(**AUTO), MERGED, server=ServerFacts(1, 1, "u", 1, wanted=1), unmade={key: "no."})
    assert found.phase == "Ready"
    assert condition(found, "Progressing").message.endswith("The HorizontalPodAutoscaler ms-chat was not made: no.")


def test_what_is_missing_beside_a_server_is_told_as_long_as_it_is_asked_for():
    key = Key("ServiceMonitor", "ms-chat")
    told = {key: "the cluster does not know the kind ServiceMonitor"}
    facts = ServerFacts(1, 1, "u", 1)
    found = report(model_server(monitoring={"serviceMonitor": True}), MERGED, server=facts, unmade=told)
    assert (found.phase, found.failure) == ("Ready", None)
    assert "The ServiceMonitor ms-chat was not made: the cluster does not" in condition(found, "Progressing").message
    assert (
        "ServiceMonitor"
        not in condition(report(model_server(), MERGED, server=facts, unmade=told), "Progressing").message
    )
