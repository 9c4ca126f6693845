"""Artifacts on disk: claimed, published in one step, and checked by whoever takes them.

A result is written to `artifact.tmp-<attempt>` beside its final place, made durable, described by
`herdsman-artifact.json` and renamed to `artifact`; so a directory of that name is always complete.
"""

import hashlib
import shutil
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from pydantic import ValidationError

from herdsman.api.job_config import (
    MANIFEST_NAME,
    REPORT_FILES,
    REPORT_PAGE,
    ArtifactManifest,
    FileDigest,
    Input,
    RunConfig,
)
from herdsman.api.v1alpha1.status import Artifact, Metric
from herdsman_trainer.durable import fsync
from herdsman_trainer.errors import BadInput
from herdsman_trainer.ownership import check_attempt
from herdsman_trainer.plain_files import digest_file, write_file

ARTIFACT_DIRECTORY = "artifact"
Depth = Literal["Sizes", "Digests"]
OnBytes = Callable[[int], None]
"""Hears how many bytes were read since it was last called."""


def _unheard(_count: int) -> None:
    """Take no notice."""


def artifact_digest(files: Mapping[str, FileDigest]) -> str:
    """Return the digest of an artifact: SHA-256 over the lines "name size sha256", sorted by name."""
    lines = (f"{name} {file.bytes} {file.sha256}\n" for name, file in sorted(files.items()))
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def draft_artifact(config: RunConfig) -> Path:
    """Return a new, empty directory beside the artifact's place; what earlier attempts left there is removed."""
    workspace = Path(config.workspace.path)
    workspace.mkdir(parents=True, exist_ok=True)
    for left in workspace.glob(f"{ARTIFACT_DIRECTORY}.tmp-*"):
        shutil.rmtree(left)
    draft = workspace / f"{ARTIFACT_DIRECTORY}.tmp-{config.attempt}"
    draft.mkdir()
    return draft


def take_up_draft(config: RunConfig) -> Path:
    """Return the draft of the newest earlier attempt under the name of this one's, or a new directory.

    An attempt that was given up and still writes goes on in the same files. So whoever takes a draft up either writes
    the same bytes in the same places, or replaces the files.
    """
    workspace = Path(config.workspace.path)
    draft = workspace / f"{ARTIFACT_DIRECTORY}.tmp-{config.attempt}"
    found = (path for path in workspace.glob(f"{ARTIFACT_DIRECTORY}.tmp-*") if _attempt_of(path) <= config.attempt)
    *older, newest = sorted(found, key=_attempt_of) or [draft]
    for left in older:
        shutil.rmtree(left)
    if newest != draft:
        newest.rename(draft)
    draft.mkdir(parents=True, exist_ok=True)
    return draft


def _attempt_of(draft: Path) -> int:
    number = draft.name.rpartition("-")[2]
    return int(number) if number.isdigit() else -1


def publish_artifact(
    config: RunConfig,
    draft: Path,
    *,
    kind: Literal["model", "tokenizer", "adapter", "dataset", "report"],
    inputs: Mapping[str, str] | None = None,
    report: Sequence[Metric] = (),
    known: Mapping[str, FileDigest] | None = None,
    pages: Callable[[Artifact], Mapping[str, bytes]] | None = None,
    **contract: Any,
) -> Artifact:
    """Make the draft durable, describe it, and give it its name; returns the contract for the status.

    `inputs` are digests of what it was made from, by field of the spec. `known` are digests of files that were taken
    while they were written, so that large files are not read again. `pages` gives the files of REPORT_FILES, which are
    no part of the digest. `contract` are further fields of Artifact: vocab_size, tokenizer_digest, base_digest,
    parents, dtype, prompt_template.
    """
    files: dict[str, FileDigest] = {}
    for path in sorted(path for path in draft.rglob("*") if path.is_file()):
        name = path.relative_to(draft).as_posix()
        files[name] = (known or {}).get(name) or digest_file(path)
        fsync(path)
    final = Path(config.workspace.path) / ARTIFACT_DIRECTORY
    artifact = Artifact(
        kind=kind,
        claim=config.workspace.claim,
        path=str(PurePosixPath(config.workspace.relative) / ARTIFACT_DIRECTORY),
        digest=artifact_digest(files),
        bytes=sum(file.bytes for file in files.values()),
        **contract,
    )
    for name, content in (pages(artifact) if pages is not None else {}).items():
        write_file(draft / name, content)
        if name == REPORT_PAGE:
            artifact = artifact.model_copy(update={"report": name})
    manifest = ArtifactManifest(
        artifact=artifact,
        files=files,
        owner=config.owner,
        attempt=config.attempt,
        inputs=dict(inputs or {}),
        report=list(report),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        herdsman=version("herdsman"),
    )
    write_file(
        draft / MANIFEST_NAME, (manifest.model_dump_json(by_alias=True, exclude_none=True, indent=2) + "\n").encode()
    )
    for directory in [draft, *(path for path in draft.rglob("*") if path.is_dir())]:
        fsync(directory)
    check_attempt(final.parent, config.attempt)
    if final.exists():  # damaged, or its owner would not have been working again; see published_artifact
        shutil.rmtree(final)
    draft.rename(final)
    fsync(final.parent)
    return artifact


