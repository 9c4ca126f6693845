"""The keys that open the API: from the environment, or from a file that is read again when it changes."""

import hmac
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

from herdsman.api.job_config import API_KEY_FILE_VARIABLE, API_KEY_VARIABLE
from herdsman_trainer.errors import BadInput

log = logging.getLogger(__name__)

Stamp = tuple[int, int, int]
"""What another content of a file shows in: inode, time and size."""


class ApiKeys:
    """Keys, any of which opens the API; without keys and without a file it is open to everybody.

    A file that can no longer be read leaves the keys as they were. One that holds no key any more opens to nobody.
    """

    def __init__(self, fixed: Sequence[bytes] = (), file: Path | None = None) -> None:
        self._fixed = tuple(fixed)
        self._file = file
        self._stamp: Stamp | None = None
        self._read: tuple[bytes, ...] = ()
        if file is not None:
            self._read = _first_keys(file)

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
            found = _keys(self._file.read_bytes())
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


def keys_of(environment: Mapping[str, str]) -> ApiKeys:
    """Return the keys of HERDSMAN_API_KEY and of the file HERDSMAN_API_KEY_FILE, one a line; none leaves /v1 open.

    Raises BadInput where the file is named and holds no key: the server must not be open by mistake.
    """
    name = environment.get(API_KEY_FILE_VARIABLE)
    return ApiKeys(_keys(environment.get(API_KEY_VARIABLE, "").encode()), Path(name) if name else None)


def _first_keys(file: Path) -> tuple[bytes, ...]:
    try:
        found = _keys(file.read_bytes())
    except OSError as error:
        hint = "Mount the Secret there, or unset the variable."
        message = f"{API_KEY_FILE_VARIABLE} names a file that cannot be read: {error.strerror}."
        raise BadInput(message, file=str(file), hint=hint) from None
    if not found:
        raise BadInput("The file of API keys is empty.", file=str(file), hint="Write one key a line.")
    return found


def _keys(content: bytes) -> tuple[bytes, ...]:
    return tuple(line.strip() for line in content.splitlines() if line.strip())


def _stamp(file: Path) -> Stamp:
    found = file.stat()
    return found.st_ino, found.st_mtime_ns, found.st_size
