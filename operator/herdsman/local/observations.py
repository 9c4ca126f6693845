"""What a run says of itself in its workspace: progress, checkpoints, and the figures of its artifact."""

import json
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError

from herdsman.api.job_config import MANIFEST_NAME, ArtifactManifest
from herdsman.api.v1alpha1.status import CheckpointStatus, Metric, Progress


class Workspace(NamedTuple):
    """What a run's configuration says about where and how it works."""

    directory: Path | None
    processes: int
    """Training processes in each pod."""


def read_workspace(config: dict[str, Any] | None) -> Workspace:
    """Return the workspace of a run's configuration, as far as it has one."""
    given = config or {}
    path = (given.get("workspace") or {}).get("path")
    return Workspace(Path(path) if path else None, int((given.get("launch") or {}).get("processesPerNode", 1)))


def read_progress(workspace: Path, since: float) -> Progress | None:
    """Return the progress written after `since` (seconds since the epoch); an older one is another attempt's."""
    path = workspace / "progress.json"
    try:
        if path.stat().st_mtime < since:
            return None
        return Progress.model_validate_json(path.read_bytes())
    except (OSError, ValidationError):
        return None


def read_checkpoints(workspace: Path) -> CheckpointStatus | None:
    """Return the complete checkpoints: those with a manifest whose files have the sizes it says."""
    complete = [path for path in (workspace / "checkpoints").glob("step-*") if _whole(path)]
    if not complete:
        return None
    newest = max(complete, key=_step)
    return CheckpointStatus(
        latest=str(newest.relative_to(workspace)), step=_step(newest), verified=True, count=len(complete)
    )


def read_report(workspace: Path) -> tuple[Metric, ...]:
    """Return the figures of the finished artifact."""
    try:
        manifest = ArtifactManifest.model_validate_json((workspace / "artifact" / MANIFEST_NAME).read_bytes())
    except (OSError, ValidationError):
        return ()
    return tuple(manifest.report)


def _step(checkpoint: Path) -> int:
    digits = checkpoint.name.removeprefix("step-")
    return int(digits) if digits.isdigit() else -1


def _whole(checkpoint: Path) -> bool:
    if _step(checkpoint) < 0:
        return False
    try:
        files = json.loads((checkpoint / "manifest.json").read_bytes()).get("files", {})
        return all((checkpoint / name).stat().st_size == entry["bytes"] for name, entry in files.items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False
