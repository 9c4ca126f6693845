"""What earlier imports on a claim made, so that the same import copies nothing: it links the files.

A record lies in `.herdsman/imports/<key>` of the claim: hard links to the files of a published artifact and a
`record.json` about them. The key follows from the digests of the source's files, the options and the converter.
"""

import hashlib
import json
import logging
import shutil
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

from herdsman.api.job_config import FileDigest

CONVERTER = 1
"""Raise it where the same source comes to be written differently."""
RECORD_FILE = "record.json"
FILES = "files"
_DRAFT = ".draft-"
_ABANDONED_SECONDS = 3600.0
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Entry:
    """A file of a record; one whose time of change is another was edited, and is not used."""

    bytes: int
    sha256: str
    mtime_ns: int


def import_key(sources: Mapping[str, FileDigest], **options: Any) -> str:
    """Return the key of an import: SHA-256 over the digests of the source's files by name, options and converter."""
    files = {name: [file.bytes, file.sha256] for name, file in sources.items()}
    text = json.dumps({"converter": CONVERTER, "files": files, "options": options}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


class ImportRecords:
    """The records of one claim, by its root."""

    def __init__(self, claim_root: Path) -> None:
        self.directory = claim_root / ".herdsman" / "imports"

    def may_know(self, sizes: Mapping[str, int]) -> bool:
        """Whether a source with files of these names and sizes was imported before, so that reading it may pay."""
        return any(read["sources"] == sizes for path in self._records() if (read := _read(path)))

    def link(self, key: str, target: Path) -> dict[str, FileDigest] | None:
        """Link the files of a record into a directory, in place of what is there; None where there is no whole record.

        What was linked before a file failed is taken back.
        """
        record = self.directory / key
        read = _read(record)
        if read is None:
            return None
        entries = {name: Entry(**entry) for name, entry in read["files"].items()}
        linked: list[Path] = []
        try:
            for name, entry in entries.items():
                status = (record / FILES / name).stat()
                if (status.st_size, status.st_mtime_ns) != (entry.bytes, entry.mtime_ns):
                    raise OSError(f"{name} was changed after it was published")
            for name in entries:
                (target / name).unlink(missing_ok=True)
                (target / name).hardlink_to(record / FILES / name)
                linked.append(target / name)
        except OSError as error:
            _log.warning("The record of an earlier import in %s is not used: %s", record, error)
            for path in linked:
                path.unlink()
            return None
        return {name: FileDigest(bytes=entry.bytes, sha256=entry.sha256) for name, entry in entries.items()}

    def keep(self, key: str, sizes: Mapping[str, int], artifact: Path, files: Mapping[str, FileDigest]) -> None:
        """Record a published artifact, whose files become read-only; forget records that no artifact uses any more.

        Where the file system has no hard links, or lets nobody write there, nothing is recorded.
        """
        draft = self.directory / f"{_DRAFT}{uuid4().hex}"
        try:
            self._forget_unused(key)
            if (self.directory / key).exists():
                return
            entries: dict[str, Entry] = {}
            for name, file in files.items():
                linked = draft / FILES / name
                linked.parent.mkdir(parents=True, exist_ok=True)
                linked.hardlink_to(artifact / name)
                linked.chmod(0o444)
                entries[name] = Entry(file.bytes, file.sha256, linked.stat().st_mtime_ns)
            content = {"sources": dict(sizes), "files": {name: asdict(entry) for name, entry in entries.items()}}
            (draft / RECORD_FILE).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
            draft.rename(self.directory / key)
        except OSError as error:
            _log.info("The import is not recorded for another one: %s", error)
            shutil.rmtree(draft, ignore_errors=True)

    def _forget_unused(self, key: str) -> None:
        """Remove records that alone hold their files, and drafts that were given up."""
        for path in self._records():
            held = [file.stat().st_nlink for file in (path / FILES).rglob("*") if file.is_file()]
            if path.name != key and max(held, default=1) == 1:
                shutil.rmtree(path, ignore_errors=True)
        for draft in self.directory.glob(f"{_DRAFT}*"):
            if time.time() - draft.stat().st_mtime > _ABANDONED_SECONDS:
                shutil.rmtree(draft, ignore_errors=True)

    def _records(self) -> list[Path]:
        return [path for path in self.directory.glob("*") if not path.name.startswith(".")]


def _read(record: Path) -> dict[str, Any] | None:
    """Return record.json, None where it is not there or not readable: it only saves work."""
    try:
        content: dict[str, Any] = json.loads((record / RECORD_FILE).read_bytes())
        return content if {"sources", "files"} <= content.keys() else None
    except (OSError, ValueError, AttributeError):
        return None
