"""Exit codes of the command line, and which of them an error means."""

import errno

REFUSED = 1
"""Something failed, or was refused for its content or for the state of the home."""
USAGE = 2
"""The command or a manifest is wrong."""
INTERRUPTED = 130
"""Stopped by Ctrl-C."""


class Refused(Exception):
    """The command ends with one sentence and an exit code."""

    def __init__(self, message: str, code: int = REFUSED) -> None:
        super().__init__(message)
        self.message = message
        self.code = code


def refusal_of(error: Exception) -> Refused | None:
    """Return the sentence and the exit code for an expected error, or None for a bug."""
    from herdsman.local.home import HomeRefused
    from herdsman.local.json_files import DamagedFile
    from herdsman.local.lock import HomeBusy
    from herdsman.local.volumes import VolumeRefused

    if isinstance(error, Refused):
        return error
    if isinstance(error, VolumeRefused):
        return Refused(str(error), USAGE)
    if isinstance(error, HomeBusy | HomeRefused | DamagedFile):
        return Refused(str(error))
    if isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename else ""
        what = "no space left on the disk; make room and run again" if error.errno == errno.ENOSPC else error.strerror
        return Refused(f"{where}{what}")
    return None
