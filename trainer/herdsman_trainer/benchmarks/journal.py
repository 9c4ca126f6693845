"""The journal of an evaluation: results as they come, one line of JSON each, for an attempt after a kill.

The first line says what the results follow from; a journal of anything else is not gone on with. A line that was cut by
a kill is left out, and its work is done again.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

JOURNAL_FILE = "evaluation.journal"


class Journal:
    """Results by their key."""

    def __init__(self, path: Path, fingerprint: str) -> None:
        """Read what earlier attempts at the same evaluation have left; begin anew where it is of another one."""
        self._path = path
        self.results: dict[str, Any] = {}
        known = self._read(fingerprint)
        if known is None:
            self._write(path.with_name(f"{path.name}.new"), [{"fingerprint": fingerprint}])
        else:
            self.results = known
            whole = [{"fingerprint": fingerprint}, *({"key": key, "value": value} for key, value in known.items())]
            self._write(path.with_name(f"{path.name}.new"), whole)

    def add(self, results: Mapping[str, Any]) -> None:
        """Keep results; they are on the disk when this returns."""
        with self._path.open("ab") as stream:
            for key, value in results.items():
                stream.write(_line({"key": key, "value": value}))
            stream.flush()
            os.fsync(stream.fileno())
        self.results |= results

    def remove(self) -> None:
        """Remove the file: the report is published."""
        self._path.unlink(missing_ok=True)

    def _read(self, fingerprint: str) -> dict[str, Any] | None:
        try:
            lines = self._path.read_bytes().split(b"\n")
        except FileNotFoundError:
            return None
        found: dict[str, Any] = {}
        for number, line in enumerate(lines[:-1]):
            try:
                entry = json.loads(line)
                if number == 0 and entry["fingerprint"] != fingerprint:
                    return None
                if number:
                    found[entry["key"]] = entry["value"]
            except (ValueError, KeyError, TypeError):
                return found if number else None
        return found if len(lines) > 1 else None

    def _write(self, draft: Path, entries: list[dict[str, Any]]) -> None:
        with draft.open("wb") as stream:
            for entry in entries:
                stream.write(_line(entry))
            stream.flush()
            os.fsync(stream.fileno())
        draft.replace(self._path)


def _line(entry: Mapping[str, Any]) -> bytes:
    return json.dumps(entry, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"
