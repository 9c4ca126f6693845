"""What a run has written down about itself in its workspace, line by line, for resumed attempts and for the report.

| file | a line is |
| --- | --- |
| metrics.jsonl | a step, an evaluation, or an event such as a return to a checkpoint |
| samples.jsonl | what the model wrote at a step |
| attempts.jsonl | an attempt that began: when, from which step, on what |

Lines of steps that a resumed run does again are dropped; those of attempts never are.
"""

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

METRICS_FILE, SAMPLES_FILE, ATTEMPTS_FILE = "metrics.jsonl", "samples.jsonl", "attempts.jsonl"

_log = logging.getLogger(__name__)


class RecordFile:
    """A file of JSON lines that have a member `step`; a line that is cut or is no JSON counts as not written."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def append(self, line: Mapping[str, Any]) -> None:
        """Append one line; values that are not finite become null, because JSON has no NaN."""
        clean = {key: _json_value(value) for key, value in line.items()}
        with self._path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(clean, ensure_ascii=False) + "\n")

    def lines(self) -> list[dict[str, Any]]:
        """Return the lines that can be read."""
        return [line for text in self._texts() if (line := _parsed(text)) is not None]

    def drop_after(self, step: int) -> None:
        """Remove the lines of steps that a resumed run will do again, and a last line that was cut by a crash."""
        if not self._path.is_file():
            return
        kept = [text for text in self._texts() if _step_of(text) <= step]
        draft = self._path.with_name(f".{self._path.name}.tmp")
        draft.write_text("".join(f"{text}\n" for text in kept), encoding="utf-8")
        draft.replace(self._path)

    def _texts(self) -> list[str]:
        if not self._path.is_file():
            return []
        return self._path.read_text(encoding="utf-8", errors="replace").split("\n")


class RunRecords:
    """The records of one workspace; rank 0 writes them."""

    def __init__(self, workspace: Path) -> None:
        self.metrics = RecordFile(workspace / METRICS_FILE)
        self.samples = RecordFile(workspace / SAMPLES_FILE)
        self.attempts = RecordFile(workspace / ATTEMPTS_FILE)

    def drop_after(self, step: int) -> None:
        """Forget the steps that will be done again."""
        self.metrics.drop_after(step)
        self.samples.drop_after(step)

    def losses(self) -> list[tuple[int, float]]:
        """Return the training loss of every step that had one."""
        lines = self.metrics.lines()
        return [(int(line["step"]), line["loss"]) for line in lines if isinstance(line.get("loss"), int | float)]


def _json_value(value: Any) -> Any:
    return None if isinstance(value, float) and (value != value or abs(value) == float("inf")) else value


def _parsed(text: str) -> dict[str, Any] | None:
    try:
        line = json.loads(text)
    except ValueError:
        return None
    step = line.get("step") if isinstance(line, dict) else None
    return line if isinstance(step, int | float) else None


def _step_of(text: str) -> float:
    line = _parsed(text)
    if line is None:
        return float("inf")
    after = 0.5 if "event" in line else 0.0  # it happened when the step was done, and happens again after a resume
    return float(line["step"]) + after
