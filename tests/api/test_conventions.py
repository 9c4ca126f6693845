"""Conventions that hold for every field of every generated schema."""

import re
from collections.abc import Iterator
from typing import Any

import jsonschema
import pytest

from admission import PROJECT, crd_schema
from herdsman.api.v1alpha1.registry import KINDS

MAX_CRD_BYTES = 100_000
FRACTIONS = {
    "learningRate",
    "warmupRatio",
    "dropout",
    "weightDecay",
    "maxGradNorm",
    "heldOutFraction",
    "ropeTheta",
    "gpuMemoryGiB",
    "diskGiB",
    "hours",
    "atLeast",
    "atMost",
    "cost",
    "inputPerMillion",
    "outputPerMillion",
}
UNIONS = {"anyOf", "oneOf", "allOf", "not", "$ref", "$defs", "const", "nullable", "patternProperties", "propertyNames"}
POD_SPEC = {"containers", "initContainers", "podTemplate", "template.spec", "volumes", "affinity"}
CAMEL_CASE = re.compile(r"[a-z][A-Za-z0-9]*")
NEGATIVE = re.compile(r"^(no|not|dis|without|skip|ignore)[A-Z]|^disable")

Node = tuple[str, dict[str, Any]]


def nodes(schema: dict[str, Any], path: str) -> Iterator[Node]:
    """Every node below and with this one, as (path, node)."""
    yield path, schema
    for name, member in schema.get("properties", {}).items():
        yield from nodes(member, f"{path}.{name}")
    for below, mark in (("items", "[]"), ("additionalProperties", "{}")):
        if below in schema:
            yield from nodes(schema[below], path + mark)


NODES = [
    node
    for kind in KINDS
    for part in ("spec", "status")
    for node in nodes(crd_schema(kind)["properties"][part], f"{kind}.{part}")
]


def leaf(path: str) -> str:
    return path.rsplit(".", 1)[-1]


CONVENTIONS = {
    "every field is described by a sentence": lambda path, node: (
        path.endswith(("[]", "{}")) or node.get("description", "").endswith((".", ")", '"'))
    ),
    "every string is bounded": lambda path, node: (
        node["type"] != "string" or {"enum", "maxLength"} & set(node) or node.get("format") == "date-time"
    ),
    "every list is bounded and says how it merges": lambda path, node: (
        node["type"] != "array" or {"maxItems", "items", "x-kubernetes-list-type"} <= set(node)
    ),
    "every map is bounded": lambda path, node: "additionalProperties" not in node or "maxProperties" in node,
    "every object says its members": lambda path, node: (
        node["type"] != "object" or node.get("properties") or isinstance(node.get("additionalProperties"), dict)
    ),
    "every whole number is bounded on both sides": lambda path, node: (
        node["type"] != "integer" or "enum" in node or {"minimum", "maximum", "format"} <= set(node)
    ),
    "every fraction of a spec is bounded on both sides": lambda path, node: (
        node["type"] != "number" or ".status" in path or {"minimum", "maximum"} <= set(node)
    ),
    "only the listed figures are fractions": lambda path, node: node["type"] != "number" or leaf(path) in FRACTIONS,
    "every name is in camel case": lambda path, node: all(
        CAMEL_CASE.fullmatch(name) for name in node.get("properties", ())
    ),
    "nothing is a union or a reference": lambda path, node: not UNIONS & set(node),
    "no pod is embedded": lambda path, node: not POD_SPEC & set(node.get("properties", ())),
    "booleans are named for what they turn on": lambda path, node: (
        node["type"] != "boolean" or not NEGATIVE.search(leaf(path))
    ),
    "every default is valid in its own schema": lambda path, node: (
        "default" not in node or jsonschema.Draft4Validator(node).is_valid(node["default"])
    ),
    "a status has no defaults, for only what was observed is reported": lambda path, node: (
        ".status" not in path or "default" not in node
    ),
    "no mark of ours is left in the schema": lambda path, node: not any(key.startswith("x-herdsman") for key in node),
    "every rule has a message": lambda path, node: all(
        r.get("message") for r in node.get("x-kubernetes-validations", ())
    ),
}


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_in_all_schemas(convention):
    assert [path for path, node in NODES if not CONVENTIONS[convention](path, node)] == []


def test_every_listed_figure_exists():
    assert {leaf(path) for path, node in NODES if node["type"] == "number"} == FRACTIONS


@pytest.mark.parametrize("kind", KINDS)
def test_the_status_is_the_same_on_all_kinds(kind):
    assert crd_schema(kind)["properties"]["status"] == crd_schema("PretrainJob")["properties"]["status"]


@pytest.mark.parametrize("path", sorted((PROJECT / "crds").glob("*.yaml")), ids=lambda path: path.name)
def test_a_crd_is_small(path):
    assert path.stat().st_size < MAX_CRD_BYTES


def test_the_names_of_the_kinds_are_distinct():
    infos = KINDS.values()
    assert len({info.short for info in infos}) == len({info.plural for info in infos}) == len(KINDS)


PAIRED = re.compile(r"self\.(\w+)\.all\((\w+), self\.(\w+)\.exists(?:_one)?\((\w+), \4\.(\w+) == \2\.\w+")
"""A rule that holds every item of a list against every item of the same or of another one, by a string."""
MOST_COST = 10_000_000
"""What the API server lets one rule cost, in all the places in which its schema may occur."""


def pairs(schema: dict[str, Any], times: int = 1) -> Iterator[tuple[str, float]]:
    """Rules that compare pairs, with their cost as the API server estimates it: 0.4 for each character."""
    for rule in (entry["rule"] for entry in schema.get("x-kubernetes-validations", ())):
        for mine, _, other, _, member in PAIRED.findall(rule):
            listed, held = schema["properties"][mine], schema["properties"][other]
            text = held["items"]["properties"][member]
            longest = max(map(len, text["enum"])) if "enum" in text else text["maxLength"]
            yield rule, times * listed["maxItems"] * held["maxItems"] * longest * 0.4
    for member in schema.get("properties", {}).values():
        yield from pairs(member, times)
    if "items" in schema:
        yield from pairs(schema["items"], times * schema.get("maxItems", 10**9))


def test_a_rule_over_pairs_costs_no_more_than_the_api_server_lets_it():
    url = {"type": "string", "maxLength": 2000}
    files = {"maxItems": 100, "items": {"properties": {"url": url}}}
    rule = "self.files.all(f, self.files.exists_one(g, g.url == f.url))"
    source = {"properties": {"files": files}, "x-kubernetes-validations": [{"rule": rule}]}
    refused = {"properties": {"datasets": {"maxItems": 32, "items": {"properties": {"http": source}}}}}
    assert [cost / MOST_COST for _, cost in pairs(refused)] == [pytest.approx(25.8, rel=0.02)], "as the API server said"
    found = {rule: cost for kind in KINDS for rule, cost in pairs(crd_schema(kind)["properties"]["spec"])}
    assert len(found) >= 4
    assert {rule: cost for rule, cost in found.items() if cost > MOST_COST} == {}
