"""Manifests with an odd value in each field of a spec, one after the other: thousands for each kind."""

from collections.abc import Iterator
from typing import Any

from admission import Case, changed, crd_schema
from herdsman.generate.examples import EXAMPLES

ODD_VALUES = [
    None, "", "a", "A b", "../a", "a/../b", "$(A)", "a\n", "a" * 41, "中", "1e-4", "4Gi",
    True, -1, 0, 1, 3, 2**31, 2**53, 0.5, 1.0, [], ["a"], [{}], {}, {"a": "b"}, {"a": 1},
]  # fmt: skip


def odd_manifests(kind: str) -> Iterator[Case]:
    """Each field of the kind's example with each odd value; what is refused is not said."""
    for path in _fields(crd_schema(kind)["properties"]["spec"], "spec"):
        for value in ODD_VALUES:
            yield Case(kind, f"{path} = {value!r}", changed(EXAMPLES[kind], {path: value}, []), None)


def _fields(schema: dict[str, Any], path: str) -> Iterator[str]:
    for name, member in schema.get("properties", {}).items():
        yield f"{path}.{name}"
        yield from _fields(member, f"{path}.{name}")
