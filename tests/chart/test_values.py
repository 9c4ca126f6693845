"""The chart's values: what the schema and the templates refuse."""

import json
from typing import Any

import pytest
import yaml
from jsonschema import Draft7Validator

from chart_values import DIGEST, VALUES
from helm import CHART, refusal, text

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
    "a pull policy of pods that does not exist": ({"pods": {"imagePullPolicy": "always"}}, "pods.imagePullPolicy"),
    "a pull secret of pods that is a text": ({"pods": {"imagePullSecrets": ["mirror"]}}, "pods.imagePullSecrets"),
    "a hub without its scheme": ({"pods": {"hubEndpoint": "hub.example.com"}}, "pods.hubEndpoint"),
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
