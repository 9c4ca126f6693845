"""A server's objects and its status."""

import pytest

from builders import CLUSTER, LAPTOP, NOW, finished, later, lora_merge, model_server, pod, said, with_status, world
from herdsman.core.plan import plan
from herdsman.core.status import is_final, is_refused, status
from herdsman.core.world import ServerFacts

MERGED = finished(lora_merge())


def children(resource, *, site=CLUSTER):
    return {child["kind"]: child for child in plan(resource, world(MERGED), site).children}


def report(resource, *others, server=None, now=NOW):
    seen = world(*others, server=server, now=now)
    return status(resource, plan(resource, seen, CLUSTER), seen)


def condition(of, kind):
    return next(entry for entry in of.conditions if entry.type == kind)


def test_a_server_is_a_deployment_behind_a_service():
    made = children(model_server(replicas=3, port=9000))
    assert {child["metadata"]["name"] for child in made.values()} == {"ms-chat"}
    deployment, service = made["Deployment"]["spec"], made["Service"]["spec"]
    assert deployment["replicas"] == 3
    assert deployment["strategy"]["rollingUpdate"]["maxUnavailable"] == 0
    assert service["selector"] == deployment["selector"]["matchLabels"] == deployment["template"]["metadata"]["labels"]
    assert service["ports"][0]["port"] == 9000
    container = deployment["template"]["spec"]["containers"][0]
    assert container["ports"] == [{"name": "http", "containerPort": 9000}]
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


CRASHED = pod("ms-chat-1", phase="Failed", exit_code=1, container="server")
STATES = [
    ("nothing is made yet", model_server(), None, "Progressing", "False"),
    ("it starts", model_server(), ServerFacts(1, 0, None, 1), "Progressing", "False"),
    ("it answers", model_server(), ServerFacts(1, 1, "http://x", 1), "Ready", "True"),
    ("some of it answers", model_server(replicas=3), ServerFacts(3, 1, "http://x", 1), "Progressing", "True"),
    ("a replica crashed", model_server(replicas=2), ServerFacts(2, 1, "u", 1, (CRASHED,)), "Degraded", "True"),
    ("all crashed", model_server(), ServerFacts(1, 0, None, 1, (CRASHED,)), "Degraded", "False"),
    ("it is rolled out", model_server(metadata={"generation": 2}), ServerFacts(1, 1, "u", 1), "Progressing", "False"),
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
