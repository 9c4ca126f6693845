"""Checkpoints that survive any end of the process, for the ranks of a run together: rank 0 decides, all follow."""

from collections.abc import Mapping
from datetime import datetime
from pathlib import Path

import torch

from herdsman.api.job_config import FileDigest
from herdsman.api.v1alpha1.status import CheckpointStatus
from herdsman_trainer.checkpoint_folder import (
    FREE_SPACE_FACTOR,
    Checkpoint,
    CheckpointFolder,
    Identity,
    Write,
    write_or_full,
)
from herdsman_trainer.checkpoint_manifest import name_of
from herdsman_trainer.distributed import Processes

__all__ = ["FREE_SPACE_FACTOR", "Checkpoint", "CheckpointStore", "Identity", "Write"]


class CheckpointStore:
    """The checkpoints of one run. Every rank calls every method, unless it says otherwise."""

    def __init__(
        self, root: Path, processes: Processes, identity: Identity, keep_last: int, keep_best: int = 0
    ) -> None:
        self.root = root
        self.folder = CheckpointFolder(root, identity, keep_last, keep_best, world_size=processes.world_size)
        """What rank 0 works on; for it alone."""
        self._processes = processes
        self._known: Mapping[str, FileDigest] = {}

    def newest(self, before: int | None = None) -> Checkpoint | None:
        """Return the newest checkpoint that verifies, of a step `before` the given one; see CheckpointFolder."""
        return self._processes.on_first(lambda: self.folder.newest(before))

    def best(self) -> Checkpoint | None:
        """Return the evaluated checkpoint with the least held-out loss that verifies."""
        return self._processes.on_first(self.folder.best)

    def is_among_best(self, loss: float) -> bool:
        """Whether a checkpoint of this held-out loss would be kept as one of the best."""
        return self._processes.on_first(lambda: self.folder.is_among_best(loss))

    def discard_after(self, step: int) -> None:
        """Remove the checkpoints of later steps."""
        self._processes.on_first(lambda: self.folder.discard_after(step))

    def save(self, step: int, write: Write, need_bytes: int, notes: Mapping[str, float]) -> Path:
        """Write a checkpoint, every rank its part, while all wait for it; returns its directory.

        Raises as CheckpointFolder.save does.
        """
        folder, draft = self.folder, self.folder.draft(step)
        self._processes.on_first(lambda: folder.prepare(draft, need_bytes))
        written = self._write(draft, write)
        if not written:
            self._processes.on_first(lambda: folder.prepare_again(draft, need_bytes))
            written = self._write(draft, write)
        if not written:
            self._processes.on_first(lambda: self._give_up(draft))
        known = self._known
        self._processes.on_first(lambda: folder.commit(step, draft, known, notes, torch.get_num_threads()))
        return self.root / name_of(step)

    def status(self) -> CheckpointStatus | None:
        """Return what there is, for rank 0."""
        return self.folder.status()

    def saved_at(self) -> datetime | None:
        """Return when the newest checkpoint was made, for rank 0."""
        return self.folder.saved_at()

    def _write(self, draft: Path, write: Write) -> bool:
        """Let every rank write; returns whether no rank found the disk full."""
        known = write_or_full(write, draft)
        self._processes.on_first(lambda: None)  # the others wait for it as long as it writes, and are not stalled
        self._known = known or {}
        return not self._processes.any(known is None)

    def _give_up(self, draft: Path) -> None:
        raise self.folder.give_up(draft)
