"""Checkpoints that survive any end of the process: written aside, described, named, verified, and only then pruned.

`checkpoints/step-00000200/` holds the files of the engine and `manifest.json`, which is written last and lists them.
While it is written it is called `tmp-…`, so a directory named `step-…` was complete when it got its name; whether it
still is, its digests tell.
"""

import errno
import logging
import math
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import torch

from herdsman.api.job_config import FileDigest
from herdsman.api.v1alpha1.status import CheckpointStatus
from herdsman_trainer.checkpoint_manifest import MANIFEST, CheckpointManifest, name_of, step_of, verify
from herdsman_trainer.distributed import Processes
from herdsman_trainer.errors import BadInput, Temporary
from herdsman_trainer.free_space import disk_full, free_bytes
from herdsman_trainer.heartbeat import HEART
from herdsman_trainer.ownership import check_attempt
from herdsman_trainer.weights.digests import digest_file
from herdsman_trainer.weights.writing import write_file

DRAFT_PREFIX, DAMAGED_PREFIX = "tmp-", "damaged-"
FREE_SPACE_FACTOR = 1.2
"""Free space asked for before a checkpoint is written, as a multiple of its size."""
WHAT = "a checkpoint"
HINT = "Make the workspace's volume larger, lower recipe.checkpoints.keepLast, or delete other files from it."

Write = Callable[[Path], Mapping[str, FileDigest]]
"""Writes the files of a checkpoint into a directory, on every rank; returns digests that were taken on the way."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint, and what was passed over to find it."""

    directory: Path
    manifest: CheckpointManifest
    passed_over: tuple[str, ...] = ()
    """Newer checkpoints that did not verify, and why."""


@dataclass(frozen=True)
class Identity:
    """What a checkpoint belongs to; one of another identity is never continued."""

    recipe_digest: str
    attempt: int


