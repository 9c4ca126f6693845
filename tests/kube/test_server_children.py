"""A server that changes: what it has beside its Deployment, who owns the number of replicas, what is left behind."""

import copy

import pytest

import builders
from herdsman.core.optional_children import OPTIONAL_KINDS
from herdsman.kube.errors import ApiError
from kube.fake_api import Crash
from kube.fake_platform import run_on
from kube.station import NAMESPACE, Station, run

INGRESS = {"ingress": {"host": "chat.example.com"}}
AUTO = {"autoscaling": {"minReplicas": 2, "maxReplicas": 8, "targetWaitingRequests": 4}}
ALL = {**INGRESS, **AUTO, "monitoring": {"serviceMonitor": True}}


def served(**spec):
    return builders.model_server("chat", **{"model": {"volume": {"claim": "weights", "path": "m"}}, **spec})


async def serving(**spec):
    """A station with a server that serves."""
    station = Station(run_on)
    station.claims("weights")
    station.put(served(**spec))
    await begin(station)
    return station


async def begin(station):
    """Start an operator and let it come to rest."""
    station.start()
    await station.operator.list_until_done()
    await station.settle(patience=5)


async def change(station, **spec):
    """Change the server's spec as a user does, and let the operator come to rest; None removes a member."""
    station.api.change("ModelServer", NAMESPACE, "chat", {"spec": spec})
    await station.settle(patience=5)


def deployment(station):
    return station.api.of("Deployment")[0]


def optional(station):
    return {kind for kind in OPTIONAL_KINDS if station.api.of(kind)}


def condition(station, kind):
    return next(item for item in station.status(served())["conditions"] if item["type"] == kind)


def test_what_a_server_has_beside_its_deployment_is_made_once():
    async def story():
        station = await serving(**ALL)
        made, before = optional(station), len(station.api.writes)
        await begin(station)
        await station.operator.resync()
        await station.settle(patience=60)
        return station, made, station.api.writes[before:]

    station, made, writes = run(story)
    assert made == set(OPTIONAL_KINDS)
    assert writes == []
    assert condition(station, "Progressing")["reason"] == "Ready"


def test_what_is_no_longer_asked_for_is_deleted_and_the_rest_stays():
    async def story():
        station = await serving(**ALL)
        await change(station, ingress=None, monitoring={"serviceMonitor": False})
        first = optional(station)
        await change(station, autoscaling=None)
        before = len(station.api.calls)
        await station.operator.resync()
        await station.settle(patience=60)
        return station, first, [call for call in station.api.calls[before:] if call.verb != "list"]

    station, first, later = run(story)
    assert first == {"HorizontalPodAutoscaler", "PodDisruptionBudget"}
    assert optional(station) == set()
    assert later == [], "and it is not asked for again"
    assert condition(station, "Ready")["status"] == "True"


def test_it_is_deleted_also_by_an_operator_that_was_not_there_when_it_was_made():
    async def story():
        station = await serving(**ALL)
        station.api.change("ModelServer", NAMESPACE, "chat", {"spec": {"ingress": None}})
        await begin(station)
        return station

    assert "Ingress" not in optional(run(story))


def test_an_ingress_of_somebody_else_with_that_name_is_left_alone():
    async def story():
        station = Station(run_on)
        station.claims("weights")
        labels = {"app.kubernetes.io/managed-by": "herdsman", "herdsman.dev/kind": "ModelServer"}
        metadata = {"name": "ms-chat", "namespace": NAMESPACE, "labels": {**labels, "herdsman.dev/name": "chat"}}
        theirs = {"apiVersion": "networking.k8s.io/v1", "kind": "Ingress", "metadata": metadata, "spec": {"rules": []}}
        station.api.add(theirs)
        before = copy.deepcopy(station.api.of("Ingress"))
        station.put(served())
        await begin(station)
        phase = station.status(served())["phase"]
        await change(station, **INGRESS)
        return station, before, phase

    station, before, phase = run(story)
    assert phase == "Ready", "a server that wants no ingress does not care"
    assert station.api.of("Ingress") == before
    assert condition(station, "Accepted")["reason"] == "NameConflict"


