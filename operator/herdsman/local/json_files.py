"""Files that survive a crash: written beside, synced, renamed; and left alone when nothing changed."""

import json
import os
from pathlib import Path
from typing import Any

Stamp = tuple[int, int]
"""Changes whenever a file is written or replaced."""


def stamp_of(path: Path) -> Stamp:
    """Return the stamp of a file; zeros where there is none."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return (0, 0)
    return (found.st_mtime_ns, found.st_ino)


class DamagedFile(Exception):
    """A file of the home cannot be read as what it is."""

    def __init__(self, path: Path, what: str) -> None:
        super().__init__(f"{path} is damaged ({what}); move it away and run again")


def write_durably(path: Path, data: bytes) -> None:
    """Replace the file as a whole: a reader sees the old bytes or the new ones, also after a power cut."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with beside.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def write_json(path: Path, value: Any) -> bool:
    """Write the value as JSON unless the file says the same already; return whether it was written."""
    return write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_text(path: Path, text: str) -> bool:
    """Write the text unless the file says the same already; return whether it was written."""
    data = text.encode()
    if path.is_file() and path.read_bytes() == data:
        return False
    write_durably(path, data)
    return True


def read_json(path: Path) -> Any:
    """Return the JSON value in the file, or None where there is no file; raises DamagedFile."""
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise DamagedFile(path, str(error)) from error


def read_object(path: Path) -> dict[str, Any] | None:
    """Return the JSON object in the file, or None where there is no file; raises DamagedFile."""
    value = read_json(path)
    if value is not None and not isinstance(value, dict):
        raise DamagedFile(path, "not a JSON object")
    return value