class CheckpointStore:
    """The checkpoints of one run. Every rank calls every method; rank 0 decides and the others follow."""

    def __init__(self, root: Path, processes: Processes, identity: Identity, keep_last: int) -> None:
        self.root = root
        self._processes = processes
        self._identity = identity
        self._keep_last = keep_last
        self._manifest: CheckpointManifest | None = None

    def newest(self) -> Checkpoint | None:
        """Return the newest checkpoint that verifies, or None where there never was one.

        BadInput: CheckpointLost where there are checkpoints and none verifies, so that a run never starts again at
        step 0 in silence; and where the newest belongs to another recipe or other inputs.
        """
        return self._processes.on_first(self._newest)

    def save(self, step: int, write: Write, need_bytes: int, notes: Mapping[str, float]) -> Path:
        """Write a checkpoint, verify it, and prune older ones; returns its directory.

        Raises Temporary (DiskFull), with the figures, where there is no space for it. Older checkpoints than the newest
        one that verifies give way for it if that is enough; otherwise nothing is touched.
        """
        draft = self.root / f"{DRAFT_PREFIX}{step:08d}-{self._identity.attempt}"
        self._processes.on_first(lambda: self._prepare(draft, need_bytes))
        known = self._written(draft, write)
        if known is None:
            self._processes.on_first(lambda: self._after_full_disk(draft, need_bytes))
            known = self._written(draft, write)
        if known is None:
            self._processes.on_first(lambda: _remove(draft))
            raise disk_full(self.root, WHAT, hint=HINT)
        files = known
        self._processes.on_first(lambda: self._commit(step, draft, files, notes))
        return self.root / name_of(step)

    def status(self) -> CheckpointStatus | None:
        """Return what there is, for rank 0: the newest checkpoint that this process found or made."""
        if self._manifest is None:
            return None
        latest = f"{self.root.name}/{name_of(self._manifest.step)}"
        count = len(self._directories())
        return CheckpointStatus(latest=latest, step=self._manifest.step, verified=True, count=count)

    def saved_at(self) -> datetime | None:
        """Return when that checkpoint was made."""
        return datetime.fromisoformat(self._manifest.created) if self._manifest is not None else None

    def _newest(self) -> Checkpoint | None:
        passed_over: list[tuple[Path, str]] = []
        for directory in self._directories():
            try:
                manifest = verify(directory)
            except ValueError as error:
                passed_over.append((directory, str(error)))
                continue
            self._check_identity(directory, manifest)
            for damaged, why in passed_over:
                _log.warning("Checkpoint %s does not verify (%s); falling back to %s.", damaged, why, directory)
                self._set_aside(damaged)
            self._manifest = manifest
            return Checkpoint(directory, manifest, tuple(f"{path.name}: {why}" for path, why in passed_over))
        if passed_over:
            raise BadInput(
                f"{len(passed_over)} checkpoints exist and none verifies; the newest: {passed_over[0][1]}.",
                reason="CheckpointLost",
                file=str(passed_over[0][0]),
                hint=f"Restore {self.root} from a copy, or delete it to start again at step 0.",
            )
        return None

    def _check_identity(self, directory: Path, manifest: CheckpointManifest) -> None:
        mine = self._identity.recipe_digest
        if manifest.recipe_digest != mine:
            raise BadInput(
                f"The checkpoint was made with another recipe or other inputs ({manifest.recipe_digest[:12]}…, "
                f"now {mine[:12]}…).",
                file=str(directory),
                hint=f"Make a new resource for another recipe, or delete {self.root} to start again at step 0.",
            )

    def _written(self, draft: Path, write: Write) -> Mapping[str, FileDigest] | None:
        """Let every rank write; returns None where the disk was full on any of them."""
        known: Mapping[str, FileDigest] | None = None
        try:
            known = write(draft)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
        self._processes.on_first(lambda: None)  # the others wait for it as long as it writes, and are not stalled
        return None if self._processes.any(known is None) else known

    def _prepare(self, draft: Path, need_bytes: int) -> None:
        self.root.mkdir(parents=True, exist_ok=True)
        check_attempt(self.root.parent, self._identity.attempt)
        self._remove_drafts()
        needed = round(FREE_SPACE_FACTOR * need_bytes)
        free = free_bytes(self.root)
        if free is not None and free < needed and not self._make_room(needed - free):
            raise disk_full(self.root, WHAT, size=need_bytes, needed=needed, free=free, hint=HINT)
        draft.mkdir()

    def _after_full_disk(self, draft: Path, need_bytes: int) -> None:
        """Prepare a second try where older checkpoints hold what was missing; a quota is only noticed by writing."""
        missing = round(FREE_SPACE_FACTOR * need_bytes) - _size(draft)
        _remove(draft)
        if not self._make_room(max(1, missing)):
            raise disk_full(self.root, WHAT, hint=HINT)
        draft.mkdir()

    def _commit(self, step: int, draft: Path, known: Mapping[str, FileDigest], notes: Mapping[str, float]) -> None:
        """Describe the draft, give it its name, verify it, and prune."""
        final = self.root / name_of(step)
        try:
            files = {}
            for path in sorted(path for path in draft.rglob("*") if path.is_file()):
                name = path.relative_to(draft).as_posix()
                files[name] = known.get(name) or digest_file(path)
                _fsync(path)
            manifest = CheckpointManifest(
                step=step,
                attempt=self._identity.attempt,
                world_size=self._processes.world_size,
                recipe_digest=self._identity.recipe_digest,
                threads=torch.get_num_threads(),
                torch=torch.__version__,
                created=datetime.now(UTC).isoformat(timespec="seconds"),
                notes={name: float(value) for name, value in notes.items() if math.isfinite(value)},
                files=files,
            ).sealed()
            write_file(draft / MANIFEST, manifest.to_bytes())
            for directory in (*(path for path in draft.rglob("*") if path.is_dir()), draft):
                _fsync(directory)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                _remove(draft)
                raise disk_full(self.root, WHAT, hint=HINT) from error
            raise
        check_attempt(self.root.parent, self._identity.attempt)
        if final.exists():  # one that did not verify, or it would have been resumed from
            self._set_aside(final)
        draft.rename(final)
        _fsync(self.root)
        try:
            self._manifest = verify(final)
        except ValueError as error:
            raise Temporary(
                f"The checkpoint just written does not verify: {error}.",
                file=str(final),
                hint="The volume does not keep what is written to it: check it.",
            ) from error
        self._prune(self._keep_last)

    def _prune(self, keep: int) -> None:
        """Remove all but the newest `keep` checkpoints, and what broken attempts left behind."""
        for directory in self._directories()[max(1, keep) :]:
            self._discard(directory)
        self._remove_drafts()
        for left in self._damaged():
            _remove(left)

    def _make_room(self, missing: int) -> bool:
        """Remove everything but the newest checkpoint that verifies, if that frees `missing` bytes; returns whether."""
        directories = self._directories()
        good = next((directory for directory in directories if _verifies(directory)), None)
        if good is None:
            return False
        others = [directory for directory in directories if directory != good]
        if sum(map(_size, [*others, *self._damaged()])) < missing:
            return False
        _log.warning("The volume of %s is nearly full: keeping only the checkpoint %s.", self.root, good.name)
        for directory in others:
            self._discard(directory)
        for left in self._damaged():
            _remove(left)
        return True

    def _discard(self, directory: Path) -> None:
        """Remove a checkpoint; half of one never has a checkpoint's name."""
        aside = self.root / f"{DRAFT_PREFIX}pruned-{directory.name}"
        _remove(aside)
        directory.rename(aside)
        _remove(aside)

    def _remove_drafts(self) -> None:
        for left in self.root.glob(f"{DRAFT_PREFIX}*"):
            _remove(left)

    def _damaged(self) -> list[Path]:
        return list(self.root.glob(f"{DAMAGED_PREFIX}*"))

    def _set_aside(self, directory: Path) -> None:
        aside = self.root / f"{DAMAGED_PREFIX}{directory.name}"
        _remove(aside)
        directory.rename(aside)

    def _directories(self) -> list[Path]:
        """Return the checkpoints' directories, newest first."""
        if not self.root.is_dir():
            return []
        found = [path for path in self.root.iterdir() if path.is_dir() and step_of(path) >= 0]
        return sorted(found, key=step_of, reverse=True)


def _verifies(directory: Path) -> bool:
    try:
        verify(directory)
    except ValueError:
        return False
    return True


def _size(directory: Path) -> int:
    """Return the bytes of a directory's files."""
    return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())


def _remove(directory: Path) -> None:
    if directory.exists():
        shutil.rmtree(directory)


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        with HEART.handling(os.fstat(descriptor).st_size):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)
