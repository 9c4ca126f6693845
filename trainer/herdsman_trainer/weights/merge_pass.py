"""The one pass of a merge: every tensor is computed once, block by block, and every form of the result takes it in.

One thread computes; each sink and the digests of the tensors have a lane of their own; one more waits for the disk.
What is known to lie there stands in the journal, and an attempt that comes after a kill goes on from it.
"""

import logging
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from contextlib import ExitStack
from dataclasses import dataclass
from math import lcm, prod
from pathlib import Path

import torch

from herdsman.api.job_config import FileDigest
from herdsman_trainer.errors import Interrupted
from herdsman_trainer.weights.digests import TensorHash
from herdsman_trainer.weights.draft_files import ChangedDraftError, DraftFiles, Marks
from herdsman_trainer.weights.lanes import Lane
from herdsman_trainer.weights.merge import Merge
from herdsman_trainer.weights.merge_journal import Journal, Progress, TensorDone
from herdsman_trainer.weights.reading_ahead import ReadingAhead
from herdsman_trainer.weights.sinks import Sink
from herdsman_trainer.weights.tensor_spec import TensorSpec, tensor_bytes

log = logging.getLogger(__name__)

STEP_BYTES = 256 << 20
"""What is written between two lines of the journal, at least, and lost by a kill, at most twice."""
DEPTH = 3
"""Pieces of work that wait before a lane: blocks that are in memory at once."""

Announce = Callable[[str, float], None]
"""Hears what is done, and the share of it that is done; it may raise to stop the work."""
OpenFiles = Callable[[str], DraftFiles]
"""Gives the files of a sink by its label, as earlier attempts left them."""


@dataclass(frozen=True)
class Merged:
    """What a pass has written."""

    files: Mapping[str, FileDigest]
    """By path relative to the draft."""
    tensors: Mapping[str, TensorDone]
    taken_up: int
    """Tensors that an earlier attempt had finished."""


def take_up(root: Path, journal: Journal, announce: Announce) -> tuple[Progress, OpenFiles]:
    """Return how far earlier attempts have come, and the files as they left them, each of which was read and compared.

    Where there is nothing, or it is not what the journal says, the pass begins at its beginning. Files of the draft
    that nothing is known of are removed.
    """
    progress = journal.read() or Progress()
    total = max(1, sum(mark.bytes for marks in progress.marks.values() for mark in marks.values()))
    read = 0

    def on_bytes(count: int) -> None:
        nonlocal read
        read += count
        announce("checking what an earlier attempt has written", read / total)

    taken: dict[str, DraftFiles] = {}
    try:
        for label, marks in progress.marks.items():
            taken[label] = DraftFiles(root, marks, on_bytes)
    except ChangedDraftError as error:
        log.warning("The merge begins anew: %s.", error)
        for files in taken.values():
            files.close()
        progress, taken = Progress(), {}
    known = {root / name for files in taken.values() for name in files.marks()}
    for path in sorted(root.rglob("*"), reverse=True):  # what lies in a directory before the directory
        if path.is_dir() and not any(path.iterdir()):
            path.rmdir()
        elif path.is_file() and path not in known:
            path.unlink()
    journal.begin(progress)
    return progress, lambda label: taken.get(label) or DraftFiles(root)


