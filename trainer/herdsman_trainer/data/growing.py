"""Files that grow piece by piece, with a journal: a killed run goes on behind the last piece that is on record."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Protocol

from herdsman_trainer.data.pieces import Place
from herdsman_trainer.heartbeat import HEART

JOURNAL = ".journal.json"
_BUFFER_BYTES = 2**20


class Writable(Protocol):
    """An array, contiguous."""

    @property
    def data(self) -> memoryview:
        """Its bytes."""


@dataclass(frozen=True, slots=True)
class Cursor:
    """How far a list of files is read."""

    file: int = 0
    """Its place in the list."""
    place: Place = field(default_factory=Place)


class GrowingFiles:
    """The files of a directory; opened again, they are as long as the journal says.

    `header` says what they grow out of: a journal with another header is not gone on with.
    """

    def __init__(self, directory: Path, names: Sequence[str], header: Mapping[str, Any]) -> None:
        self._directory = directory
        self._header = dict(header)
        journal = self._read(names)
        self.cursor = Cursor()
        self.state: dict[str, Any] | None = None
        """What was saved with the journal; None for a new beginning."""
        if journal is not None:
            number, position, line = journal["cursor"]
            self.cursor = Cursor(number, Place(position, line))
            self.state = journal["state"]
        self._files: dict[str, BinaryIO] = {}
        for name in names:
            file = (directory / name).open("r+b" if journal is not None else "w+b", buffering=_BUFFER_BYTES)
            file.truncate(journal["sizes"][name] if journal is not None else 0)
            file.seek(0, os.SEEK_END)
            self._files[name] = file

    def __enter__(self) -> "GrowingFiles":
        return self

    def __exit__(self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None) -> None:
        for file in self._files.values():
            file.close()

    def append(self, name: str, content: Writable) -> None:
        """Write behind what a file has."""
        self._files[name].write(content.data)

    def save(self, cursor: Cursor, state: Mapping[str, Any]) -> None:
        """Make durable what was written, and say so in the journal."""
        self.cursor = cursor
        for file in self._files.values():
            file.flush()
            with HEART.handling(file.tell()):
                os.fsync(file.fileno())
        sizes = {name: file.tell() for name, file in self._files.items()}
        place = (cursor.file, cursor.place.position, cursor.place.line)
        journal = {"header": self._header, "sizes": sizes, "cursor": place, "state": dict(state)}
        draft = self._directory / f"{JOURNAL}.tmp"
        with draft.open("w", encoding="ascii") as stream:
            json.dump(journal, stream)
            stream.flush()
            os.fsync(stream.fileno())
        draft.replace(self._directory / JOURNAL)

    def forget(self) -> None:
        """Remove the journal: nobody goes on with these files."""
        (self._directory / JOURNAL).unlink(missing_ok=True)

    def _read(self, names: Sequence[str]) -> dict[str, Any] | None:
        """Return the journal, or None where there is none for these files, or they are shorter than it says."""
        try:
            journal: dict[str, Any] = json.loads((self._directory / JOURNAL).read_bytes())
            sizes = journal["sizes"]
            sound = (
                journal["header"] == self._header
                and sizes.keys() == set(names)
                and all((self._directory / name).stat().st_size >= size for name, size in sizes.items())
            )
        except (OSError, ValueError, KeyError, AttributeError):
            return None
        return journal if sound else None
