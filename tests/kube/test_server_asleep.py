"""A server that sleeps while nobody asks: stories of an operator, its activators and the platform."""

import copy
import json

import pytest

import builders
from kube.fake_api import Crash
from kube.fake_platform import run_on
from kube.station import NAMESPACE, Station, run

SLEEPS = {"scaleToZero": {"afterIdleSeconds": 60}}


def served(**spec):
    weights = {"model": {"volume": {"claim": "weights", "path": "m"}}}
    return builders.model_server("chat", **{**weights, **SLEEPS, **spec})


def activator_pod(name="ma-chat-1", **status):
    labels = {"app.kubernetes.io/managed-by": "herdsman", "herdsman.dev/activates": "chat"}
    annotations = {"herdsman.dev/control-port": "9400"}
    metadata = {"name": name, "namespace": NAMESPACE, "labels": labels, "annotations": annotations}
    running = {"phase": "Running", "podIP": "10.0.0.9", **status}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": metadata,
        "spec": {"containers": [{"name": "activator"}]},
        "status": running,
    }


class Sleepy(Station):
    """A station with a server that may sleep, and one activator."""

    def __init__(self, **spec):
        super().__init__(run_on)
        self.claims("weights")
        self.put(served(**spec))
        self.pod = self.api.add(activator_pod())

    async def begin(self):
        """Start an operator and let it come to rest."""
        self.start()
        await self.operator.list_until_done()
        await self.settle(patience=3)

    async def hear(self, requests=0, idle=0.0, pod=None):
        """Let an activator say this, and the operator ask it and come to rest."""
        uid = (pod or self.pod)["metadata"]["uid"]
        self.progress[uid] = json.dumps({"requests": requests, "idleSeconds": idle}).encode()
        await self.operator.poll_demand()
        await self.settle(patience=3)

    async def silence(self):
        self.progress.clear()
        await self.operator.poll_demand()
        await self.settle(patience=3)

    def replicas(self, name="ms-chat"):
        return self.api.objects["Deployment", NAMESPACE, name]["spec"]["replicas"]

    def phase(self):
        return self.status(served())["phase"]

    def front(self):
        return self.api.objects["Service", NAMESPACE, "ms-chat"]["spec"]["selector"]


async def asleep(**spec):
    station = Sleepy(**spec)
    await station.begin()
    await station.hear(0, 60.0)
    return station


def test_it_starts_awake_falls_asleep_wakes_for_a_request_and_falls_asleep_again():
    async def story():
        station = Sleepy()
        await station.begin()
        seen = [(station.replicas(), station.phase())]
        for requests, idle in ((0, 59.0), (0, 60.0), (0, 500.0), (1, 0.0), (0, 3.0), (0, 70.0)):
            await station.hear(requests, idle)
            seen.append((station.replicas(), station.phase()))
        await station.settle(patience=60)
        return station, [*seen, (station.replicas(), station.phase())]

    station, seen = run(story)
    awake, sleeping = (1, "Ready"), (0, "Idle")
    assert seen == [awake, awake, sleeping, sleeping, awake, awake, awake, sleeping]
    assert station.front() == {"app.kubernetes.io/managed-by": "herdsman", "herdsman.dev/activates": "chat"}
    assert station.errors() == {}


def test_it_falls_asleep_by_itself_when_its_time_has_come():
    async def story():
        station = Sleepy()
        await station.begin()
        await station.hear(0, 20.0)
        due = station.shell.queue._due
        waits = [moment - station.seconds for moment in due.values()]
        station.progress[station.pod["metadata"]["uid"]] = b'{"requests": 0, "idleSeconds": 61}'
        await station.operator.poll_demand()
        await station.settle(patience=60)
        return station, waits

    station, waits = run(story)
    assert waits == [pytest.approx(40.0, abs=1.0)]
    assert (station.replicas(), station.phase()) == (0, "Idle")


def test_asleep_nothing_is_written_whatever_time_passes():
    async def story():
        station = await asleep()
        before = len(station.api.writes)
        for idle in (61.0, 100.0, 1000.0):
            await station.hear(0, idle)
        await station.operator.resync()
        await station.settle(patience=600)
        return station, station.api.writes[before:]

    station, writes = run(story)
    assert writes == []
    assert station.phase() == "Idle"


