"""The directory of a run's checkpoints, as rank 0 works on it: written aside, described, named, verified, then pruned.

`checkpoints/step-00000200/` holds the files of the state and `manifest.json`, which is written last and lists them.
While it is written it is called `tmp-…`, so a directory named `step-…` was complete when it got its name; whether it
still is, its digests tell.
"""

import errno
import logging
import math
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import torch
from pydantic import ValidationError

from herdsman.api.job_config import EVALUATED_STEP, HELD_OUT_LOSS, FileDigest
from herdsman.api.v1alpha1.status import CheckpointStatus
from herdsman_trainer.checkpoint_manifest import MANIFEST, CheckpointManifest, name_of, step_of, verify
from herdsman_trainer.durable import fsync, make_directory
from herdsman_trainer.errors import BadInput, Temporary
from herdsman_trainer.free_space import disk_full, free_bytes
from herdsman_trainer.ownership import check_attempt
from herdsman_trainer.weights.digests import digest_file
from herdsman_trainer.weights.writing import write_file

DRAFT_PREFIX, DAMAGED_PREFIX = "tmp-", "damaged-"
FREE_SPACE_FACTOR = 1.2
"""Free space asked for before a checkpoint is written, as a multiple of its size."""
WHAT = "a checkpoint"
HINT = "Make the workspace's volume larger, lower recipe.checkpoints.keepLast, or delete other files from it."
FULL = (errno.ENOSPC, errno.EDQUOT)

Write = Callable[[Path], Mapping[str, FileDigest]]
"""Writes the files of a checkpoint into a directory; returns digests that were taken on the way."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint, and what was passed over to find it."""

    directory: Path
    manifest: CheckpointManifest
    passed_over: tuple[str, ...] = ()
    """Other checkpoints that were looked for first and did not verify, and why."""


@dataclass(frozen=True)
class Identity:
    """What a checkpoint belongs to; one of another identity is never continued."""

    recipe_digest: str
    attempt: int


