"""Who may write into a workspace: the first resource that claimed it, and of its attempts the newest that has begun.

An attempt may outlive its pod: a node that is cut off from the cluster goes on while its pods are made anew elsewhere.
So every attempt leaves its number, and looks for a higher one before it changes anything that others rely on.
"""

import os
from pathlib import Path
from uuid import uuid4

from pydantic import ValidationError

from herdsman.api.job_config import Owner, RunConfig
from herdsman_trainer.durable import fsync, make_directory
from herdsman_trainer.errors import BadInput, Interrupted

OWNER_FILE = ".owner.json"
ATTEMPT_PREFIX = ".attempt-"


def claim_workspace(config: RunConfig) -> Path:
    """Claim the run's workspace for its resource and return the directory, made where it was not there.

    The claim is one atomic step, so of two resources that start at once exactly one gets it. Raises BadInput with the
    reason PathConflict, naming both, where the directory belongs to another resource (by uid).
    """
    workspace = Path(config.workspace.path)
    if not (workspace.parent.resolve() / workspace.name).is_relative_to(Path(config.workspace.root).resolve()):
        raise BadInput("The workspace lies outside its volume.", file=str(workspace), hint="Use a path without links.")
    make_directory(workspace)
    path = workspace / OWNER_FILE
    if not _create(path, config.owner.model_dump_json(by_alias=True).encode()):
        _check_owner(path, config.owner)
    return workspace


def begin_attempt(workspace: Path, attempt: int) -> None:
    """Leave the attempt's number, from when on older ones may not write; raises Interrupted where a newer has begun."""
    check_attempt(workspace, attempt)
    mine = workspace / f"{ATTEMPT_PREFIX}{attempt}"
    mine.touch()
    for number, left in _attempts(workspace).items():
        if number < attempt:
            left.unlink(missing_ok=True)


def check_attempt(workspace: Path, attempt: int) -> None:
    """Raise Interrupted where a newer attempt of the run has begun: this one was given up by the cluster."""
    newest = max(_attempts(workspace), default=attempt)
    if newest > attempt:
        raise Interrupted(
            f"Attempt {newest} of this run has begun, so attempt {attempt} writes nothing more.",
            file=str(workspace),
            hint="Nothing needs to be done: the newer attempt goes on from the newest checkpoint.",
        )


def _attempts(workspace: Path) -> dict[int, Path]:
    found = ((path.name.removeprefix(ATTEMPT_PREFIX), path) for path in workspace.glob(f"{ATTEMPT_PREFIX}*"))
    return {int(number): path for number, path in found if number.isdigit()}


def _create(path: Path, content: bytes) -> bool:
    """Create the file with its content unless it exists; neither a crash nor a power cut leaves half of a claim."""
    draft = path.with_name(f"{path.name}.{uuid4().hex}")
    draft.write_bytes(content)
    fsync(draft)
    try:
        os.link(draft, path)
    except FileExistsError:
        return False
    except OSError:  # a volume without hard links: create it in place
        try:
            with path.open("xb") as stream:
                stream.write(content)
        except FileExistsError:
            return False
        fsync(path)
    finally:
        draft.unlink()
    fsync(path.parent)
    return True


def _check_owner(path: Path, owner: Owner) -> None:
    try:
        found = Owner.model_validate_json(path.read_bytes())
    except ValidationError:
        message = f"The directory is claimed by a file that cannot be read, so {_title(owner)} may not write here."
        hint = f"If nothing else writes to this directory, delete {OWNER_FILE}."
        raise BadInput(message, reason="PathConflict", file=str(path), hint=hint) from None
    if found.uid != owner.uid:
        message = f"The directory belongs to {_title(found)} and {_title(owner)} wants to write to it."
        hint = "Give one of them another workspace path; if the other is gone for good, delete the directory."
        raise BadInput(message, reason="PathConflict", file=str(path.parent), hint=hint)


def _title(owner: Owner) -> str:
    return f"{owner.kind} {owner.namespace}/{owner.name} (uid {owner.uid})"
