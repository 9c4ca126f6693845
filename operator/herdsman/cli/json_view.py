"""A run as JSON lines, for programs."""

import json
from datetime import UTC, datetime
from typing import Any, Self

from rich.console import Console

from herdsman.api.v1alpha1.status import Status
from herdsman.core.world import Key
from herdsman.local.history import headline


class JsonView:
    """One JSON object for each change."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        return None

    def changed(self, key: Key, status: Status) -> None:
        """Print the status."""
        self.emit(state(key, status))

    def said(self, sentence: str) -> None:
        """Print the sentence."""
        self.emit({"message": sentence})

    def looked(self) -> None:
        """Do nothing: time alone is no news."""

    def emit(self, value: dict[str, Any]) -> None:
        """Print one object with the present time."""
        stamped = {"time": datetime.now(UTC).isoformat(timespec="milliseconds"), **value}
        self._console.file.write(json.dumps(stamped, ensure_ascii=False) + "\n")
        self._console.file.flush()


def state(key: Key, status: Status) -> dict[str, Any]:
    """Return how a resource stands, for programs."""
    reason, message = headline(status)
    found: dict[str, Any] = {"kind": key.kind, "name": key.name, "phase": str(status.phase)}
    found |= {"reason": reason, "message": message}
    for name in ("progress", "checkpoint", "failure", "artifact"):
        if (value := getattr(status, name)) is not None:
            found[name] = value.to_json()
    if status.report:
        found["report"] = {item.name: item.value for item in status.report}
    if status.url:
        found["url"] = status.url
    return found
