"""Saves the state of a run: behind the training's back from a copy in memory, or while the training waits.

The copy is taken between two steps, of all ranks together; then rank 0 writes, hashes, flushes, names and verifies it
in a thread of its own. One is on its way at most: the next waits for it.
"""

import logging
import threading
from collections.abc import Mapping

import torch

from herdsman_trainer.checkpoints import CheckpointStore
from herdsman_trainer.distributed import Processes
from herdsman_trainer.free_space import size_text
from herdsman_trainer.heartbeat import HEART
from herdsman_trainer.host_memory import free_memory
from herdsman_trainer.training_state import HostCopy, StateSource, save_state, state_bytes

MEMORY_FACTOR = 1.2
"""Free memory asked for before a copy is made, as a multiple of its size."""
THREAD = "herdsman-checkpoint"

_log = logging.getLogger(__name__)


class CheckpointSaver:
    """Saves through a store. Every rank calls `save` and `finish`; the rest is for rank 0.

    `background` None decides by the free memory of rank 0's host, at the first save.
    """

    def __init__(
        self, store: CheckpointStore, source: StateSource, processes: Processes, background: bool | None = None
    ) -> None:
        self._store = store
        self._source = source
        self._processes = processes
        self._background = background
        self._size = state_bytes(source.shapes)
        self._copy = HostCopy(processes.device)
        self._pending = False
        self._writing: threading.Thread | None = None
        self._error: BaseException | None = None
        self._untold = False

    @property
    def failed(self) -> bool:
        """Whether what was being written has come to nothing; `finish` raises why, on every rank."""
        return self._error is not None

    def save(self, step: int, notes: Mapping[str, float], *, at_once: bool = False) -> None:
        """Save the state as it is now; `at_once` returns when it is on the volume. Raises as CheckpointStore.save."""
        self.finish()
        if at_once or not self._in_background():
            first = self._processes.is_first
            source = self._source
            self._store.save(step, lambda draft: save_state(draft, source, writes=first), self._size, notes)
            self._untold = True
            return
        self._copy.take(self._source, keeps=self._processes.is_first)
        self._pending = True
        if self._processes.is_first:
            work = (step, dict(notes), torch.get_num_threads())
            self._writing = threading.Thread(target=self._write, args=work, name=THREAD, daemon=True)
            self._writing.start()

    def finish(self) -> None:
        """Wait for what is being written; its error is raised on every rank."""
        if self._pending:
            self._pending = False
            self._processes.on_first(self._join)

    def is_news(self) -> bool:
        """Whether a checkpoint has been completed since this was last asked; for rank 0."""
        if self._writing is not None and not self._writing.is_alive() and self._error is None:
            self._writing, self._untold = None, True
        news, self._untold = self._untold, False
        return news

    def close(self) -> None:
        """Wait for what is being written, whatever becomes of it; for the end of a run that is an error already."""
        if self._writing is not None:
            HEART.wait_for(self._writing, self._size)
        if self._error is not None:
            _log.error("The checkpoint that was being written is lost: %s", self._error)

    def _write(self, step: int, notes: Mapping[str, float], threads: int) -> None:
        with HEART.beside():
            try:
                self._store.folder.save(step, self._copy.write, self._size, notes, threads)
            except BaseException as error:  # noqa: BLE001 - it is raised where the training can hear it
                self._error = error

    def _join(self) -> None:
        if self._writing is not None:
            HEART.wait_for(self._writing, self._size)
        if self._error is not None:
            error, self._error, self._writing = self._error, None, None
            raise error

    def _in_background(self) -> bool:
        if self._background is None:
            self._background = self._processes.on_first(self._fits)
        return self._background

    def _fits(self) -> bool:
        free = free_memory()
        fits = free is None or free >= MEMORY_FACTOR * self._size
        size = size_text(self._size)
        if fits:
            _log.info("Checkpoints are written in the background, from a copy of %s in memory.", size)
        else:
            _log.info(
                "Checkpoints are written while the training waits: a copy takes %s, and %s of memory are free.",
                size,
                size_text(free or 0),
            )
        return fits
