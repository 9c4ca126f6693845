"""A file that lies elsewhere, and how it is opened; hubs, buckets and web servers each make their own."""

import re
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from urllib.parse import urlsplit, urlunsplit

from herdsman.api.v1alpha1.sources import RELATIVE_PATH
from herdsman_trainer.content_cache import content_key
from herdsman_trainer.errors import BadInput

_UNITS = (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3), ("bytes", 1.0))


class Unavailable(Exception):
    """The other side does not answer, or not now; it may work again. `retry_after` are the seconds it asked for."""

    def __init__(self, message: str, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


@dataclass(frozen=True, slots=True)
class Stream:
    """The answer to a request for a file from an offset on."""

    offset: int
    """Where its first byte stands in the file: 0 from a server that cannot resume, whatever was asked for."""
    size: int | None
    """The size of the whole file, as far as the server says it."""
    etag: str | None
    """What the server calls this version; None unless it promises that equal names are equal bytes."""
    chunks: Iterable[bytes]
    """The bytes; raises Unavailable where they end too early."""


Open = Callable[[int, str | None], AbstractContextManager[Stream]]
"""Opens a file at an offset, if it still has the ETag given; raises Unavailable, or BadInput where no retry helps."""


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """One file to download."""

    name: str
    """Where it goes in the directory of the import: a relative path."""
    location: str
    """Where it is, for messages: never with a query, which may hold a secret."""
    open: Open
    size: int | None = None
    sha256: str | None = None
    """What its bytes must be, as far as anybody says it."""
    git_oid: str | None = None
    """The SHA-1 of it as a git blob, which hubs give for small files."""
    identity: Mapping[str, str] = field(default_factory=dict)
    """What its bytes follow from where no SHA-256 is known; two files with the same identity are the same."""
    origin: Mapping[str, str] = field(default_factory=dict)
    """What is put on record about where it came from, by a name for the fact: {"ETag": ...}."""

    @property
    def key(self) -> str:
        """What its partial file is called: the same for everybody who downloads the same bytes."""
        return self.sha256 or content_key(self.identity)


def check_names(files: Iterable[RemoteFile], field: str) -> None:
    """Raise BadInput unless every file can have its name inside of one directory, and no other one has it."""
    taken: set[str] = set()
    for file in files:
        if re.fullmatch(RELATIVE_PATH, file.name) is None:
            leads = ".." in file.name.split("/") or file.name.startswith("/")
            what = "leads out of the directory" if leads else "is no name for a file of a model"
            hint = f"Choose other files in {field}, or have it renamed there."
            raise BadInput(f"{field}: the name {file.name!r} {what}.", file=file.location, hint=hint)
        directories = {file.name[:place] for place, letter in enumerate(file.name) if letter == "/"}
        if file.name in taken or f"{file.name}/" in taken or directories & taken:
            hint = f"Choose in {field} only one of them."
            raise BadInput(f"{field}: two files would be {file.name}.", file=file.location, hint=hint)
        taken |= {file.name, *(f"{directory}/" for directory in directories)}


def without_query(url: str) -> str:
    """Return an URL as it may be shown: without query and fragment, which may hold a signature, or a password."""
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    return urlunsplit((parts.scheme, host, parts.path, "", ""))


def amount(done: int, total: int | None) -> str:
    """Return how much of a file is there, as people read it: 3.1 of 13.5 GB."""
    unit, size = next((unit for unit in _UNITS if (done if total is None else total) >= unit[1]), _UNITS[-1])
    digits = 0 if size == 1 else 1
    of = "" if total is None else f" of {total / size:.{digits}f}"
    return f"{done / size:.{digits}f}{of} {unit}"
