"""When a server sleeps, what stands before it, and what its status says."""

from dataclasses import replace

import pytest

from builders import (
    CLUSTER,
    LAPTOP,
    finished,
    later,
    lora_merge,
    model_server,
    pod,
    with_status,
    world,
)
from herdsman.core.plan import plan
from herdsman.core.status import status
from herdsman.core.world import ActivatorFacts, Demand, Key, ServerFacts

MERGED = finished(lora_merge())
AUTO = {"autoscaling": {"minReplicas": 2, "maxReplicas": 4, "targetWaitingRequests": 3}}
ASLEEP = ServerFacts(0, 0, "u", 1, wanted=0, asleep=True)
SERVING = ServerFacts(1, 1, "u", 1, wanted=1)
STARTING = ServerFacts(1, 0, "u", 1, wanted=1)


def sleeper(*, after=60, generation=1, **spec):
    scaling = {"afterIdleSeconds": after, **spec.pop("scaling", {})}
    return model_server(scaleToZero=scaling, metadata={"generation": generation}, **spec)


def told(requests=0, idle=0.0, *, ready=1):
    return ActivatorFacts(ready=ready, demand=Demand(requests, idle))


def seen(server, activator, *others):
    return replace(world(*(others or (MERGED,)), server=server), activator=activator)


def planned(resource, server=None, activator=None, site=CLUSTER):
    made = plan(resource, seen(server, activator), site)
    return {(child["kind"], child["metadata"]["name"]): child for child in made.children}, made


def replicas(*args, **options):
    """The number that the Deployment names; None where it is left to autoscaling."""
    children, _ = planned(*args, **options)
    return children["Deployment", "ms-chat"]["spec"].get("replicas")


SILENT = ActivatorFacts(ready=1, demand=None)
ROLLING = ServerFacts(2, 1, "u", 0, wanted=1)
DECISIONS = [
    ("it is new", None, None, 1),
    ("nobody has asked for long enough", SERVING, told(0, 60.0), 0),
    ("somebody has asked a moment ago", SERVING, told(0, 59.0), 1),
    ("somebody asks, however long the others are silent", SERVING, told(1, 0.0), 1),
    ("an activator does not answer", SERVING, SILENT, 1),
    ("there is no activator", SERVING, None, 1),
    ("no activator is ready", SERVING, told(0, 600.0, ready=0), 1),
    ("no replica has answered yet", STARTING, told(0, 600.0), 1),
    ("a change is being rolled out", ROLLING, told(0, 600.0), 1),
    ("it sleeps and nobody asks", ASLEEP, told(0, 0.0), 0),
    ("it sleeps and somebody asks", ASLEEP, told(1), 1),
    ("it sleeps and an activator does not answer", ASLEEP, SILENT, 0),
    ("it sleeps and no activator is there", ASLEEP, None, 0),
    ("it was switched off and on again", ServerFacts(0, 0, "u", 1, wanted=0), told(0, 600.0), 1),
]


@pytest.mark.parametrize(
    ("server", "activator", "wanted"), [row[1:] for row in DECISIONS], ids=[r[0] for r in DECISIONS]
)
def test_how_many_replicas_there_should_be_when(server, activator, wanted):
    assert replicas(sleeper(), server, activator) == wanted


def test_a_change_wakes_it_so_that_what_is_wrong_shows_at_once():
    assert replicas(sleeper(generation=2), ASLEEP, told(0, 600.0)) == 1
    unseen = replace(ASLEEP, observed_generation=0)
    assert replicas(sleeper(generation=2), unseen, told(0, 600.0)) == 0, "the Deployment's status is behind"


def test_with_autoscaling_the_number_is_named_only_in_its_sleep():
    assert replicas(sleeper(**AUTO), ASLEEP, told()) == 0
    assert replicas(sleeper(**AUTO), ASLEEP, told(1)) is None
    assert replicas(sleeper(**AUTO), ServerFacts(3, 3, "u", 1, wanted=3), told(0, 60.0)) == 0


def test_nothing_is_ever_put_to_sleep_without_the_field_and_a_sleeper_wakes_when_the_field_goes():
    assert replicas(model_server(), ASLEEP, told(0, 600.0)) == 1


def test_a_server_that_is_switched_off_has_no_activators():
    children, _ = planned(sleeper(replicas=0), ASLEEP, told(3))
    assert children["Deployment", "ms-chat"]["spec"]["replicas"] == 0
    assert children["Deployment", "ma-chat"]["spec"]["replicas"] == 0
    assert "herdsman.dev/asleep" not in children["Deployment", "ms-chat"]["metadata"]["annotations"]


