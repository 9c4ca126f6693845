"""`herdsman get`: lists resources and how they stand."""

import json
import sys
from datetime import UTC, datetime

import yaml
from rich.console import Console
from rich.text import Text

from herdsman.api.v1alpha1.status import Phase
from herdsman.cli.columns import print_columns
from herdsman.cli.figures import age, duration, loss
from herdsman.cli.names import parse_kind, title
from herdsman.cli.observed import Observed, observe_all, observe_one, open_home
from herdsman.cli.rows import MARKS, sentence
from herdsman.core.world import Key
from herdsman.local.follow import as_asked
from herdsman.local.lock import holder


def get_command(kind: str | None, name: str | None, home_option: str | None, output: str) -> None:
    """Print one resource, those of one kind, or all."""
    info = parse_kind(kind) if kind is not None else None
    cluster = open_home(home_option)
    if info is not None and name is not None:
        found = [observe_one(cluster, Key(info.kind, name))]
    else:
        keys = [key for key in cluster.store.all() if info is None or key.kind == info.kind]
        found = observe_all(cluster, keys)
    if output in ("json", "yaml"):
        _dump(found, output, single=name is not None)
        return
    console = Console(highlight=False)
    if not found:
        sys.stderr.write(f"no {info.kind if info else 'resources'} in {cluster.home.root}\n")
        return
    wide = output == "wide"
    print_columns(console, (*_HEADINGS, *(_WIDE if wide else ())), [_cells(each, wide=wide) for each in found])
    if not all(as_asked(each.status) or each.status.phase == Phase.FAILED for each in found):
        if (pid := holder(cluster.home.lock_file)) is None:
            console.print(Text("No herdsman run is at work here; `herdsman run` goes on.", "dim"))
        elif wide:
            console.print(Text(f"herdsman run (process {pid}) is at work here.", "dim"))


def _dump(found: list[Observed], output: str, *, single: bool) -> None:
    objects = [each.object for each in found]
    value = objects[0] if single else {"apiVersion": "v1", "kind": "List", "items": objects}
    if output == "json":
        sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=False) + "\n")
    else:
        sys.stdout.write(yaml.safe_dump(value, sort_keys=False, allow_unicode=True))


_HEADINGS = ("RESOURCE", "PHASE", ">PROGRESS", ">STEP", ">LOSS", ">ETA", ">AGE")
_WIDE = ("QUEUE", ">RESTARTS", "MESSAGE")


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
        Text(f"{progress.percent}%" if progress is not None and progress.total_steps else ""),
        Text(steps),
        Text(loss(progress)),
        Text(duration(seconds) if seconds is not None else ""),
        Text(age(created, datetime.now(UTC))),
    ]
    if wide:
        queue = (spec.get("compute") or {}).get("queueName", "")
        cells += [Text(queue), Text(str(status.restarts)), Text(sentence(status))]
    return cells
