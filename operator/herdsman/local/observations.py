"""What a run says of itself in its workspace: progress, checkpoints, and the figures of its artifact."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError

from herdsman.api.job_config import EVALUATED_STEP, HELD_OUT_LOSS, MANIFEST_NAME, ArtifactManifest
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
    found = {path: _notes(path) for path in (workspace / "checkpoints").glob("step-*")}
    complete = {path: notes for path, notes in found.items() if notes is not None}
    if not complete:
        return None
    newest = max(complete, key=_step)
    evaluated = {path: notes[HELD_OUT_LOSS] for path, notes in complete.items() if _is_evaluated(path, notes)}
    best = min(evaluated, key=lambda path: (evaluated[path], _step(path)), default=None)
    return CheckpointStatus(
        latest=str(newest.relative_to(workspace)),
        step=_step(newest),
        verified=True,
        count=len(complete),
        best_step=_step(best) if best is not None else None,
        best_heldout_loss=f"{evaluated[best]:.6g}" if best is not None else None,
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


def _notes(checkpoint: Path) -> dict[str, Any] | None:
    """Return the notes of a checkpoint's manifest, or None where it is not whole."""
    if _step(checkpoint) < 0:
        return None
    try:
        manifest = json.loads((checkpoint / "manifest.json").read_bytes())
        files = manifest.get("files", {})
        whole = all((checkpoint / name).stat().st_size == entry["bytes"] for name, entry in files.items())
        return dict(manifest.get("notes") or {}) if whole else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _is_evaluated(checkpoint: Path, notes: Mapping[str, Any]) -> bool:
    """Whether the notes tell the held-out loss of this very step."""
    return notes.get(EVALUATED_STEP) == _step(checkpoint) and isinstance(notes.get(HELD_OUT_LOSS), float)
