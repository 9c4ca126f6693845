"""Builders of the configurations that trainer steps read, with paths inside a test's directory."""

from collections.abc import Sequence
from pathlib import Path

from herdsman.api.job_config import Input, Owner, RunConfig, ServerConfig, WorkspaceDir
from herdsman.api.v1alpha1.status import Artifact


def owner(name: str = "demo", uid: str = "uid-1", kind: str = "LoRAMerge") -> Owner:
    return Owner(kind=kind, name=name, uid=uid)


def workspace(root: Path, relative: str = "work") -> WorkspaceDir:
    return WorkspaceDir(root=str(root), path=str(root / relative), claim="claim", relative=relative)


def run_config(root: Path, *, uid: str = "uid-1", name: str = "demo", attempt: int = 1, relative: str = "work"):
    return RunConfig(owner=owner(name, uid), attempt=attempt, workspace=workspace(root, relative))


def source(
    path: Path, *, field: str = "spec.model", root: Path | None = None, artifact: Artifact | None = None
) -> Input:
    return Input(root=str(root or path), path=str(path), field=field, artifact=artifact)


def server_config(model: Path, adapters: Sequence[Path] = (), **options) -> ServerConfig:
    """Return the configuration of a server of this model, named demo."""
    return ServerConfig(
        owner=owner(kind="ModelServer"),
        model=source(model),
        adapters=[source(path, field="spec.adapters[0]") for path in adapters],
        model_name="demo",
        port=8000,
        **options,
    )
