"""Content-addressed cache directories: written whole or not at all, checked when opened, rebuilt when damaged."""

import errno
import fcntl
import hashlib
import json
import logging
import os
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from herdsman_trainer.durable import fsync
from herdsman_trainer.errors import BadInput, Temporary
from herdsman_trainer.heartbeat import HEART

_META = "meta.json"
_LOCK = ".lock"
_GROWING = ".growing"
_CHUNK_BYTES = 8 * 2**20
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class CacheEntry:
    """A finished cache directory `root`/`key` and the facts its builder returned."""

    directory: Path
    key: str
    facts: dict[str, Any]


def content_key(parts: Mapping[str, Any]) -> str:
    """Return the SHA-256 (hex) of the canonical JSON of `parts`: everything that the content follows from."""
    return hashlib.sha256(_canonical(parts)).hexdigest()


def file_sha256(path: Path) -> str:
    """Return the SHA-256 (hex) of a file's bytes."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
            HEART.beat()
    return digest.hexdigest()


def build_or_open_entry(
    root: Path, key: str, build: Callable[[Path], dict[str, Any]], *, resumable: bool = False
) -> CacheEntry:
    """Return the entry `key`, after checking every byte of it, or after building it.

    `build` writes files into the directory it is given and returns the facts to keep beside them, as JSON values. The
    directory is empty, or, where the work is `resumable`, holds what a build of the same key has left that was stopped
    or killed. Files whose names begin with a dot are scratch and not part of the entry. The files are flushed to disk
    before the directory gets its name, so a half-written entry is never seen; of two writers the second finds the entry
    of the first. Raises Temporary (DiskFull) when there is no space.
    """
    root.mkdir(parents=True, exist_ok=True)
    entry = open_entry(root, key, check_content=True)
    if entry is not None:
        return entry
    _remove_abandoned(root, key)
    with _disk_full(root), _directory(root, key, resumable=resumable) as private:
        facts = build(private)
        _write_meta(private, key, facts)
        _publish(private, root / key)
    entry = open_entry(root, key, check_content=False)
    if entry is None:
        raise Temporary(f"The cache entry {key[:16]} vanished while it was opened.", file=str(root))
    return entry


def open_entry(root: Path, key: str, *, check_content: bool) -> CacheEntry | None:
    """Return the entry `key`, or None where there is none or where its sizes or (if asked for) digests do not agree."""
    directory = root / key
    if not directory.is_dir():
        return None
    try:
        return CacheEntry(directory, key, _read_facts(directory, key, check_content))
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        _log.warning("The cache %s is damaged and is not used: %s", directory, error)
        return None


def _read_facts(directory: Path, key: str, check_content: bool) -> dict[str, Any]:
    meta = json.loads((directory / _META).read_bytes())
    digest = meta.pop("digest")
    if digest != hashlib.sha256(_canonical(meta)).hexdigest() or meta["key"] != key:
        raise ValueError(f"{_META} was changed")
    for name, expected in meta["files"].items():
        path = directory / name
        if path.stat().st_size != expected["bytes"] or (check_content and file_sha256(path) != expected["sha256"]):
            raise ValueError(f"{name} was changed")
    facts: dict[str, Any] = meta["facts"]
    return facts


def _canonical(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


@contextmanager
def _directory(root: Path, key: str, *, resumable: bool) -> Iterator[Path]:
    """Make a directory for one writer, or take up what another one has left of the same work."""
    left = _taken_up(root, key) if resumable else None
    if left is None:  # whoever works on it lives, or nobody can tell
        with _private_directory(root, key) as private:
            yield private
        return
    growing, lock = left
    with lock:
        try:
            yield growing
        except BadInput:
            shutil.rmtree(growing, ignore_errors=True)
            raise


def _taken_up(root: Path, key: str) -> tuple[Path, BinaryIO] | None:
    growing = root / f".{key[:32]}{_GROWING}"
    growing.mkdir(exist_ok=True)
    lock = (growing / _LOCK).open("wb")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        lock.close()
        return None
    return growing, lock


@contextmanager
def _private_directory(root: Path, key: str) -> Iterator[Path]:
    """Make a directory for one writer; its lock tells the others whether the writer lives, even after a kill."""
    private, lock = _locked_directory(root, key)
    try:
        with lock:
            yield private
    finally:
        shutil.rmtree(private, ignore_errors=True)


def _locked_directory(root: Path, key: str) -> tuple[Path, BinaryIO]:
    while True:
        private = root / f".{key[:16]}-{secrets.token_hex(6)}.tmp"
        private.mkdir()
        lock = (private / _LOCK).open("wb")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:  # another writer takes it for abandoned
            lock.close()
            continue
        except OSError:  # a file system without locks; there nobody removes anything
            return private, lock
        if (private / _LOCK).exists():
            return private, lock
        lock.close()


def _remove_abandoned(root: Path, key: str) -> None:
    """Remove what killed writers have left, but for work on this key that can be gone on with."""
    growing = {path for path in root.glob(f".*{_GROWING}") if path.name != f".{key[:32]}{_GROWING}"}
    for private in {*root.glob(".*.tmp"), *growing}:
        try:
            with (private / _LOCK).open("rb") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(private, ignore_errors=True)
        except OSError:  # its writer lives, or has just finished
            continue


def _write_meta(directory: Path, key: str, facts: dict[str, Any]) -> None:
    names = sorted(entry.name for entry in os.scandir(directory) if not entry.name.startswith("."))
    files = {
        name: {"bytes": (directory / name).stat().st_size, "sha256": file_sha256(directory / name)} for name in names
    }
    meta: dict[str, Any] = {"key": key, "files": files, "facts": facts}
    meta["digest"] = hashlib.sha256(_canonical(meta)).hexdigest()
    (directory / _META).write_text(json.dumps(meta, indent=1, sort_keys=True))
    for name in [*names, _META]:
        fsync(directory / name)


def _publish(private: Path, target: Path) -> None:
    """Give the finished directory its name; a sound entry of another writer stays, a damaged one goes."""
    for scratch in private.glob(".*"):
        scratch.unlink()
    fsync(private)
    if target.is_dir() and open_entry(target.parent, target.name, check_content=True) is None:
        damaged = target.with_name(f".{target.name[:16]}-{secrets.token_hex(6)}.damaged")
        target.rename(damaged)
        shutil.rmtree(damaged, ignore_errors=True)
    try:
        private.rename(target)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
    fsync(target.parent)


@contextmanager
def _disk_full(root: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise Temporary(
            "No space left for the cache.",
            reason="DiskFull",
            file=str(root),
            hint="Make the workspace volume larger, or delete what is not needed from it.",
        ) from error
