"""Brings one file into the store: goes on where it was cut, checks what came, and never completes what is wrong."""

import errno
import logging
from collections.abc import Callable

from herdsman_trainer.downloads.blob_store import BlobStore
from herdsman_trainer.downloads.partial import Partial
from herdsman_trainer.downloads.patience import Patience
from herdsman_trainer.downloads.remote_files import RemoteFile, Stream, Unavailable
from herdsman_trainer.errors import BadInput
from herdsman_trainer.free_space import disk_full

OnBytes = Callable[[int, int | None], None]
"""Hears how many bytes of the file are there, and how many there will be; may raise to stop."""
_LOCKED_SECONDS = 1.0
_PAGE = (b"<!doctype html", b"<html", b"<?xml")
_POINTER = b"version https://git-lfs"
_log = logging.getLogger(__name__)


def held_digest(file: RemoteFile, store: BlobStore, *, read: bool = False) -> str | None:
    """Return the digest of the file if the store holds it, or None; with `read` its bytes are checked again."""
    digest = file.sha256 or (store.recall(file.identity) if file.identity else None)
    return digest if isinstance(digest, str) and store.holds(digest, file.size, read=read) else None


def transfer(
    file: RemoteFile, store: BlobStore, patience: Patience, on_bytes: OnBytes, on_wait: Callable[[], None]
) -> str:
    """Download the file into the store unless it is there, and return its SHA-256.

    `on_wait` is called while another import downloads it. Raises BadInput (ChecksumMismatch) for what is not what it
    must be, Temporary where the server is away for long or the volume is full, Interrupted on request; in the last
    three cases what has come is kept.
    """

    def wait() -> None:
        on_wait()
        patience.pause(_LOCKED_SECONDS)

    with store.writing(file.key, wait) as partial:
        if (digest := held_digest(file, store)) is not None:  # another import was faster
            partial.discard()
            return digest
        try:
            _fetch(file, partial, patience, on_bytes)
            digest = store.add(partial)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise disk_full(store.root, f"the download of {file.name}") from error
    if file.identity:
        store.remember(file.identity, digest)
    return digest


def _fetch(file: RemoteFile, partial: Partial, patience: Patience, on_bytes: OnBytes) -> None:
    """Receive the whole file and check it; bytes that may be of two versions get a second chance in one piece."""
    if partial.written:
        _log.info("%s: going on after %d bytes of an earlier attempt.", file.name, partial.written)
        partial.load(lambda count: on_bytes(count, file.size))
        if partial.sha256 == file.sha256:
            return
    anew = False
    while True:
        _receive(file, partial, patience, on_bytes)
        fault = _fault(file, partial)
        if fault is None:
            return
        if anew or not partial.mixed:
            partial.discard()
            raise fault
        _log.warning("%s: %s It came in pieces that do not fit together: starting anew.", file.name, fault.message)
        partial.restart()
        anew = True


def _receive(file: RemoteFile, partial: Partial, patience: Patience, on_bytes: OnBytes) -> None:
    if file.size is not None and partial.written > file.size:
        partial.restart()
    while file.size is None or partial.written < file.size or not partial.written:
        try:
            if _receive_once(file, partial, patience, on_bytes):
                return
        except Unavailable as error:
            partial.mixed = partial.written > 0
            patience.wait(error)


def _receive_once(file: RemoteFile, partial: Partial, patience: Patience, on_bytes: OnBytes) -> bool:
    """Receive what one answer brings; returns True at the end of the file, also where it is longer than it may be."""
    with file.open(partial.written, partial.etag) as stream:
        if stream.offset != partial.written:
            why = "the file has changed there" if partial.etag != stream.etag else "the server cannot resume"
            _log.warning("%s: starting anew after %d bytes, for %s.", file.name, partial.written, why)
            partial.restart()
        if stream.offset:
            partial.mixed = True
        partial.note_etag(stream.etag)
        total = file.size if file.size is not None else stream.size
        if file.size is not None and stream.size not in (None, file.size):
            fault = _other_size(file, partial, stream)
            partial.discard()
            raise fault
        on_bytes(partial.written, total)
        for chunk in stream.chunks:
            partial.append(chunk)
            if partial.written > partial.furthest:
                partial.furthest = partial.written
                patience.worked()
            on_bytes(partial.written, total)
            if total is not None and partial.written > total:
                return True
    if total is None or partial.written >= total or _is_page(partial):
        return True
    raise Unavailable(f"{file.location} ended after {partial.written} of {total} bytes.")


def _other_size(file: RemoteFile, partial: Partial, stream: Stream) -> BadInput:
    """Return what is wrong with an answer of another size; its beginning may tell what it is."""
    partial.restart()
    partial.append(next(iter(stream.chunks), b"")[:512])
    return _wrong(file, partial, f"has {stream.size} bytes there and {file.size} are expected")


def _fault(file: RemoteFile, partial: Partial) -> BadInput | None:
    if file.size is not None and partial.written != file.size:
        return _wrong(file, partial, f"has {partial.written} bytes and {file.size} are expected")
    if file.sha256 is not None and partial.sha256 != file.sha256:
        return _wrong(file, partial, f"has the SHA-256 {partial.sha256} and {file.sha256} is expected")
    if file.git_oid is not None and (found := partial.git_oid()) != file.git_oid:
        return _wrong(file, partial, f"has the git digest {found} and {file.git_oid} is expected")
    return None


def _wrong(file: RemoteFile, partial: Partial, what: str) -> BadInput:
    hint = "It was changed there, or on its way: correct the digest if the new file is meant, or name another source."
    if _is_page(partial):
        hint = "The server sent a web page instead of the file: open the URL in a browser, and correct it or the token."
    elif partial.head(64).startswith(_POINTER):
        hint = "This is a pointer of Git LFS and not the file itself: name the URL that downloads the file."
    return BadInput(f"{file.name} {what}.", reason="ChecksumMismatch", file=file.location, hint=hint)


def _is_page(partial: Partial) -> bool:
    return partial.head(64).lstrip().lower().startswith(_PAGE)
