"""Resources as a table, or as JSON and YAML."""

import json
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import yaml
from rich.console import Console
from rich.text import Text

from herdsman.api.durations import duration
from herdsman.api.v1alpha1.status import Phase, Status
from herdsman.cli.columns import print_columns
from herdsman.cli.figures import age, loss
from herdsman.cli.names import title
from herdsman.cli.observed import Observed
from herdsman.cli.rows import MARKS, sentence

_HEADINGS = ("RESOURCE", "PHASE", ">PROGRESS", ">STEP", ">LOSS", ">ETA", ">AGE")
_WIDE = ("QUEUE", ">RESTARTS", "MESSAGE")


def print_table(console: Console, found: Sequence[Observed], *, wide: bool, namespaces: bool = False) -> None:
    """Print one line for each resource, with its namespace first where they are of several."""
    headings = (*(("NAMESPACE",) if namespaces else ()), *_HEADINGS, *(_WIDE if wide else ()))
    rows = [[*([Text(each.namespace)] if namespaces else []), *_cells(each, wide=wide)] for each in found]
    print_columns(console, headings, rows)


def dump(objects: Sequence[dict[str, Any]], output: str, *, single: bool) -> None:
    """Print objects as JSON or YAML: one by itself, or all as a List that can be applied."""
    value = objects[0] if single else {"apiVersion": "v1", "kind": "List", "items": list(objects)}
    if output == "json":
        sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=False) + "\n")
    else:
        sys.stdout.write(yaml.safe_dump(value, sort_keys=False, allow_unicode=True))


def _cells(found: Observed, *, wide: bool) -> list[Text]:
    status, progress = found.status, found.status.progress
    metadata, spec = found.manifest["metadata"], found.manifest["spec"]
    running = status.phase == Phase.RUNNING
    seconds = progress.estimated_remaining_seconds if progress is not None and running else None
    created = datetime.fromisoformat(metadata["creationTimestamp"])
    steps = f"{progress.step}/{progress.total_steps}" if progress is not None and progress.total_steps else ""
    cells = [
        Text(title(found.key)),
        Text(status.phase, MARKS[status.phase][1]),
        Text(_done(status)),
        Text(steps),
        Text(loss(progress)),
        Text(duration(seconds) if seconds is not None else ""),
        Text(age(created, datetime.now(UTC))),
    ]
    if wide:
        queue = (spec.get("compute") or {}).get("queueName", "")
        cells += [Text(queue), Text(str(status.restarts)), Text(sentence(status))]
    return cells


def _done(status: Status) -> str:
    """Return how far a run is, or how many replicas of a server answer."""
    if status.replicas is not None:
        return f"{status.ready_replicas or 0}/{status.replicas}"
    progress = status.progress
    return f"{progress.percent}%" if progress is not None and progress.total_steps else ""
