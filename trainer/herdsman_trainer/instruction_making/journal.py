"""Replies as they came, one a line, safe on the disk before anything is made of them: they were paid for.

They lie on the workspace's volume by what was asked (`.herdsman/replies/<key>/`), outside of the run's own directory,
so that another resource with the same requests finds them. Every attempt writes a file of its own and reads all, so
nobody ever writes into another's.
"""

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from herdsman_trainer.durable import fsync, make_directory
from herdsman_trainer.instruction_making.endpoint import Reply
from herdsman_trainer.instruction_making.spending import Usage

_DIRECTORY = Path(".herdsman") / "replies"


@dataclass(frozen=True)
class Entry:
    """What became of one request."""

    number: int
    reply: Reply | None
    """None where the endpoint failed at it again and again, while it answered others."""

    @property
    def usage(self) -> Usage:
        """What it used."""
        return self.reply.usage if self.reply is not None else Usage(requests=1)


class Journal:
    """The replies to the requests of one key; in memory is only where each of them lies."""

    def __init__(self, root: Path, key: str, owner: str, attempt: int) -> None:
        self._directory = root / _DIRECTORY / key
        self._owner = owner
        self._path = self._directory / f"{owner}-{attempt}.jsonl"
        self._places: dict[int, tuple[Path, int]] = {}

    def __enter__(self) -> Self:
        """Read what is there, and open this attempt's own file behind its last whole line."""
        make_directory(self._directory)
        for path in sorted(self._directory.glob("*.jsonl")):
            for number, offset in _index(path):
                self._places.setdefault(number, (path, offset))
        self._file = self._path.open("ab")
        self._file.truncate(_whole_bytes(self._path))
        self._file.seek(0, os.SEEK_END)
        fsync(self._directory)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def __len__(self) -> int:
        return len(self._places)

    def get(self, number: int) -> Entry | None:
        """Return what became of a request; None where it was not asked, or not answered."""
        place = self._places.get(number)
        if place is None:
            return None
        path, offset = place
        with path.open("rb") as stream:
            stream.seek(offset)
            return _entry(json.loads(stream.readline()))

    def numbers(self) -> list[int]:
        """Return the requests that are answered, in order."""
        return sorted(self._places)

    def add(self, entry: Entry) -> None:
        """Keep an entry; it is on the disk when this returns."""
        offset = self._file.tell()
        self._file.write(_line(entry))
        self._file.flush()
        os.fsync(self._file.fileno())
        self._places[entry.number] = self._path, offset

    def forget(self) -> None:
        """Remove what this resource wrote, and the directory if nothing else is in it."""
        for path in self._directory.glob(f"{self._owner}-*.jsonl"):
            path.unlink(missing_ok=True)
        if not any(self._directory.iterdir()):
            shutil.rmtree(self._directory, ignore_errors=True)


def _line(entry: Entry) -> bytes:
    members: dict[str, Any] = {"number": entry.number}
    if (reply := entry.reply) is not None:
        members |= {"text": reply.text, "cut": reply.cut, "filtered": reply.filtered}
        members |= {"prompt_tokens": reply.usage.prompt_tokens, "reply_tokens": reply.usage.reply_tokens}
    # ASCII, because a reply may hold half of a surrogate pair.
    return json.dumps(members).encode() + b"\n"


def _index(path: Path) -> Iterator[tuple[int, int]]:
    """Yield number and offset of the entries of a file; a line that was cut by a kill, or damaged, is none."""
    offset = 0
    with path.open("rb") as stream:
        for line in stream:
            with suppress(ValueError, LookupError, TypeError):
                yield _entry(json.loads(line)).number, offset
            offset += len(line)


def _whole_bytes(path: Path) -> int:
    """Return the bytes of the lines that have an end."""
    whole = 0
    with path.open("rb") as stream:
        for line in stream:
            whole += len(line) if line.endswith(b"\n") else 0
    return whole


def _entry(members: Mapping[str, Any]) -> Entry:
    number = int(members["number"])
    if "text" not in members:
        return Entry(number, None)
    usage = Usage(1, int(members["prompt_tokens"]), int(members["reply_tokens"]))
    return Entry(number, Reply(str(members["text"]), bool(members["cut"]), usage, bool(members["filtered"])))
