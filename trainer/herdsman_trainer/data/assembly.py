"""Assembling: datasets are cut into pieces, workers encode these, and what comes back is put together in order."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from herdsman_trainer.data.cpus import worker_count
from herdsman_trainer.data.datasets import Dataset
from herdsman_trainer.data.growing import Cursor, GrowingFiles
from herdsman_trainer.data.pieces import Piece, Place
from herdsman_trainer.data.workers import in_order
from herdsman_trainer.errors import Temporary
from herdsman_trainer.heartbeat import HEART

Progress = Callable[[int, int], None]
"""Called with (bytes of files done, bytes of all files) after every piece; it may raise to stop the building."""
OpenPieces = Callable[[Path, Place], Iterator[Piece]]
SAVE_SECONDS = 5.0
"""So much work is lost at most when a run is killed."""

R = TypeVar("R")
R_contra = TypeVar("R_contra", contravariant=True)


class Assembly(Protocol[R_contra]):
    """What grows out of the results; made from the state of an earlier one, it goes on where that was."""

    def take(self, dataset: int, result: R_contra) -> None:
        """Take the result of the next piece of a dataset."""

    def state(self) -> Mapping[str, Any]:
        """Return what is to be known to go on, as JSON values."""


class Reader(Generic[R]):
    """Reads datasets from a cursor on."""

    def __init__(
        self,
        datasets: Sequence[Dataset],
        open_pieces: OpenPieces,
        encode: Callable[[Piece], R],
        workers: int | None = None,
    ) -> None:
        """Read with so many worker processes; as many as this container has CPUs and memory for unless given."""
        self._files = [(number, path) for number, dataset in enumerate(datasets) for path in dataset.files]
        self._sizes = [size for dataset in datasets for size, _, _ in dataset.stamps]
        self._datasets = datasets
        self._open_pieces = open_pieces
        self._encode = encode
        self._workers = worker_count() if workers is None else workers

    @property
    def header(self) -> dict[str, Any]:
        """What a journal is told of the files: whoever goes on has to find them as they were."""
        return {"files": [[size, changed] for dataset in self._datasets for size, changed, _ in dataset.stamps]}

    def read_into(self, assembly: Assembly[R], files: GrowingFiles, progress: Progress | None = None) -> None:
        """Give all results to the assembly, in order; Temporary where a file changed meanwhile."""
        saved = time.monotonic()
        total = sum(self._sizes)
        cursor = files.cursor
        for (number, place, read), result in in_order(self._pieces(cursor), self._encode, self._workers):
            assembly.take(self._files[number][0], result)
            HEART.beat()
            cursor = Cursor(number, place)
            if time.monotonic() - saved >= SAVE_SECONDS:
                files.save(cursor, assembly.state())
                saved = time.monotonic()
            if progress is not None:
                try:
                    progress(sum(self._sizes[:number]) + min(read, self._sizes[number]), total)
                except BaseException:
                    files.save(cursor, assembly.state())
                    raise
        files.save(Cursor(len(self._files)), assembly.state())
        for dataset in self._datasets:
            if dataset.changed():
                files.forget()
                raise Temporary(
                    f"A file of {dataset.field} changed while it was read.",
                    file=str(dataset.source),
                    hint="Write datasets once: what is new belongs into a new directory.",
                )

    def _pieces(self, cursor: Cursor) -> Iterator[tuple[tuple[int, Place, int], Piece]]:
        for number in range(cursor.file, len(self._files)):
            start = cursor.place if number == cursor.file else Place()
            for piece in self._open_pieces(self._files[number][1], start):
                yield (number, piece.end, piece.read), piece
