"""What was typed in conversations of before, for the arrow keys of the next."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_LINES = 1000


def history_path() -> Path:
    """Return the file, where the XDG specification keeps such things."""
    state = os.environ.get("XDG_STATE_HOME") or "~/.local/state"
    return Path(state).expanduser() / "herdsman" / "chat_history"


@contextmanager
def kept_history() -> Iterator[None]:
    """Let the arrow keys go through what was typed, also before; without readline nothing is kept."""
    try:
        import readline
    except ImportError:
        yield
        return
    path = history_path()
    readline.set_history_length(_LINES)
    with suppress(OSError):
        readline.read_history_file(path)
    try:
        yield
    finally:
        with suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            # Only its owner reads it, from the beginning on.
            os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o600))
            readline.write_history_file(path)
