"""Markdown tables of schemas and values."""

from collections.abc import Iterable, Iterator
from typing import Any

from herdsman.generate.schema import Schema


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """Return a Markdown table; line breaks and bars in cells are made harmless."""
    lines = [tuple(head), *rows]
    lines.insert(1, tuple("---" for _ in lines[0]))
    return "".join(
        f"| {' | '.join(' '.join(cell.split()).replace('|', chr(92) + '|') for cell in row)} |\n" for row in lines
    )


def field_table(node: Schema, prefix: str) -> str:
    """Return the table of every field below a node of a structural schema."""
    return table(("field", "type", "default", "bounds", "description"), _rows(node, prefix))


def _rows(node: Schema, prefix: str) -> Iterator[tuple[str, ...]]:
    required = node.get("required", ())
    for name, member in node.get("properties", {}).items():
        path = f"{prefix}.{name}"
        default = "**required**" if name in required else shown(member["default"]) if "default" in member else ""
        yield f"`{path}`", _type(member), default, _bounds(member), member["description"]
        yield from _rows(member, path)
        if "items" in member:
            yield from _rows(member["items"], f"{path}[]")


def _type(node: Schema) -> str:
    if node["type"] == "array":
        return f"list of {_type(node['items'])}"
    if "additionalProperties" in node:
        return f"map to {_type(node['additionalProperties'])}"
    return "time" if node.get("format") == "date-time" else str(node["type"])


def _bounds(node: Schema) -> str:
    """Return what a value may be, in words; of a list or a map also what its items may be."""
    said = []
    if "enum" in node:
        said.append(", ".join(f"`{value}`" for value in node["enum"]))
    low, high = node.get("minimum"), node.get("maximum")
    if low is not None:
        said.append(f"{'>' if node.get('exclusiveMinimum') else '≥'} {shown(low)}")
    if high is not None and high < 2**53 - 1:
        said.append(f"{'<' if node.get('exclusiveMaximum') else '≤'} {shown(high)}")
    for key, noun in (("Length", "characters"), ("Items", "items"), ("Properties", "entries")):
        least, most = node.get(f"min{key}", 0), node.get(f"max{key}")
        if most is not None:
            said.append(f"{least} to {most} {noun}" if least else f"at most {most} {noun}")
    if "pattern" in node:
        said.append(f"`{node['pattern']}`")
    inner: Schema = node.get("items") or node.get("additionalProperties") or {}
    if inner.get("type") not in (None, "object") and (each := _bounds(inner)):
        said.append(f"each: {each}")
    return "; ".join(said)


def shown(value: Any) -> str:
    """Return a value as it is written in a manifest, for a cell."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:g}"
    return "empty" if value in ({}, []) else str(value)
