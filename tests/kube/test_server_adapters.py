"""Adapters that a server loads while it runs: a list that changes, and what the replicas say of them."""

import copy
import json

from kube.station import run
from kube.test_server_children import change, config_maps, deployment, served, serving
from kube.test_server_rollouts import pod_of_a_server


def hot(*names):
    listed = [{"name": name, "adapter": {"volume": {"claim": "weights", "path": name}}} for name in names]
    return {"hotAdapters": listed}


def test_hot_adapters_are_a_list_that_changes_and_replicas_are_asked_how_they_are():
    async def story():
        station = await serving(**hot("law"))
        pod = pod_of_a_server("ms-chat-1", {})
        pod["status"] = {"phase": "Running", "podIP": "10.0.0.9"}
        owner = {
            **deployment(station)["metadata"]["ownerReferences"][0],
            "kind": "ReplicaSet",
            "name": "rs",
            "uid": "rs",
        }
        pod["metadata"]["ownerReferences"] = [owner]
        uid = station.api.add(pod)["metadata"]["uid"]
        station.deliver()
        template = copy.deepcopy(deployment(station)["spec"]["template"])
        asked = [(target.uid, target.host, target.port, target.path) for target in station.operator._targets()]
        said = {"adapters": [{"name": "law", "loaded": True}]}
        station.progress[uid] = json.dumps(said).encode()
        await station.operator.poll()
        await station.work()
        first = station.status(served())["adapters"]
        await change(station, **hot("law", "med"))
        (listed,) = [body for body in station.api.of("ConfigMap") if body["metadata"]["name"] == "ms-chat-adapters"]
        names = [each["name"] for each in json.loads(listed["data"]["job.json"])["adapters"]]
        same = deployment(station)["spec"]["template"] == template
        return uid, asked, first, station.status(served())["adapters"], names, same

    uid, asked, first, second, names, same = run(story)
    assert asked == [(uid, "10.0.0.9", 9400, "/adapters")]
    assert first == [{"name": "law", "loaded": True}]
    assert [(each["name"], each["loaded"]) for each in second] == [("law", True), ("med", False)]
    assert names == ["law", "med"]
    assert same, "no replica is replaced"


def test_the_list_goes_when_there_are_no_hot_adapters_any_more():
    async def story():
        station = await serving(**hot("law"))
        before = "ms-chat-adapters" in {body["metadata"]["name"] for body in station.api.of("ConfigMap")}
        await change(station, hotAdapters=None)
        return before, config_maps(station)

    before, after = run(story)
    assert before
    assert "ms-chat-adapters" not in after
