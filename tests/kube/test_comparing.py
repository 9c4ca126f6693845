"""Whether an object is as planned, whatever the API server made of it."""

import pytest

from herdsman.kube.comparing import covers, is_as_planned, marked
from herdsman.kube.trimming import trimmed

SAME = {
    "equal": ({"a": 1}, {"a": 1}),
    "more than planned": ({"a": 1}, {"a": 1, "b": 2}),
    "defaults in a list's items": ([{"name": "x"}], [{"name": "x", "imagePullPolicy": "Always"}]),
    "an empty map that is not stored": ({"a": 1, "nodeSelector": {}}, {"a": 1}),
    "an empty list that is not stored": ({"a": []}, {}),
    "false that is not stored": ({"readOnly": False}, {}),
    "a quantity in other words": ({"cpu": "1000m"}, {"cpu": "1"}),
    "a binary quantity in other words": ({"memory": "1024Mi"}, {"memory": "1Gi"}),
    "half a core": ({"cpu": "0.5"}, {"cpu": "500m"}),
}
DIFFERENT = {
    "another value": ({"a": 1}, {"a": 2}),
    "missing": ({"a": 1}, {}),
    "true that is missing": ({"readOnly": True}, {}),
    "a longer list": ([1], [1, 2]),
    "a shorter list": ([1, 2], [1]),
    "another order": ([1, 2], [2, 1]),
    "another quantity": ({"cpu": "1"}, {"cpu": "1100m"}),
    "decimal is not binary": ({"memory": "1G"}, {"memory": "1Gi"}),
    "a map is no list": ({"a": {}}, {"a": [1]}),
}


@pytest.mark.parametrize("name", SAME)
def test_nothing_has_to_be_written(name):
    assert covers(*SAME[name])


@pytest.mark.parametrize("name", DIFFERENT)
def test_something_has_to_be_written(name):
    assert not covers(*DIFFERENT[name])


def manifest(**spec):
    metadata = {"name": "ms-chat", "namespace": "team"}
    return {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": metadata, "spec": spec}


def test_a_field_that_the_plan_no_longer_has_is_a_difference():
    live = trimmed(marked(manifest(replicas=1, paused=True)))
    assert is_as_planned(marked(manifest(replicas=1, paused=True)), live)
    assert not is_as_planned(marked(manifest(replicas=1)), live)


def test_a_config_map_is_compared_by_the_digests_of_its_files():
    def config(text):
        metadata = {"name": "ms-chat", "namespace": "team"}
        return marked({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": {"job.json": text}})

    assert is_as_planned(config("{}"), trimmed(config("{}")))
    assert not is_as_planned(config("{}"), trimmed(config("[]")))