def test_a_new_operator_leaves_a_sleeper_asleep_until_it_hears_that_somebody_asks():
    async def story():
        station = await asleep()
        before = len(station.api.writes)
        station.progress.clear()
        await station.begin()
        unheard = station.replicas(), station.phase(), station.api.writes[before:]
        await station.hear(1)
        return station, unheard

    station, unheard = run(story)
    assert unheard == (0, "Idle", [])
    assert (station.replicas(), station.phase()) == (1, "Ready")


def test_an_activator_that_does_not_answer_changes_nothing():
    async def story():
        station = Sleepy()
        await station.begin()
        await station.hear(0, 30.0)
        await station.silence()
        await station.settle(patience=600)
        return station

    station = run(story)
    assert (station.replicas(), station.phase()) == (1, "Ready")


def test_of_several_activators_all_must_be_idle_and_one_that_is_asked_wakes_it():
    async def story():
        station = Sleepy(scaleToZero={"afterIdleSeconds": 60, "activators": 2})
        other = station.api.add(activator_pod("ma-chat-2", podIP="10.0.0.10"))
        await station.begin()
        seen = []
        await station.hear(0, 600.0)
        seen.append(station.replicas())
        await station.hear(1, 0.0, pod=other)
        seen.append(station.replicas())
        await station.hear(0, 600.0, pod=other)
        seen.append(station.replicas())
        await station.hear(1, 0.0, pod=other)
        seen.append(station.replicas())
        return seen

    assert run(story) == [1, 1, 0, 1]


def test_one_that_is_about_to_end_still_counts():
    async def story():
        station = Sleepy()
        await station.begin()
        await station.hear(1)
        gone = {"metadata": {"deletionTimestamp": "2026-01-02T03:20:00Z"}}
        station.api.change("Pod", NAMESPACE, "ma-chat-1", gone)
        young = station.api.add(activator_pod("ma-chat-2", podIP="10.0.0.10"))
        await station.settle(patience=3)
        await station.hear(0, 600.0, pod=young)
        held = station.replicas()
        station.api.remove("Pod", NAMESPACE, "ma-chat-1")
        await station.settle(patience=3)
        await station.hear(0, 601.0, pod=young)
        return held, station.replicas()

    assert run(story) == (1, 0)


def test_with_autoscaling_it_sleeps_at_zero_and_wakes_to_what_autoscaling_finds():
    async def story():
        station = await asleep(autoscaling={"minReplicas": 2, "maxReplicas": 8, "targetWaitingRequests": 4})
        sleeping = station.replicas(), station.phase()
        await station.hear(3)
        await station.settle(patience=5)
        return sleeping, (station.replicas(), station.phase())

    assert run(story) == ((0, "Idle"), (2, "Ready"))


def test_a_change_is_tried_at_once_and_then_it_sleeps_again():
    async def story():
        station = await asleep()
        station.api.change("ModelServer", NAMESPACE, "chat", {"spec": {"modelName": "other"}})
        seen = []
        station.api.listeners.append(
            lambda _, body: (
                seen.append(body["spec"]["replicas"])
                if (body["kind"], body["metadata"]["name"]) == ("Deployment", "ms-chat")
                else None
            )
        )
        await station.settle(patience=5)
        return station, seen

    station, seen = run(story)
    assert (1 in seen, seen[-1], station.phase()) == (True, 0, "Idle")
    assert (
        station.api.objects["Deployment", NAMESPACE, "ms-chat"]["metadata"]["annotations"]["herdsman.dev/generation"]
        == "2"
    )


def test_a_sleeper_whose_change_waits_is_woken_as_it_was_and_takes_the_change_later():
    async def story():
        station = await asleep()
        before = copy.deepcopy(station.api.objects["Deployment", NAMESPACE, "ms-chat"]["spec"]["template"])
        station.api.change("ModelServer", NAMESPACE, "chat", {"spec": {"model": {"volume": None, "modelImport": "no"}}})
        await station.settle(patience=3)
        slept = station.phase()
        await station.hear(1)
        woken = station.replicas(), station.api.objects["Deployment", NAMESPACE, "ms-chat"]["spec"]["template"]
        await station.hear(1)
        ready = next(item for item in station.status(served())["conditions"] if item["type"] == "Ready")["status"]
        back = {"model": {"modelImport": None, "volume": {"claim": "weights", "path": "m"}}}
        station.api.change("ModelServer", NAMESPACE, "chat", {"spec": back})
        await station.settle(patience=40)
        await station.hear(0, 600.0)
        return station, slept, woken, before, ready

    station, slept, woken, before, ready = run(story)
    assert slept == "Idle"
    assert woken == (1, before)
    assert ready == "True"
    assert (station.replicas(), station.phase(), station.errors()) == (0, "Idle", {})