def published_artifact(config: RunConfig) -> Artifact | None:
    """Return the artifact an earlier attempt of the same resource finished, if it is there and whole."""
    final = Path(config.workspace.path) / ARTIFACT_DIRECTORY
    try:
        manifest = verify_artifact(final) if final.is_dir() else None
    except BadInput:
        return None
    return manifest.artifact if manifest and manifest.owner.uid == config.owner.uid else None


def published_report(config: RunConfig) -> list[Metric]:
    """Return the figures of the published artifact; none where it cannot be read."""
    try:
        manifest = read_manifest(Path(config.workspace.path) / ARTIFACT_DIRECTORY)
    except (BadInput, OSError):
        return []
    return manifest.report if manifest is not None else []


def read_manifest(directory: Path) -> ArtifactManifest | None:
    """Return the manifest of a directory, or None for plain files; raises BadInput for a damaged manifest."""
    path = directory / MANIFEST_NAME
    if not path.is_file():
        return None
    try:
        manifest = ArtifactManifest.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        hint = "The manifest was damaged or written by a newer Herdsman: make the artifact again."
        raise BadInput(f"The manifest is not valid: {where}: {first['msg']}.", file=str(path), hint=hint) from None
    for name in manifest.files:
        parts = PurePosixPath(name).parts
        if not parts or name.startswith("/") or ".." in parts or "\\" in name:
            hint = "The manifest was tampered with: make the artifact again."
            raise BadInput(f"The manifest names the file {name!r}, which is outside.", file=str(path), hint=hint)
    return manifest


def model_digest(directory: Path, on_bytes: OnBytes = _unheard) -> str:
    """Return the digest of a model: that of its manifest, or else one over its files, as a manifest would have it."""
    manifest = read_manifest(directory)
    if manifest is not None:
        return manifest.artifact.digest
    files = sorted(path for path in directory.rglob("*") if path.is_file() and not path.name.startswith("."))
    return artifact_digest({path.relative_to(directory).as_posix(): digest_file(path, on_bytes) for path in files})


def verify_artifact(directory: Path, depth: Depth = "Sizes", on_bytes: OnBytes = _unheard) -> ArtifactManifest:
    """Check a directory against its manifest and return it.

    `Sizes` compares names and sizes, `Digests` reads every file; `on_bytes` hears how much was read and may raise to
    stop. Raises BadInput, naming the file: reason ChecksumMismatch with the expected and the found digest where the
    content differs.
    """
    manifest = read_manifest(directory)
    if manifest is None:
        hint = "Name the directory that a resource published, or one that has plain model files."
        raise BadInput(f"The directory has no {MANIFEST_NAME}.", file=str(directory), hint=hint)
    again = "Something changed the artifact after it was published: make or copy it again."
    if artifact_digest(manifest.files) != manifest.artifact.digest:
        message = "The digests of the files do not make the digest of the artifact."
        raise BadInput(message, reason="ChecksumMismatch", file=str(directory / MANIFEST_NAME), hint=again)
    for name, expected in manifest.files.items():
        path = directory / name
        if not path.is_file() or not path.resolve().is_relative_to(directory.resolve()):
            raise BadInput("A file of the artifact is missing.", file=str(path), hint=again)
        if (size := path.stat().st_size) != expected.bytes:
            message = f"The file has {size} bytes and the manifest says {expected.bytes}."
            raise BadInput(message, reason="ChecksumMismatch", file=str(path), hint=again)
        if depth == "Digests" and (found := digest_file(path, on_bytes).sha256) != expected.sha256:
            message = f"SHA-256 is {found} and the manifest says {expected.sha256}."
            raise BadInput(message, reason="ChecksumMismatch", file=str(path), hint=again)
    present = {path.relative_to(directory).as_posix() for path in directory.rglob("*") if path.is_file()}
    strangers = present - {*manifest.files, MANIFEST_NAME, *REPORT_FILES}
    if strangers := {name for name in strangers if not PurePosixPath(name).name.startswith(".")}:
        hint = "Artifacts are never edited: move the file away, or copy the directory without its manifest."
        message = "The file is not part of the artifact it lies in."
        raise BadInput(message, file=str(directory / min(strangers)), hint=hint)
    return manifest


def open_input(source: Input, depth: Depth = "Sizes", on_bytes: OnBytes = _unheard) -> Path:
    """Return the path of an input after checking that it is there, inside its volume, and what it was published as.

    Raises BadInput with the field of the spec where it is missing, leads outside by "..", or a link, or is not the
    artifact that was ready when the run was planned.
    """
    path, root = Path(source.path), Path(source.root)
    if not path.exists():
        hint = f"Check {source.field}: the path is relative to the volume."
        raise BadInput(f"{source.field} names nothing: the path does not exist.", file=str(path), hint=hint)
    if not path.resolve().is_relative_to(root.resolve()):
        hint = f"Copy the files onto the volume that {source.field} names."
        raise BadInput(f"{source.field} leads outside its volume.", file=str(path), hint=hint)
    if not path.is_dir() or (source.artifact is None and read_manifest(path) is None):
        return path
    manifest = verify_artifact(path, depth, on_bytes)
    if source.artifact is not None and manifest.artifact.digest != source.artifact.digest:
        message = (
            f"{source.field} was planned with the artifact {source.artifact.digest[:12]}… "
            f"and {manifest.artifact.digest[:12]}… lies there."
        )
        hint = "It was made anew in between: delete this resource and create it again."
        raise BadInput(message, reason="ArtifactMismatch", file=str(path), hint=hint)
    return path / source.part if source.part is not None else path
