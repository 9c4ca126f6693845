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
from herdsman_trainer.checkpoint_manifest import MANIFEST, CheckpointManifest, name_of, step_of, verify
from herdsman_trainer.distributed import Processes
from herdsman_trainer.errors import BadInput, Temporary
from herdsman_trainer.weights.digests import digest_file
from herdsman_trainer.weights.writing import write_file

DRAFT_PREFIX, DAMAGED_PREFIX = "tmp-", "damaged-"
FREE_SPACE_FACTOR = 1.2
"""Free space asked for before a checkpoint is written, as a multiple of its size."""

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

    def newest(self) -> Checkpoint | None:
        """Return the newest checkpoint that verifies, or None where there never was one.

        BadInput: CheckpointLost where there are checkpoints and none verifies, so that a run never starts again at
        step 0 in silence; and where the newest belongs to another recipe or other inputs.
        """
        return self._processes.on_first(self._newest)

    def save(self, step: int, write: Write, need_bytes: int, notes: Mapping[str, float]) -> Path:
        """Write a checkpoint, verify it, and prune older ones; returns its directory.

        Raises Temporary (DiskFull) where there is no space even after pruning to the newest one, which stays.
        """
        draft = self.root / f"{DRAFT_PREFIX}{step:08d}-{self._identity.attempt}"
        try:
            self._try_save(step, draft, write, need_bytes, notes)
        except Temporary as full:
            if full.reason != "DiskFull":
                raise
            _log.warning("%s Pruned to the newest checkpoint; trying once more.", full)
            self._processes.on_first(lambda: self._make_room(draft))
            try:
                self._try_save(step, draft, write, need_bytes, notes)
            except Temporary:
                self._processes.on_first(lambda: self._make_room(draft))
                raise
        return self.root / name_of(step)

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

    def _try_save(self, step: int, draft: Path, write: Write, need_bytes: int, notes: Mapping[str, float]) -> None:
        self._processes.on_first(lambda: self._prepare(draft, need_bytes))
        known: Mapping[str, FileDigest] = {}
        full = False
        try:
            known = write(draft)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            full = True
        if self._processes.any(full):
            raise _disk_full(self.root)
        self._processes.on_first(lambda: self._commit(step, draft, known, notes))

    def _prepare(self, draft: Path, need_bytes: int) -> None:
        self.root.mkdir(parents=True, exist_ok=True)
        _remove(draft)
        space = os.statvfs(self.root)
        if space.f_bavail * space.f_frsize < FREE_SPACE_FACTOR * need_bytes:
            raise _disk_full(self.root, need_bytes)
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
                raise _disk_full(self.root) from error
            raise
        if final.exists():  # one that did not verify, or it would have been resumed from
            self._set_aside(final)
        draft.rename(final)
        _fsync(self.root)
        try:
            verify(final)
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
            aside = self.root / f"{DRAFT_PREFIX}pruned-{directory.name}"
            _remove(aside)
            directory.rename(aside)  # so that half a checkpoint never has a checkpoint's name
        for left in self.root.iterdir():
            if left.name.startswith((DRAFT_PREFIX, DAMAGED_PREFIX)):
                _remove(left)

    def _make_room(self, draft: Path) -> None:
        """Remove the draft and all but the newest checkpoint that verifies."""
        _remove(draft)
        if not self.root.is_dir():
            return
        directories = self._directories()
        good = next((directory for directory in directories if _verifies(directory)), None)
        if good is not None:
            for directory in directories:
                if directory != good:
                    self._set_aside(directory)
            self._prune(1)

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


def _disk_full(root: Path, need_bytes: int | None = None) -> Temporary:
    needed = f"; a checkpoint needs {need_bytes / 2**20:.0f} MiB and a fifth to spare" if need_bytes else ""
    return Temporary(
        f"The volume has no space left for a checkpoint{needed}.",
        reason="DiskFull",
        file=str(root),
        hint="Make the workspace's volume larger, lower recipe.checkpoints.keepLast, or delete other files from it.",
    )


def _remove(directory: Path) -> None:
    if directory.exists():
        shutil.rmtree(directory)


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