class CheckpointFolder:
    """The checkpoints of one run on its volume; `world_size` is noted in their manifests.

    Of the checkpoints that verified the newest `keep_last` stay, and the `keep_best` with the least held-out loss.
    """

    def __init__(self, root: Path, identity: Identity, keep_last: int, keep_best: int = 0, *, world_size: int) -> None:
        self.root = root
        self.identity = identity
        self._keep_last = max(1, keep_last)
        self._keep_best = keep_best
        self._world_size = world_size
        self._manifest: CheckpointManifest | None = None

    def newest(self, before: int | None = None) -> Checkpoint | None:
        """Return the newest checkpoint that verifies, of a step `before` the given one, or None where there is none.

        BadInput: CheckpointLost where there are checkpoints and none verifies, so that a run never starts again at
        step 0 in silence; and where the newest belongs to another recipe or other inputs.
        """
        if before is None:
            self._remove_drafts()  # of attempts that were killed
        passed_over: list[tuple[Path, str]] = []
        for directory in self._directories():
            if before is not None and step_of(directory) >= before:
                continue
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

    def best(self) -> Checkpoint | None:
        """Return the evaluated checkpoint with the least held-out loss that verifies, or None where there is none."""
        passed_over: list[str] = []
        for directory in self._evaluated():
            try:
                return Checkpoint(directory, verify(directory), tuple(passed_over))
            except ValueError as error:
                _log.warning("The best checkpoint %s does not verify (%s).", directory, error)
                passed_over.append(f"{directory.name}: {error}")
        return None

    def is_among_best(self, loss: float) -> bool:
        """Whether a checkpoint of this held-out loss would be kept as one of the best."""
        if not self._keep_best or not math.isfinite(loss):
            return False
        losses = list(self._evaluated().values())[: self._keep_best]
        return len(losses) < self._keep_best or loss < losses[-1]

    def save(self, step: int, write: Write, need_bytes: int, notes: Mapping[str, float], threads: int) -> None:
        """Write a checkpoint, verify it, and prune; a second time where older ones held the space it needs.

        Raises Temporary (DiskFull), with the figures, where there is no space for it. Older checkpoints than the newest
        one that verifies give way for it if that is enough; otherwise nothing is touched.
        """
        draft = self.draft(step)
        self.prepare(draft, need_bytes)
        known = write_or_full(write, draft)
        if known is None:
            self.prepare_again(draft, need_bytes)
            known = write_or_full(write, draft)
        if known is None:
            raise self.give_up(draft)
        self.commit(step, draft, known, notes, threads)

    def draft(self, step: int) -> Path:
        """Return the directory in which a checkpoint is written."""
        return self.root / f"{DRAFT_PREFIX}{step:08d}-{self.identity.attempt}"

    def prepare(self, draft: Path, need_bytes: int) -> None:
        """Make the draft, after what broken attempts left is removed and there is room."""
        make_directory(self.root)
        check_attempt(self.root.parent, self.identity.attempt)
        self._remove_drafts()
        needed = round(FREE_SPACE_FACTOR * need_bytes)
        free = free_bytes(self.root)
        if free is not None and free < needed and not self._make_room(needed - free):
            raise disk_full(self.root, WHAT, size=need_bytes, needed=needed, free=free, hint=HINT)
        draft.mkdir()

    def prepare_again(self, draft: Path, need_bytes: int) -> None:
        """Prepare a second try where older checkpoints hold what was missing; a quota is only noticed by writing."""
        missing = round(FREE_SPACE_FACTOR * need_bytes) - _size(draft)
        _remove(draft)
        if not self._make_room(max(1, missing)):
            raise disk_full(self.root, WHAT, hint=HINT)
        draft.mkdir()

    def give_up(self, draft: Path) -> Temporary:
        """Remove the draft; returns the error of a full volume."""
        _remove(draft)
        return disk_full(self.root, WHAT, hint=HINT)

    def commit(
        self, step: int, draft: Path, known: Mapping[str, FileDigest], notes: Mapping[str, float], threads: int
    ) -> None:
        """Describe the draft, give it its name, verify it, and prune."""
        final = self.root / name_of(step)
        try:
            self._describe(step, draft, known, notes, threads)
        except OSError as error:
            if error.errno in FULL:
                raise self.give_up(draft) from error
            raise
        check_attempt(self.root.parent, self.identity.attempt)
        if final.exists():  # one that did not verify, or it would have been resumed from
            self._set_aside(final)
        draft.rename(final)
        fsync(self.root)
        try:
            self._manifest = verify(final)
        except ValueError as error:
            raise Temporary(
                f"The checkpoint just written does not verify: {error}.",
                file=str(final),
                hint="The volume does not keep what is written to it: check it.",
            ) from error
        self._prune()

    def discard_after(self, step: int) -> None:
        """Remove the checkpoints of later steps: the run has gone back to this one and goes on differently."""
        for directory in self._directories():
            if step_of(directory) > step:
                self._discard(directory)
        if self.root.is_dir():
            fsync(self.root)

    def status(self) -> CheckpointStatus | None:
        """Return what there is: the newest checkpoint that this process found or made, and the best one."""
        if self._manifest is None:
            return None
        best = next(iter(self._evaluated().items()), None) if self._keep_best else None
        return CheckpointStatus(
            latest=f"{self.root.name}/{name_of(self._manifest.step)}",
            step=self._manifest.step,
            verified=True,
            count=len(self._directories()),
            best_step=step_of(best[0]) if best is not None else None,
            best_heldout_loss=f"{best[1]:.6g}" if best is not None else None,
        )

    def saved_at(self) -> datetime | None:
        """Return when the newest checkpoint was made."""
        return datetime.fromisoformat(self._manifest.created) if self._manifest is not None else None

    def _describe(
        self, step: int, draft: Path, known: Mapping[str, FileDigest], notes: Mapping[str, float], threads: int
    ) -> None:
        """Write the manifest; then all of the draft is on the disk."""
        files = {}
        for path in sorted(path for path in draft.rglob("*") if path.is_file()):
            name = path.relative_to(draft).as_posix()
            files[name] = known.get(name) or digest_file(path)
            fsync(path)
        manifest = CheckpointManifest(
            step=step,
            attempt=self.identity.attempt,
            world_size=self._world_size,
            recipe_digest=self.identity.recipe_digest,
            threads=threads,
            torch=torch.__version__,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            notes={name: float(value) for name, value in notes.items() if math.isfinite(value)},
            files=files,
        ).sealed()
        write_file(draft / MANIFEST, manifest.to_bytes())
        for directory in (*(path for path in draft.rglob("*") if path.is_dir()), draft):
            fsync(directory)

    def _check_identity(self, directory: Path, manifest: CheckpointManifest) -> None:
        mine = self.identity.recipe_digest
        if manifest.recipe_digest != mine:
            raise BadInput(
                f"The checkpoint was made with another recipe or other inputs ({manifest.recipe_digest[:12]}…, "
                f"now {mine[:12]}…).",
                file=str(directory),
                hint=f"Make a new resource for another recipe, or delete {self.root} to start again at step 0.",
            )

    def _prune(self) -> None:
        """Remove all but the newest and the best checkpoints, and what broken attempts left behind."""
        directories = self._directories()
        kept = {*directories[: self._keep_last], *list(self._evaluated())[: self._keep_best]}
        for directory in directories:
            if directory not in kept:
                self._discard(directory)
        self._remove_drafts()
        for left in self._damaged():
            _remove(left)

    def _make_room(self, missing: int) -> bool:
        """Remove all but the newest checkpoint that verifies and the best one, if that frees `missing` bytes.

        Returns whether it did.
        """
        directories = self._directories()
        good = next((directory for directory in directories if _verifies(directory)), None)
        if good is None:
            return False
        kept = {good, *list(self._evaluated())[: min(1, self._keep_best)]}
        others = [directory for directory in directories if directory not in kept]
        if sum(map(_size, [*others, *self._damaged()])) < missing:
            return False
        names = " and ".join(sorted(directory.name for directory in kept))
        _log.warning("The volume of %s is nearly full: keeping only the checkpoint %s.", self.root, names)
        for directory in others:
            self._discard(directory)
        for left in self._damaged():
            _remove(left)
        return True

    def _evaluated(self) -> dict[Path, float]:
        """Return the checkpoints that were evaluated with their held-out loss, the least one first."""
        losses = {path: loss for path in self._directories() if (loss := _held_out_loss(path)) is not None}
        return dict(sorted(losses.items(), key=lambda item: (item[1], step_of(item[0]))))

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


def write_or_full(write: Write, draft: Path) -> Mapping[str, FileDigest] | None:
    """Write the files; returns None where the disk was full."""
    try:
        return write(draft)
    except OSError as error:
        if error.errno not in FULL:
            raise
        return None


def _held_out_loss(directory: Path) -> float | None:
    """Return the held-out loss of a checkpoint, from its manifest as it stands; None where it was not evaluated."""
    try:
        manifest = CheckpointManifest.model_validate_json((directory / MANIFEST).read_bytes())
    except (OSError, ValidationError):
        return None
    return manifest.notes.get(HELD_OUT_LOSS) if manifest.notes.get(EVALUATED_STEP) == step_of(directory) else None


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
