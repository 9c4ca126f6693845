"""The keys that open an API: some that are fixed, and those of a file, which is read again when it changes.

A server and the activator before it go by the same file, so what opens the one opens the other.
"""

import hmac
import logging
from collections.abc import Sequence
from pathlib import Path

log = logging.getLogger(__name__)

Stamp = tuple[int, int, int]
"""What another content of a file shows in: inode, time and size."""
REFUSED = "The API key is missing or wrong; send it as `Authorization: Bearer KEY`."
"""What whoever has no key is told."""


class ApiKeys:
    """Keys, any of which opens the API; without keys and without a file it is open to everybody.

    A file that cannot be read leaves the keys as they were. One that holds no key any more opens to nobody.
    """

    def __init__(self, fixed: Sequence[bytes] = (), file: Path | None = None, first: Sequence[bytes] = ()) -> None:
        self._fixed = tuple(fixed)
        self._file = file
        self._stamp: Stamp | None = None
        self._read = tuple(first)

    @property
    def needed(self) -> bool:
        """Whether a key is needed at all."""
        return bool(self._fixed) or self._file is not None

    def opens(self, authorization: bytes) -> bool:
        """Whether an Authorization header holds one of the keys, as `Bearer KEY`."""
        if not self.needed:
            return True
        scheme, _, given = authorization.strip().partition(b" ")
        self._follow()
        # Every key is compared, each in constant time, so that the time tells nothing.
        matches = [hmac.compare_digest(given.strip(), key) for key in (*self._fixed, *self._read)]
        return scheme.lower() == b"bearer" and any(matches)

    def _follow(self) -> None:
        if self._file is None:
            return
        try:
            stamp = _stamp(self._file)
            if stamp == self._stamp:
                return
            found = keys_in(self._file.read_bytes())
        except OSError as error:
            if self._stamp is not None:
                log.warning("The file of API keys cannot be read (%s); the keys stay as they were.", error.strerror)
            self._stamp = None
            return
        self._stamp, before, self._read = stamp, self._read, found
        if found == before:
            return
        if self._read:
            log.info("The file of API keys has changed: %d keys open the API.", len(self._read))
        else:
            log.error("The file of API keys is empty: nobody is let in.")


def keys_in(content: bytes) -> tuple[bytes, ...]:
    """Return the keys of a text, one a line."""
    return tuple(line.strip() for line in content.splitlines() if line.strip())


def _stamp(file: Path) -> Stamp:
    found = file.stat()
    return found.st_ino, found.st_mtime_ns, found.st_size