def test_it_is_looked_at_again_when_it_may_fall_asleep():
    assert planned(sleeper(), SERVING, told(0, 20.0))[1].requeue_after == 40.0
    assert planned(sleeper(), SERVING, told(0, 59.9))[1].requeue_after == 0.5
    assert planned(sleeper(), SERVING, told(1))[1].requeue_after is None
    assert planned(sleeper(), ASLEEP, told())[1].requeue_after is None


def test_the_same_plan_is_made_again():
    for server, activator in ((SERVING, told(0, 60.0)), (ASLEEP, told()), (ASLEEP, told(2))):
        resource = sleeper()
        assert planned(resource, server, activator) == planned(resource, server, activator)


# What stands before it.


def selectors(activator):
    children, _ = planned(sleeper(), SERVING, activator)
    return {name: children["Service", name]["spec"]["selector"] for name in ("ms-chat", "mr-chat")}


def test_clients_reach_the_activators_once_they_are_ready_and_the_replicas_until_then():
    pods = {"app.kubernetes.io/managed-by": "herdsman", "herdsman.dev/kind": "ModelServer", "herdsman.dev/name": "chat"}
    activators = {"app.kubernetes.io/managed-by": "herdsman", "herdsman.dev/activates": "chat"}
    assert selectors(None) == {"ms-chat": pods, "mr-chat": pods}
    assert selectors(told(ready=0)) == {"ms-chat": pods, "mr-chat": pods}
    assert selectors(told(ready=1)) == {"ms-chat": activators, "mr-chat": pods}


def test_no_selector_of_the_replicas_takes_an_activator_for_one():
    children, _ = planned(sleeper(**AUTO))
    labels = children["Deployment", "ma-chat"]["spec"]["template"]["metadata"]["labels"]
    wanted = children["Deployment", "ms-chat"]["spec"]["selector"]["matchLabels"]
    assert not wanted.items() <= labels.items()
    budget = children["PodDisruptionBudget", "ms-chat"]["spec"]["selector"]["matchLabels"]
    assert not budget.items() <= labels.items()


def activator_pod(**options):
    spec = {"apiKey": {"secret": {"name": "keys", "key": "api"}}, "corsOrigins": ["https://a.example.com"], **options}
    children, _ = planned(sleeper(**spec))
    return children["Deployment", "ma-chat"]["spec"]


def test_an_activator_is_small_has_no_rights_and_is_told_what_it_needs():
    spec = activator_pod(scaling={"holdSeconds": 30}, limits={"queueLength": 9, "requestSeconds": 100})
    pod_spec = spec["template"]["spec"]
    (container,) = pod_spec["containers"]
    assert container["image"] == CLUSTER.activator_image
    assert container["command"] == [
        "python",
        "-m",
        "herdsman.activator",
        "--backend=http://mr-chat:8000",
        "--model=chat",
        "--port=8000",
        "--control-port=9400",
        "--hold-seconds=30",
        "--hold-requests=9",
        "--accept-seconds=10",
        "--origin=https://a.example.com",
    ]
    assert container["resources"]["limits"] == {"memory": "128Mi"}
    assert pod_spec["automountServiceAccountToken"] is False
    assert pod_spec["terminationGracePeriodSeconds"] == 10 + 30 + 100 + 10
    assert spec["strategy"]["rollingUpdate"] == {"maxUnavailable": 0, "maxSurge": 1}
    assert {volume["name"] for volume in pod_spec["volumes"]} == {"tmp", "secret-0"}
    assert container["env"] == [{"name": "HERDSMAN_API_KEY_FILE", "value": "/etc/herdsman-keys/keys"}]


def test_what_several_activators_hold_finds_place_in_one_queue():
    command = activator_pod(scaling={"activators": 3})["template"]["spec"]["containers"][0]["command"]
    assert "--hold-requests=10" in command
    assert activator_pod(scaling={"activators": 3})["template"]["spec"]["topologySpreadConstraints"]


def test_the_port_that_is_not_for_clients_is_another_one():
    spec = activator_pod(port=9400, metricsPort=9500)
    ports = {each["name"]: each["containerPort"] for each in spec["template"]["spec"]["containers"][0]["ports"]}
    assert ports == {"http": 9400, "metrics": 9401}
    assert spec["template"]["metadata"]["annotations"] == {"herdsman.dev/control-port": "9401"}


def test_without_the_field_activators_are_unwanted_and_with_it_they_are_not():
    without = plan(model_server(), seen(SERVING, told()), CLUSTER).unwanted
    assert {Key("Deployment", "ma-chat"), Key("Service", "mr-chat")} <= set(without)
    assert not {"ma-chat", "mr-chat"} & {key.name for key in planned(sleeper())[1].unwanted}


