"""The journal of a merge: what is known to lie on the disk, for an attempt that comes after a kill.

One line of JSON for each step, written and made durable after the bytes it speaks of. The first line says what the
result follows from; a journal of anything else is not gone on with.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from herdsman.api.job_config import FileDigest
from herdsman_trainer.weights.draft_files import Marks


@dataclass(frozen=True)
class TensorDone:
    """What is known of a tensor that is written."""

    sha256: str
    """digests.TensorHash, in the type of the plan."""
    moved: bool
    """Whether its values, or its shape, are no longer the base's."""


@dataclass(frozen=True)
class Progress:
    """How far a merge has come."""

    done: Mapping[str, TensorDone] = field(default_factory=dict)
    """By name, in the order they were written."""
    marks: Mapping[str, Marks] = field(default_factory=dict)
    """How far the files of each sink have come, by the sink's label."""


class Journal:
    """The journal of one result."""

    def __init__(self, path: Path, fingerprint: str) -> None:
        """Name the file, and what the result follows from: inputs, outputs, versions."""
        self.path = path
        self._fingerprint = fingerprint

    def read(self) -> Progress | None:
        """Return how far an earlier attempt at the same result has come, None where there is nothing to go on from.

        A line that was cut by a kill ends the journal; nobody has relied on it.
        """
        try:
            lines = self.path.read_bytes().split(b"\n")
        except FileNotFoundError:
            return None
        done: dict[str, TensorDone] = {}
        progress = None
        for number, line in enumerate(lines[:-1]):
            try:
                entry = json.loads(line)
                if number == 0:
                    if entry["fingerprint"] != self._fingerprint:
                        return None
                    continue
                done |= {name: TensorDone(sha256, moved) for name, (sha256, moved) in entry["tensors"].items()}
                progress = Progress(dict(done), _marks(entry["marks"]))
            except (ValueError, KeyError, TypeError, AttributeError):
                break
        return progress

    def begin(self, progress: Progress | None) -> None:
        """Start the file, with what earlier attempts have left in it."""
        temporary = self.path.with_name(f"{self.path.name}.new")
        temporary.unlink(missing_ok=True)
        self._append(temporary, {"fingerprint": self._fingerprint})
        if progress is not None:
            self._append(temporary, _entry(progress))
        temporary.replace(self.path)

    def append(self, progress: Progress) -> None:
        """Add what was done since the last line; the bytes it speaks of are on the disk already."""
        self._append(self.path, _entry(progress))

    def remove(self) -> None:
        """Remove it: the result is complete, or is begun anew."""
        self.path.unlink(missing_ok=True)

    @staticmethod
    def _append(path: Path, entry: Mapping[str, Any]) -> None:
        with path.open("ab") as stream:
            stream.write(json.dumps(entry, separators=(",", ":")).encode() + b"\n")
            stream.flush()
            os.fsync(stream.fileno())


def _entry(progress: Progress) -> dict[str, Any]:
    return {
        "tensors": {name: [tensor.sha256, tensor.moved] for name, tensor in progress.done.items()},
        "marks": {
            label: {name: [mark.bytes, mark.sha256] for name, mark in marks.items()}
            for label, marks in progress.marks.items()
        },
    }


def _marks(entry: Mapping[str, Mapping[str, tuple[int, str]]]) -> dict[str, Marks]:
    return {
        label: {name: FileDigest(bytes=size, sha256=sha256) for name, (size, sha256) in marks.items()}
        for label, marks in entry.items()
    }