def test_what_somebody_deleted_is_made_again_with_the_next_listing():
    async def story():
        station = await serving(**ALL)
        station.api.remove("PodDisruptionBudget", NAMESPACE, "ms-chat")
        await station.operator.resync()
        await station.settle(patience=60)
        return station

    assert optional(run(story)) == set(OPTIONAL_KINDS)


def test_a_kind_that_the_cluster_does_not_know_stops_nothing_and_is_told():
    async def story():
        station = Station(run_on)
        station.api.unknown.add("ServiceMonitor")
        station.claims("weights")
        station.put(served(**ALL))
        await begin(station)
        told = copy.deepcopy(station.status(served()))
        before = len(station.api.calls)
        await station.settle(patience=50)
        asked = [call for call in station.api.calls[before:] if call.kind == "ServiceMonitor"]
        await station.settle(patience=3600)
        often = [call for call in station.api.calls[before:] if call.kind == "ServiceMonitor" and call.verb == "apply"]
        station.api.unknown.clear()
        await station.settle(patience=1200)
        return station, told, asked, often

    station, told, asked, often = run(story)
    assert told["phase"] == "Ready"
    message = next(item["message"] for item in told["conditions"] if item["type"] == "Progressing")
    assert "The ServiceMonitor ms-chat was not made: the cluster does not know the kind ServiceMonitor" in message
    events = [body for body in station.api.of("Event") if "The ServiceMonitor ms-chat was not made" in body["message"]]
    assert [(event["type"], event["involvedObject"]["kind"]) for event in events] == [("Warning", "ModelServer")]
    assert asked == []
    assert 5 <= len(often) <= 12, "it is tried again, slowly"
    assert optional(station) == set(OPTIONAL_KINDS)
    assert "ServiceMonitor" not in condition(station, "Progressing")["message"]
    assert station.errors() == {}


@pytest.mark.parametrize("status", [403, 422])
def test_an_ingress_that_a_policy_refuses_stops_nothing_and_is_told(status):
    async def story():
        station = Station(run_on)
        station.claims("weights")
        station.put(served(**ALL))

        def refuse(call):
            if call.kind == "Ingress" and call.verb == "apply":
                raise ApiError(status, "Forbidden", 'admission webhook "hosts" denied the request: taken.')

        station.api.before = refuse
        await begin(station)
        return station

    station = run(story)
    assert station.status(served())["phase"] == "Ready"
    assert optional(station) == set(OPTIONAL_KINDS) - {"Ingress"}
    told = condition(station, "Progressing")["message"]
    assert 'The Ingress ms-chat was not made: admission webhook "hosts" denied the request: taken.' in told


def test_the_number_of_replicas_is_the_autoscalers_and_a_new_model_does_not_touch_it():
    async def story():
        station = await serving(**AUTO)
        first = deployment(station)["spec"]["replicas"]
        station.api.change("Deployment", NAMESPACE, "ms-chat", {"spec": {"replicas": 6}})
        await station.settle(patience=5)
        await change(station, modelName="other", replicas=3)
        return station, first

    station, first = run(story)
    assert (first, deployment(station)["spec"]["replicas"]) == (2, 6)
    assert deployment(station)["metadata"]["annotations"]["herdsman.dev/generation"] == "2"
    assert (station.status(served())["phase"], station.status(served())["readyReplicas"]) == ("Ready", 6)


