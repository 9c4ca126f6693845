"""YAML as the API server's clients and people agree on it, with the line of every field.

Numbers follow YAML 1.2, so `1e-4` is a number (PyYAML reads a string). Where YAML 1.1 and 1.2 disagree, such as a bare
`yes`, the text is refused instead of guessed. Duplicate keys are refused.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml

Path = tuple[str | int, ...]
"""The way to a value: keys and list indices."""
MAX_VALUES = 100_000
"""Values of one file at most, aliases expanded."""

_INTEGER = re.compile(r"[-+]?(0|[1-9][0-9]*)$")
_OTHER_BASE = re.compile(r"0o[0-7]+$|0x[0-9a-fA-F]+$")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?$")
_INFINITY = re.compile(r"([-+]?)\.(inf|Inf|INF)$")
_NAN = re.compile(r"\.(nan|NaN|NAN)$")
_OLD_BOOLEANS = frozenset({"yes", "no", "on", "off"})
_OLD_OCTAL = re.compile(r"[-+]?0[0-9]+$")
_STRING = "tag:yaml.org,2002:str"


class YamlRefused(Exception):
    """The text is not YAML that means the same to everybody; `line` counts from 1."""

    def __init__(self, line: int, message: str) -> None:
        super().__init__(message)
        self.line = line
        self.message = message


@dataclass(frozen=True)
class Document:
    """One document of a file."""

    number: int
    """Counted from 1."""
    line: int
    """Where it starts."""
    data: Any
    lines: Mapping[Path, int] = field(default_factory=dict)
    """The line of each key and list item."""

    def line_of(self, path: Path) -> int:
        """Return the line of the value, or of the nearest thing around it that is there."""
        return next((self.lines[path[:n]] for n in range(len(path), 0, -1) if path[:n] in self.lines), self.line)


def read_yaml(text: str) -> list[Document]:
    """Return the documents of a YAML (or JSON) text, without empty ones; raises YamlRefused."""
    try:
        nodes = list(yaml.compose_all(text, Loader=yaml.BaseLoader))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        what = " ".join(part for part in (error.context, error.problem) if part)
        raise YamlRefused(mark.line + 1 if mark else 1, f"not valid YAML: {what}") from error
    except yaml.YAMLError as error:
        raise YamlRefused(1, f"not valid YAML: {error}") from error
    return list(_documents(nodes))


def _documents(nodes: list[Any]) -> Iterator[Document]:
    for number, node in enumerate(nodes, 1):
        if node is None:
            continue
        reading = _Reading()
        data = reading.value(node, ())
        if data is not None:
            yield Document(number, node.start_mark.line + 1, data, reading.lines)


class _Reading:
    """Turns the nodes of one document into values."""

    def __init__(self) -> None:
        self.lines: dict[Path, int] = {}
        self._open: set[int] = set()
        self._count = 0

    def value(self, node: yaml.Node, path: Path) -> Any:
        line = node.start_mark.line + 1
        self.lines.setdefault(path, line)
        self._count += 1
        if self._count > MAX_VALUES:
            raise YamlRefused(line, f"more than {MAX_VALUES} values in one document")
        if isinstance(node, yaml.ScalarNode):
            return _scalar(node, line)
        if id(node) in self._open:
            raise YamlRefused(line, "an alias leads back to what holds it")
        self._open.add(id(node))
        try:
            if isinstance(node, yaml.SequenceNode):
                return [self.value(item, (*path, index)) for index, item in enumerate(node.value)]
            return self._mapping(node, path)
        finally:
            self._open.discard(id(node))

    def _mapping(self, node: Any, path: Path) -> dict[str, Any]:
        result: dict[str, Any] = {}
        merged: dict[str, Any] = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            if not isinstance(key_node, yaml.ScalarNode):
                raise YamlRefused(line, "a key must be a word")
            key = key_node.value
            if key == "<<" and key_node.style is None:
                merged |= self._merge(value_node, path, line)
                continue
            if key in result:
                raise YamlRefused(
                    line, f'the key "{key}" is given twice, first in line {self.lines[(*path, key)]}; remove one'
                )
            self.lines[(*path, key)] = line
            result[key] = self.value(value_node, (*path, key))
        return merged | result

    def _merge(self, node: yaml.Node, path: Path, line: int) -> dict[str, Any]:
        parts = node.value if isinstance(node, yaml.SequenceNode) else [node]
        merged: dict[str, Any] = {}
        for part in reversed(parts):
            value = self.value(part, path)
            if not isinstance(value, dict):
                raise YamlRefused(line, "<< takes in mappings only")
            merged |= value
        return merged


def _scalar(node: Any, line: int) -> Any:
    text: str = node.value
    if node.tag != _STRING:
        raise YamlRefused(line, f"the tag {node.tag} is not known; write the plain value")
    return text if node.style is not None else _plain(text, line)


def _plain(text: str, line: int) -> Any:
    """Return what an unquoted word means in YAML 1.2's core schema."""
    if text in ("", "~", "null", "Null", "NULL"):
        return None
    if text in ("true", "True", "TRUE", "false", "False", "FALSE"):
        return text.lower() == "true"
    if text.lower() in _OLD_BOOLEANS:
        raise YamlRefused(
            line, f'{text} means different things to different readers; write true, false, or "{text}" in quotes'
        )
    if _INTEGER.match(text):
        return int(text)
    if _OLD_OCTAL.match(text):
        raise YamlRefused(
            line, f'{text} means different things to different readers; leave out the leading 0, or quote it: "{text}"'
        )
    if _OTHER_BASE.match(text):
        return int(text, 0)
    if _FLOAT.match(text):
        return float(text)
    if infinite := _INFINITY.match(text):
        return float(f"{infinite.group(1)}inf")
    return float("nan") if _NAN.match(text) else text
