"""Turns a pydantic model into the structural schema that a CustomResourceDefinition takes.

Structural means: every node has a type, nothing is referenced, nothing is a union. What pydantic says in ways that
Kubernetes does not read is said again in its words: optional members instead of `null`, one-element enums instead of
`const`, boolean `exclusiveMinimum`, a CEL rule instead of `propertyNames`.
"""

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema, NoDefault

from herdsman.api.v1alpha1.schema import MUTABLE as MARK_OF_MUTABLE

Schema = dict[str, Any]

(MUTABLE,) = MARK_OF_MUTABLE
"""The mark of a spec field that may change; it does not appear in the CRD."""
RULES = "x-kubernetes-validations"
INT32_MAX = 2**31 - 1
_COPIED = (
    "enum",
    "pattern",
    "minLength",
    "maxLength",
    "minItems",
    "maxItems",
    "minProperties",
    "maxProperties",
    "minimum",
    "maximum",
)


class _WithFactories(GenerateJsonSchema):
    """Writes the defaults that a factory makes, too; of models only what was set, for nested defaults fill the rest."""

    def get_default_value(self, schema: Any) -> Any:
        factory = schema.get("default_factory")
        if factory is None:
            return super().get_default_value(schema)
        if schema.get("default_factory_takes_data"):
            return NoDefault
        value = factory()
        return (
            value.model_dump(mode="json", by_alias=True, exclude_unset=True) if isinstance(value, BaseModel) else value
        )


def structural_schema(model: type[BaseModel], *, defaults: bool = True) -> Schema:
    """Return the structural schema of a model, with or without defaults; marks for mutability stay in."""
    document = model.model_json_schema(by_alias=True, mode="validation", schema_generator=_WithFactories)
    return _node(document, document.get("$defs", {}), defaults=defaults)


def _node(raw: Mapping[str, Any], definitions: Mapping[str, Any], *, defaults: bool) -> Schema:
    """Return the structural form of one node and everything below it."""
    found = _flatten(raw, definitions)
    if "const" in found:
        found["enum"] = [found["const"]]
    node: Schema = {}
    if "description" in found:
        node["description"] = " ".join(found["description"].split())
    node["type"] = found["type"]
    if fmt := _format(found):
        node["format"] = fmt
    if defaults and found.get("default") is not None:
        node["default"] = found["default"]
    node.update({key: found[key] for key in _COPIED if key in found})
    for bound in ("Minimum", "Maximum"):
        if f"exclusive{bound}" in found:
            node[bound.lower()] = found[f"exclusive{bound}"]
            node[f"exclusive{bound}"] = True
    if "items" in found:
        node["items"] = _node(found["items"], definitions, defaults=defaults)
        node["x-kubernetes-list-type"] = "atomic"
    rules = list(found.get(RULES, ()))
    values = found.get("additionalProperties")
    if "patternProperties" in found:
        ((pattern, values),) = found["patternProperties"].items()
        longest = found["propertyNames"]["maxLength"]
        rules.append(
            {
                "rule": f"self.all(key, size(key) <= {longest} && key.matches(r'{pattern}'))",
                "message": f"every key has at most {longest} characters and matches `{pattern}`",
            }
        )
    if isinstance(values, Mapping):
        node["additionalProperties"] = _node(values, definitions, defaults=defaults)
    if "properties" in found:
        members = found["properties"].items()
        node["properties"] = {name: _node(member, definitions, defaults=defaults) for name, member in members}
    if required := found.get("required"):
        node["required"] = required
    if rules:
        node[RULES] = rules
    if MUTABLE in found:
        node[MUTABLE] = found[MUTABLE]
    return node


def _flatten(raw: Mapping[str, Any], definitions: Mapping[str, Any]) -> Schema:
    """Return the node with its reference or its single alternative beside null written out; its own words win."""
    if "$ref" in raw:
        inner = definitions[raw["$ref"].removeprefix("#/$defs/")]
    elif "anyOf" in raw:
        alternatives = [option for option in raw["anyOf"] if option.get("type") != "null"]
        if len(alternatives) != 1:
            raise ValueError(f"a union cannot be said in a structural schema: {raw['anyOf']}")
        inner = alternatives[0]
    else:
        return dict(raw)
    own = {key: value for key, value in raw.items() if key not in ("$ref", "anyOf")}
    return _flatten(inner, definitions) | own


def _format(found: Mapping[str, Any]) -> str | None:
    """Return the format of a node: the width of a number, or date-time."""
    if found["type"] == "integer":
        largest = max(found.get("maximum", 0), *found.get("enum", [0]))
        return "int32" if largest <= INT32_MAX else "int64"
    if found["type"] == "number":
        return "double"
    known: str | None = found.get("format")
    return known
