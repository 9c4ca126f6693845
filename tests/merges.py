"""Runs a LoRAMerge inside of a test's directory."""

from pathlib import Path

from herdsman.api.job_config import LoRAMergeConfig
from herdsman.api.v1alpha1.status import Artifact
from herdsman_trainer.__main__ import run_step
from herdsman_trainer.run_context import RunContext
from run_configs import owner, source, workspace


def merge_config(root: Path, model: Path, adapters, *, uid="uid-1", attempt=1, **options) -> LoRAMergeConfig:
    """The configuration of an attempt whose workspace is `root`/work."""
    return LoRAMergeConfig(
        owner=owner(uid=uid),
        attempt=attempt,
        workspace=workspace(root),
        model=source(model),
        adapters=[source(path, field=f"spec.adapters[{number}]") for number, path in enumerate(adapters)],
        **options,
    )


def merge(root: Path, model: Path, adapters, *, stop=False, **options) -> tuple[Artifact, Path]:
    """Merge and return the artifact with its directory."""
    context = RunContext(merge_config(root, model, adapters, **options), rank=0)
    if stop:
        context.request_stop()
    return run_step(context.config, context), root / "work" / "artifact"