def test_on_one_machine_the_process_is_kept_and_that_is_said():
    children, made = planned(sleeper(), SERVING, None, site=LAPTOP)
    assert {name for _, name in children if name.startswith(("ma-", "mr-"))} == set()
    found = status(sleeper(), made, seen(SERVING, None))
    assert found.phase == "Ready"
    assert "spec.scaleToZero does nothing here" in condition(found, "Progressing").message


# What is said.


def condition(of, kind):
    return next(entry for entry in of.conditions if entry.type == kind)


def report(resource, server, activator, *others, now=None):
    there = replace(seen(server, activator, *others), **({"now": now} if now else {}))
    return status(resource, plan(resource, there, CLUSTER), there)


def test_a_server_without_replicas_is_idle_and_ready():
    found = report(sleeper(), ASLEEP, told())
    assert (found.phase, found.failure, found.replicas, found.url) == ("Idle", None, 0, "u")
    ready, progressing = condition(found, "Ready"), condition(found, "Progressing")
    assert (ready.status, ready.reason) == ("True", "ScaledToZero")
    assert (progressing.status, progressing.reason) == ("False", "ScaledToZero")
    assert "the next request has one started" in progressing.message


def test_while_its_last_replica_ends_it_is_idle_already():
    found = report(sleeper(), replace(ASLEEP, replicas=1, ready=1), told())
    assert (found.phase, condition(found, "Ready").reason) == ("Idle", "ScaledToZero")
    alone = report(sleeper(), replace(ASLEEP, replicas=1, ready=1), None)
    assert (alone.phase, condition(alone, "Ready").reason) == ("Idle", "Ready")


def test_without_an_activator_it_is_not_ready_and_the_cause_is_told():
    stuck = pod("ma-chat-1", container="activator", reason="ImagePullBackOff", message="no such image")
    found = report(sleeper(), ASLEEP, ActivatorFacts(ready=0, pods=(stuck,)))
    assert condition(found, "Ready").status == "False"
    assert (
        "no activator is ready: The image cannot be pulled (ma-chat-1): no such image"
        in condition(found, "Ready").message
    )


def test_while_it_wakes_it_is_progressing_and_still_ready():
    asleep = report(sleeper(), ASLEEP, told())
    found = report(with_status(sleeper(), asleep), STARTING, told(2))
    assert (found.phase, condition(found, "Ready").status) == ("Progressing", "True")
    assert condition(found, "Ready").reason == "ScaledToZero"
    awake = report(with_status(sleeper(), found), SERVING, told(2))
    assert (awake.phase, condition(awake, "Ready").reason) == ("Ready", "Ready")


def test_one_that_cannot_wake_is_degraded_and_not_ready():
    asleep = report(sleeper(), ASLEEP, told())
    stuck = pod("ms-chat-1", container="server", reason="Unschedulable", message="no GPU is free")
    found = report(with_status(sleeper(), asleep), replace(STARTING, pods=(stuck,)), told(2))
    assert (found.phase, found.failure.reason) == ("Degraded", "Unschedulable")
    assert condition(found, "Ready").status == "False"


def test_one_that_starts_for_the_first_time_is_not_ready():
    found = report(sleeper(), STARTING, told())
    assert condition(found, "Ready").status == "False"


def test_replicas_that_are_kept_for_want_of_an_activator_are_told():
    found = report(sleeper(), SERVING, None)
    assert found.phase == "Ready"
    assert "kept also while nobody asks, because no activator is ready yet" in condition(found, "Progressing").message
    assert "because" not in condition(report(sleeper(), SERVING, told()), "Progressing").message


def test_a_status_fed_back_changes_nothing():
    first = report(sleeper(), ASLEEP, told())
    assert report(with_status(sleeper(), first), ASLEEP, told(0, 50.0), now=later(60)) == first


# A change that cannot be planned.

CHANGED = sleeper(model={"loraMerge": "next"}, generation=2)


def test_a_sleeper_whose_change_waits_is_woken_as_it_was():
    there = seen(ASLEEP, told(1), MERGED)
    made = plan(CHANGED, there, CLUSTER)
    assert (made.children, made.wake) == ((), "ms-chat")
    assert plan(CHANGED, seen(ASLEEP, told(0), MERGED), CLUSTER).wake is None
    assert plan(CHANGED, seen(SERVING, told(1), MERGED), CLUSTER).wake is None


def test_a_sleeper_whose_change_waits_says_so_and_is_ready():
    found = report(CHANGED, ASLEEP, told(), MERGED)
    assert (found.phase, condition(found, "Ready").status) == ("Idle", "True")
    assert "The last change waits: spec.model.loraMerge" in condition(found, "Progressing").message