def test_when_the_field_goes_the_activators_go_and_the_replicas_come_back():
    async def story():
        station = await asleep()
        station.api.change("ModelServer", NAMESPACE, "chat", {"spec": {"scaleToZero": None}})
        await station.settle(patience=5)
        return station

    station = run(story)
    assert [body["metadata"]["name"] for body in station.api.of("Deployment")] == ["ms-chat"]
    assert [body["metadata"]["name"] for body in station.api.of("Service")] == ["ms-chat"]
    assert station.front()["herdsman.dev/kind"] == "ModelServer"
    assert (station.replicas(), station.phase()) == (1, "Ready")
    annotations = station.api.objects["Deployment", NAMESPACE, "ms-chat"]["metadata"]["annotations"]
    assert "herdsman.dev/asleep" not in annotations


def test_switched_off_it_is_suspended_and_nobody_holds_requests():
    async def story():
        station = await asleep()
        station.api.change("ModelServer", NAMESPACE, "chat", {"spec": {"replicas": 0}})
        await station.settle(patience=5)
        off = station.phase(), station.replicas(), station.replicas("ma-chat")
        await station.hear(2)
        ignored = station.replicas()
        station.api.change("ModelServer", NAMESPACE, "chat", {"spec": {"replicas": 1}})
        await station.settle(patience=5)
        return off, ignored, station.replicas()

    assert run(story) == (("Suspended", 0, 0), 0, 1)


def test_activators_that_a_quota_forbids_are_told_and_the_replicas_are_kept():
    async def story():
        station = Sleepy()
        station.api.remove("Pod", NAMESPACE, "ma-chat-1")
        roll_out = station.platform._roll_out
        station.platform._roll_out = lambda body: body["metadata"]["name"] == "ms-chat" and roll_out(body)
        await station.begin()
        message = 'pods "ma-chat-x" is forbidden: exceeded quota: small'
        failed = {"type": "ReplicaFailure", "status": "True", "reason": "FailedCreate", "message": message}
        station.api.change("Deployment", NAMESPACE, "ma-chat", {"status": {"conditions": [failed]}})
        await station.settle(patience=5)
        return station

    station = run(story)
    (told,) = (item for item in station.status(served())["conditions"] if item["type"] == "Progressing")
    assert station.phase() == "Ready"
    assert "no activator is ready: " in told["message"]
    assert "exceeded quota: small" in told["message"]
    assert station.front()["herdsman.dev/kind"] == "ModelServer", "clients reach the replicas"


def slept(kill_at=None):
    """The story of a server that falls asleep and is woken, its operator killed after one request."""

    async def story():
        station = Sleepy()

        def kill(call):
            if call.number == kill_at:
                raise Crash(repr(call))

        station.api.after = kill
        steps = [(0, 0.0), (0, 60.0), (1, 0.0)]
        for requests, idle in steps:
            for _ in range(2):
                try:
                    await station.begin()
                    await station.hear(requests, idle)
                    break
                except Crash:
                    continue
        await station.settle(patience=120)
        return station

    return run(story)


def test_killed_after_any_request_the_next_operator_ends_with_the_same_objects():
    def left(station):
        kinds = ("ConfigMap", "Deployment", "Service")
        return {
            (kind, body["metadata"]["name"], str(body.get("spec"))) for kind in kinds for body in station.api.of(kind)
        }

    reference = slept()
    assert (reference.replicas(), reference.phase()) == (1, "Ready")
    for number, call in enumerate(reference.api.calls):
        station = slept(kill_at=number)
        assert left(station) == left(reference), f"killed after {call}"
        assert station.phase() == "Ready"