class MergePass:
    """Writes all tensors of a merge, in the order of its plan, into sinks. Close it after use, whatever happened."""

    def __init__(
        self, merge: Merge, sinks: Mapping[str, Sink], journal: Journal, progress: Progress, announce: Announce
    ) -> None:
        self._merge, self._sinks, self._journal, self._announce = merge, sinks, journal, announce
        self._order = merge.plan.specs
        self._done = dict(progress.done)
        self._new: dict[str, Future[TensorDone]] = {}
        self._stack = ExitStack()
        self._stack.callback(torch.set_num_threads, torch.get_num_threads())
        torch.set_num_threads(1)
        for sink in sinks.values():
            self._stack.callback(sink.files.close)  # after the lanes have ended: what is registered last is done first
        self._lanes = {label: self._lane(label) for label in sinks}
        places = {spec.name: self._merge.place(spec.name) for spec in self._order[len(self._done) :]}
        self._places = {name: place for name, place in places.items() if place is not None}
        self._reading = ReadingAhead(self._places.values())
        self._stack.callback(self._reading.close)
        self._ahead = self._lane("ahead")
        self._digests, self._disk = self._lane("digests"), self._lane("disk", depth=1)

    def run(self) -> Merged:
        """Write every tensor that is not written yet, and what comes after the last.

        Raises what a sink raises, Temporary (DiskFull) among it, and what `announce` raises to stop the work; what was
        written stays for the next attempt in any case.
        """
        taken_up = len(self._done)
        total = max(1, sum(spec.nbytes for spec in self._order))
        written = sum(spec.nbytes for spec in self._order[:taken_up])
        unknown = 0
        self._ahead.submit(self._reading.read)
        try:
            for spec in self._order[taken_up:]:
                self._announce(f"writing {spec.name}", written / total)
                self._write(spec)
                written += spec.nbytes
                unknown += spec.nbytes
                if unknown >= STEP_BYTES:
                    self._step()
                    unknown = 0
            self._announce("waiting for the disk", 1.0)
        except Interrupted:
            self._step()
            self._disk.drain()
            raise
        for label, sink in self._sinks.items():
            self._lanes[label].submit(sink.finish)
        for lane in (*self._lanes.values(), self._digests, self._disk):
            lane.drain()
        files: dict[str, FileDigest] = {}
        for sink in self._sinks.values():
            files |= sink.files.marks()
            sink.files.sync()
        self._done |= {name: future.result() for name, future in self._new.items()}
        return Merged(files, self._done, taken_up)

    def close(self) -> None:
        """End the lanes and close the files."""
        self._stack.close()

    def _lane(self, name: str, depth: int = DEPTH) -> Lane:
        lane = Lane(name, depth)
        self._stack.callback(lane.close)
        return lane

    def _write(self, spec: TensorSpec) -> None:
        digest = TensorHash(spec)
        moved = spec.shape != self._merge.start_of(spec.name).shape
        place = self._places.get(spec.name)
        for label, sink in self._sinks.items():
            self._lanes[label].submit(sink.begin, spec)
        multiple = lcm(*(sink.row_multiple(spec) for sink in self._sinks.values()))
        for rows in self._merge.rows(spec.name, multiple):
            if place is not None and self._reading.wanted(place.nbytes * rows.values.numel() // prod(spec.shape)):
                self._ahead.submit(self._reading.read)
            rounded = rows.values.to(spec.dtype)  # once, for whoever stores this type
            if not moved and rows.before is not None:
                moved = not torch.equal(rounded, rows.before.to(spec.dtype))
            for label, sink in self._sinks.items():
                self._lanes[label].submit(sink.write, rows.values if sink.exact else rounded)
            self._digests.submit(_update, digest, rounded)
        for label, sink in self._sinks.items():
            self._lanes[label].submit(sink.end)
        self._new[spec.name] = self._digests.submit(_result, digest, moved)

    def _step(self) -> None:
        """Make durable what was written so far and say so in the journal, while the work goes on."""
        new, self._new = self._new, {}
        marks = {label: self._lanes[label].submit(sink.files.marks) for label, sink in self._sinks.items()}
        # The lane is one deep: this waits for the step before, so that never more than two are not on the disk yet.
        self._disk.submit(self._make_durable, new, marks)

    def _make_durable(
        self, new: Mapping[str, "Future[TensorDone]"], marks: Mapping[str, "Future[dict[str, FileDigest]]"]
    ) -> None:
        known: dict[str, Marks] = {label: future.result() for label, future in marks.items()}
        done = {name: future.result() for name, future in new.items()}
        for sink in self._sinks.values():
            sink.files.sync()
        self._journal.append(Progress(done, known))
        self._done |= done


def _update(digest: TensorHash, values: torch.Tensor) -> None:
    digest.update(tensor_bytes(values))


def _result(digest: TensorHash, moved: bool) -> TensorDone:
    return TensorDone(digest.hexdigest(), moved)
