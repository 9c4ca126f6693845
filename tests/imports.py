"""Runs a ModelImport inside of a test's directory."""

import hashlib
from pathlib import Path

from herdsman.api.job_config import ModelImportConfig
from herdsman_trainer.__main__ import run_step
from herdsman_trainer.run_context import RunContext
from run_configs import owner, source, workspace


def import_model(tmp_path: Path, path=None, *, stop=False, root=None, name="work", uid="uid-1", **options):
    """Import a path and return the artifact with its directory."""
    config = ModelImportConfig(
        owner=owner(kind="ModelImport", uid=uid),
        attempt=1,
        workspace=workspace(tmp_path, name),
        source=source(path, field="spec.source.volume", root=root) if path else None,
        **options,
    )
    context = RunContext(config, rank=0)
    if stop:
        context.request_stop()
    return run_step(config, context), tmp_path / name / "artifact"


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def copied(model: Path, directory: Path) -> Path:
    directory.mkdir(parents=True)
    for path in model.iterdir():
        (directory / path.name).write_bytes(path.read_bytes())
    return directory
