"""Reads manifests from files and directories: everything that is wrong with them at once, each with file and line."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from herdsman.api.meta import API_VERSION, GROUP
from herdsman.api.v1alpha1.registry import KINDS, AnyResource
from herdsman.core.world import Key
from herdsman.local.field_problems import field_problems, suggest
from herdsman.local.yaml_documents import Document, YamlRefused, read_yaml

SUFFIXES = (".yaml", ".yml", ".json")
MAX_FILE_BYTES = 1 << 20
"""A larger file found in a directory is taken for data, not for a manifest."""
_SERVER_FIELDS = (
    "uid",
    "generation",
    "creationTimestamp",
    "deletionTimestamp",
    "ownerReferences",
    "resourceVersion",
    "managedFields",
)
"""Metadata that whoever stores the resource decides."""


@dataclass(frozen=True)
class ManifestProblem:
    """Something wrong in a manifest."""

    file: str
    line: int | None
    message: str
    hint: str | None = None
    subject: str | None = None
    """The resource it is about, where it has a name."""

    def __str__(self) -> str:
        where = f"{self.file}:{self.line}" if self.line else self.file
        subject = f"{self.subject}: " if self.subject else ""
        hint = f"; {self.hint}" if self.hint else ""
        return f"{where}: {subject}{self.message}{hint}"


@dataclass
class Manifests:
    """What was found in the given paths."""

    resources: dict[Key, AnyResource] = field(default_factory=dict)
    """In the order of reading."""
    sources: dict[Key, str] = field(default_factory=dict)
    """file:line of each resource."""
    claims: dict[str, str] = field(default_factory=dict)
    """PersistentVolumeClaims by name, with file:line."""
    notes: list[str] = field(default_factory=list)
    """What was left out, and why."""
    problems: list[ManifestProblem] = field(default_factory=list)
    """What is wrong; empty when everything may be applied."""


def load_manifests(paths: Sequence[Path]) -> Manifests:
    """Read files, and directories with all their *.yaml, *.yml and *.json; nothing is raised for wrong content."""
    found = Manifests()
    for path in paths:
        if path.is_dir():
            files = [file for file in _walk(path) if not _is_data(file, found)]
            if not files:
                found.problems.append(
                    ManifestProblem(str(path), None, f"no manifests here ({', '.join('*' + s for s in SUFFIXES)})")
                )
            for file in files:
                _read_file(file, found, named=False)
        elif path.exists():
            _read_file(path, found, named=True)
        else:
            found.problems.append(ManifestProblem(str(path), None, "no such file or directory"))
    found.problems.sort(key=lambda problem: (problem.file, problem.line or 0))
    if not found.resources and not found.problems:
        listed = ", ".join(str(path) for path in paths)
        found.problems.append(
            ManifestProblem(listed, None, "no Herdsman resources here", f"their apiVersion is {API_VERSION}")
        )
    return found


def _walk(directory: Path) -> list[Path]:
    files = (path for path in directory.rglob("*") if path.suffix in SUFFIXES and path.is_file())
    return sorted(path for path in files if not any(part.startswith(".") for part in path.relative_to(directory).parts))


def _is_data(file: Path, found: Manifests) -> bool:
    if file.stat().st_size <= MAX_FILE_BYTES:
        return False
    found.notes.append(f"{file}: skipped, too large for a manifest")
    return True


def _read_file(file: Path, found: Manifests, *, named: bool) -> None:
    name = str(file)
    try:
        text = file.read_bytes().decode("utf-8-sig")
        documents = _read_json(text) if file.suffix == ".json" else read_yaml(text)
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        found.problems.append(ManifestProblem(name, line, "not UTF-8 text", "save it as UTF-8"))
        return
    except YamlRefused as error:
        found.problems.append(ManifestProblem(name, error.line, error.message))
        return
    except OSError as error:
        found.problems.append(ManifestProblem(name, None, f"cannot be read: {error.strerror}"))
        return
    for document in documents:
        for part in _items(document):
            _read_document(name, part, found, named=named)


def _read_json(text: str) -> list[Document]:
    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        twice = next((key for key, _ in pairs if sum(key == other for other, _ in pairs) > 1), None)
        if twice is not None:
            raise YamlRefused(
                text[: text.rfind(f'"{twice}"')].count("\n") + 1, f'the key "{twice}" is given twice; remove one'
            )
        return dict(pairs)

    try:
        return [Document(1, 1, json.loads(text, object_pairs_hook=once))]
    except json.JSONDecodeError as error:
        raise YamlRefused(error.lineno, f"not valid JSON: {error.msg}") from error


def _items(document: Document) -> Iterator[Document]:
    """Yield the document, or the members of a List as `kubectl get -o yaml` prints it."""
    data = document.data
    if not (isinstance(data, dict) and data.get("kind") == "List" and isinstance(data.get("items"), list)):
        yield document
        return
    for index, item in enumerate(data["items"]):
        lines = {path[2:]: line for path, line in document.lines.items() if path[:2] == ("items", index)}
        yield Document(document.number, lines.get((), document.line), item, lines)


def _read_document(file: str, document: Document, found: Manifests, *, named: bool) -> None:
    data, where = document.data, f"{file}:{document.line}"
    if not isinstance(data, dict) or not ("apiVersion" in data or "kind" in data):
        if named:
            hint = f"a manifest starts with apiVersion: {API_VERSION} and kind: ..."
            found.problems.append(
                ManifestProblem(file, document.line, "not a manifest: it has no apiVersion and no kind", hint)
            )
        else:
            found.notes.append(f"{where}: skipped, not a manifest")
        return
    api_version, kind = data.get("apiVersion"), data.get("kind")
    if kind in KINDS and api_version == API_VERSION:
        _read_resource(file, document, found)
    elif api_version == "v1" and kind == "PersistentVolumeClaim":
        _read_claim(file, document, found)
    elif (problem := _wrong_kind(api_version, kind)) is not None:
        message, hint, field_name = problem
        found.problems.append(ManifestProblem(file, document.line_of((field_name,)), message, hint))
    else:
        found.notes.append(f"{where}: skipped, {kind} ({api_version}) is not a kind of Herdsman")


def _wrong_kind(api_version: Any, kind: Any) -> tuple[str, str, str] | None:
    """Return message, remedy and field where a document means to be ours and is not."""
    known = ", ".join(KINDS)
    if api_version is None:
        return "apiVersion is missing", f"write apiVersion: {API_VERSION}", "kind"
    if kind is None:
        return "kind is missing", f"write one of {known}", "apiVersion"
    ours = isinstance(api_version, str) and api_version.split("/")[0] == GROUP
    if kind in KINDS or (ours and api_version != API_VERSION):
        return f"apiVersion {api_version} is not known", f"write {API_VERSION}", "apiVersion"
    if ours:
        return f"kind {kind} is not known", suggest(str(kind), list(KINDS)) or f"known are {known}", "kind"
    return None


def _read_claim(file: str, document: Document, found: Manifests) -> None:
    metadata = document.data.get("metadata")
    name = metadata.get("name") if isinstance(metadata, dict) else None
    if isinstance(name, str) and name.replace("-", "").isalnum():
        found.claims[name] = f"{file}:{document.line}"
    else:
        found.problems.append(
            ManifestProblem(file, document.line, "PersistentVolumeClaim: metadata.name is missing or not a name")
        )


def _read_resource(file: str, document: Document, found: Manifests) -> None:
    model = KINDS[document.data["kind"]].model
    data = {name: value for name, value in document.data.items() if name != "status"}
    metadata = data.get("metadata")
    name = metadata.get("name") if isinstance(metadata, dict) else None
    subject = f"{model.KIND}/{name}" if isinstance(name, str) else model.KIND
    if isinstance(metadata, dict):
        data["metadata"] = {key: value for key, value in metadata.items() if key not in _SERVER_FIELDS}
    try:
        resource = model.parse(json.dumps(data))
    except ValidationError as error:
        for problem in field_problems(error, model):
            line = document.line_of(problem.loc)
            message = f"{problem.field}: {problem.message}" if problem.loc else problem.message
            found.problems.append(ManifestProblem(file, line, message, problem.hint, subject))
        return
    key = Key(model.KIND, resource.metadata.name)
    if key in found.resources:
        message = f"given twice, first in {found.sources[key]}"
        found.problems.append(ManifestProblem(file, document.line, message, "rename or remove one of them", subject))
        return
    found.resources[key] = resource
    found.sources[key] = f"{file}:{document.line}"
