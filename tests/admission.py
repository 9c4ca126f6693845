"""Cases of accepted and refused manifests, and two of three judges: the pydantic models, and the CRDs read offline.

The third judge, a real API server, is in tests/e2e. A verdict is the sorted list of the paths of the wrong fields.
"""

import copy
import json
import re
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import cel
import jsonschema
import pydantic
import yaml

from herdsman.api.meta import API_VERSION
from herdsman.api.v1alpha1.registry import KINDS
from herdsman.local.changes import spec_changes

PROJECT = Path(__file__).parents[1]
CASES = Path(__file__).parent / "api" / "cases"


@dataclass(frozen=True)
class Case:
    """One manifest, or one change of a manifest."""

    kind: str
    sentence: str
    new: dict[str, Any]
    old: dict[str, Any] | None
    refused: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return f"{self.kind} {self.sentence}"


def cases(section: str) -> list[Case]:
    """Return the cases of all kinds: section is create or update."""
    return [
        case for path in sorted(CASES.glob("*.yaml")) for case in _cases_of(yaml.safe_load(path.read_text()), section)
    ]


def _cases_of(document: dict[str, Any], section: str) -> list[Case]:
    kind = document["kind"]
    base = {"apiVersion": API_VERSION, "kind": kind, "metadata": {"name": "case"}, "spec": document["base"]}
    found = []
    for entry in document[section]:
        old = changed(base, entry.get("before", {}), [])
        new = changed(old, entry.get("set", {}), entry.get("unset", []))
        refused = sorted(entry.get("refused", []))
        found.append(Case(kind, entry["it"], new, old if section == "update" else None, refused))
    return found


def changed(manifest: dict[str, Any], values: dict[str, Any], removed: list[str]) -> dict[str, Any]:
    """Return a copy with the members at dotted paths set or removed."""
    copied = copy.deepcopy(manifest)
    for path, value in values.items():
        *parents, last = path.split(".")
        node = copied
        for name in parents:
            node = node.setdefault(name, {})
        node[last] = copy.deepcopy(value)
    for path in removed:
        *parents, last = path.split(".")
        node = copied
        for name in parents:
            node = node[name]
        del node[last]
    return copied


def judged_by_models(case: Case) -> list[str]:
    """Return the wrong fields as the pydantic models see them."""
    model = KINDS[case.kind].model
    try:
        new = model.parse(json.dumps(case.new))
    except pydantic.ValidationError as wrong:
        return sorted({_path(error["loc"]) for error in wrong.errors()})
    if case.old is None:
        return []
    changes = spec_changes(model.parse(json.dumps(case.old)), new)
    return sorted({".".join(re.split(r"[.\[]", change.field)[:2]) for change in changes if not change.mutable})


def _path(location: tuple[int | str, ...]) -> str:
    """Return pydantic's location as Kubernetes writes it; a wrong key of a map is an error of the map."""
    if location and location[-1] == "[key]":
        location = location[:-2]
    path = ""
    for part in location:
        path += f"[{part}]" if isinstance(part, int) else f".{part}"
    return path.removeprefix(".")


@cache
def crd_schema(kind: str) -> dict[str, Any]:
    """Return the schema in the generated CRD of a kind."""
    text = (PROJECT / "crds" / f"herdsman.dev_{KINDS[kind].plural}.yaml").read_text(encoding="utf-8")
    (version,) = yaml.safe_load(text)["spec"]["versions"]
    return version["schema"]["openAPIV3Schema"]


def judged_by_crd(case: Case) -> list[str]:
    """Return the wrong fields as the CRD has it: nulls dropped, defaults filled in, schema checked, then the rules."""
    schema = crd_schema(case.kind)
    new = _defaulted(schema, case.new)
    if unknown := sorted(_unknown(schema, new, "")):
        return unknown
    errors = _Validator(schema).iter_errors(new)
    if wrong := sorted({_schema_path(error) for error in errors}):
        return wrong
    old = None if case.old is None else _defaulted(schema, case.old)
    return sorted(set(_broken_rules(schema, new, old, "")))


def _matches(_validator: Any, pattern: str, text: Any, _schema: Any) -> Any:
    """Match as Go and Rust do: a final `$` is the end of the text, not also the place before a line break."""
    if isinstance(text, str) and not re.search(re.sub(r"\$$", r"\\Z", pattern), text):
        yield jsonschema.ValidationError(f"{text!r} does not match {pattern!r}")


_Validator = jsonschema.validators.extend(jsonschema.Draft4Validator, {"pattern": _matches})


def _defaulted(schema: dict[str, Any], value: Any) -> Any:
    if isinstance(value, dict):
        kept = {name: member for name, member in value.items() if member is not None}
        members = schema.get("properties", {})
        given = {name: node["default"] for name, node in members.items() if "default" in node} | kept
        return {name: _defaulted(_member(schema, name), member) for name, member in copy.deepcopy(given).items()}
    if isinstance(value, list):
        return [_defaulted(schema.get("items", {}), item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _member(schema: dict[str, Any], name: str) -> dict[str, Any]:
    return schema.get("properties", {}).get(name) or schema.get("additionalProperties") or {}


def _unknown(schema: dict[str, Any], value: Any, path: str) -> list[str]:
    if isinstance(value, list):
        pairs = [(schema.get("items", {}), item, f"{path}[{index}]") for index, item in enumerate(value)]
    elif isinstance(value, dict) and path != "metadata":
        strange = [name for name in value if "properties" in schema and name not in schema["properties"]]
        if strange:
            return [f"{path}.{name}".removeprefix(".") for name in strange]
        pairs = [(_member(schema, name), item, f"{path}.{name}".removeprefix(".")) for name, item in value.items()]
    else:
        pairs = []
    return [found for node, item, below in pairs for found in _unknown(node, item, below)]


def _schema_path(error: jsonschema.ValidationError) -> str:
    missing = re.match("'(.*)' is a required property", error.message) if error.validator == "required" else None
    return _path((*error.absolute_path, *(missing.groups() if missing else ())))


def _broken_rules(schema: dict[str, Any], new: Any, old: Any, path: str) -> list[str]:
    """Return the paths at which a CEL rule does not hold; rules about changes need an old value."""
    broken = []
    for rule in schema.get("x-kubernetes-validations", ()):
        if "oldSelf" in rule["rule"] and old is None:
            continue
        if cel.evaluate(rule["rule"], {"self": new, "oldSelf": old}) is not True:
            broken.append(f"{path}{rule.get('fieldPath', '')}")
    if isinstance(new, dict):
        for name, member in new.items():
            before = old.get(name) if isinstance(old, dict) else None
            broken += _broken_rules(_member(schema, name), member, before, f"{path}.{name}".removeprefix("."))
    if isinstance(new, list):
        for index, item in enumerate(new):
            broken += _broken_rules(schema.get("items", {}), item, None, f"{path}[{index}]")
    return broken