def test_replicas_are_handed_over_to_autoscaling_and_back_without_falling_to_one():
    async def story():
        station = await serving(replicas=5)
        seen = []
        station.api.listeners.append(
            lambda _, body: seen.append(body["spec"]["replicas"]) if body["kind"] == "Deployment" else None
        )
        await change(station, **AUTO)
        handed = deployment(station)["spec"]["replicas"]
        station.api.change("Deployment", NAMESPACE, "ms-chat", {"spec": {"replicas": 7}})
        await station.settle(patience=5)
        await change(station, modelName="other")
        await change(station, autoscaling=None, replicas=4)
        return station, handed, seen

    station, handed, seen = run(story)
    assert (handed, deployment(station)["spec"]["replicas"]) == (5, 4)
    assert set(seen) == {5, 7, 4}


def test_no_replicas_switch_an_autoscaled_server_off_and_some_on_again():
    async def story():
        station = await serving(**AUTO)
        await change(station, replicas=0)
        off = deployment(station)["spec"]["replicas"], station.status(served())["phase"]
        await change(station, replicas=1)
        return station, off

    station, off = run(story)
    assert off == (0, "Suspended")
    assert deployment(station)["spec"]["replicas"] == 2


def config_maps(station):
    return [body["metadata"]["name"] for body in station.api.of("ConfigMap")]


def test_the_configuration_of_before_stays_until_no_replica_has_it():
    async def story():
        station = await serving()
        (before,) = config_maps(station)
        roll_out, station.platform._roll_out = station.platform._roll_out, lambda _: None
        await change(station, modelName="other")
        during = config_maps(station), station.status(served())["phase"], condition(station, "Ready")["status"]
        station.platform._roll_out = roll_out
        await station.settle(patience=5)
        return station, before, during

    station, before, (names, phase, ready) = run(story)
    assert before in names
    assert len(names) == 2
    assert (phase, ready) == ("Progressing", "True")
    assert station.status(served())["phase"] == "Ready"
    (left,) = config_maps(station)
    assert left != before


def test_a_change_that_is_refused_leaves_the_replicas_of_before_answering():
    async def story():
        station = await serving()

        def refuse(call):
            if call.kind == "Deployment" and call.verb == "apply":
                raise ApiError(403, "Forbidden", 'admission webhook "images" denied the request: registry')

        station.api.before = refuse
        await change(station, compute={"image": "elsewhere/server:1"})
        told = copy.deepcopy(station.status(served()))
        station.api.before = lambda _: None
        await station.settle(patience=120)
        return station, told

    station, told = run(story)
    conditions = {item["type"]: item for item in told["conditions"]}
    assert (told["phase"], conditions["Ready"]["status"]) == ("Degraded", "True")
    assert 'webhook "images" denied' in told["failure"]["message"]
    assert station.status(served())["phase"] == "Ready"
    assert "failure" not in station.status(served())


def changed_server(kill_at=None):
    """The story of a server that gets and loses an ingress and autoscaling, killed after one request."""

    async def story():
        station = Station(run_on)
        station.claims("weights")
        station.put(served(**INGRESS, replicas=3))

        def kill(call):
            if call.number == kill_at:
                raise Crash(repr(call))

        station.api.after = kill
        spec = {"ingress": None, "modelName": "other", **AUTO}
        for step in (lambda: None, lambda: station.api.change("ModelServer", NAMESPACE, "chat", {"spec": spec})):
            step()
            for _ in range(2):
                try:
                    await begin(station)
                    break
                except Crash:
                    continue
        await station.settle(patience=120)
        return station

    return run(story)


def test_killed_after_any_request_the_next_operator_ends_with_the_same_objects():
    def left(station):
        kinds = ("ConfigMap", "Deployment", "Service", *OPTIONAL_KINDS)
        return {
            (kind, body["metadata"]["name"], str(body.get("spec"))) for kind in kinds for body in station.api.of(kind)
        }

    reference = changed_server()
    assert optional(reference) == {"HorizontalPodAutoscaler", "PodDisruptionBudget"}
    assert deployment(reference)["spec"]["replicas"] == 3
    for number, call in enumerate(reference.api.calls):
        station = changed_server(kill_at=number)
        assert left(station) == left(reference), f"killed after {call}"
        assert station.status(served())["phase"] == "Ready"
