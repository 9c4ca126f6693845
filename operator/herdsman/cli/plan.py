"""`herdsman plan`: what a run would make and need, and what is wrong, without touching anything."""

import asyncio
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from herdsman.api.v1alpha1.status import Estimate
from herdsman.cli.names import title
from herdsman.cli.refusals import REFUSED
from herdsman.cli.run import checked_manifests
from herdsman.local.home import Home
from herdsman.local.machine import this_machine
from herdsman.local.preview import Preview, PreviewCluster, preview
from herdsman.local.volumes import parse_volumes


def plan_command(paths: Sequence[Path], volumes: Sequence[str], home_option: str | None, output: str) -> int:
    """Print the plan and return the exit code: 1 where something would not run."""
    manifests = checked_manifests(paths)
    home = Home.at(home_option)
    home.check_format()
    cluster = PreviewCluster(home, this_machine(), parse_volumes(volumes), list(manifests.claims))
    applications = cluster.store.compare(manifests.resources.values(), cluster.now())
    previews = asyncio.run(preview(cluster, applications))
    if output == "json":
        sys.stdout.write(json.dumps([_object(each) for each in previews], indent=2, ensure_ascii=False) + "\n")
    elif output == "yaml":
        sys.stdout.write(yaml.safe_dump_all([_object(each) for each in previews], sort_keys=False, allow_unicode=True))
    else:
        _print(Console(highlight=False), previews)
    return REFUSED if any(each.problems for each in previews) else 0


def _print(console: Console, previews: Sequence[Preview]) -> None:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for heading in ("", "RESOURCE", "AFTER", "MAKES", "NEEDS"):
        table.add_column(heading, overflow="fold")
    for each in previews:
        sign, style = ("✘", "bold red") if each.problems else ("✔", "green") if each.done else ("+", "cyan")
        after = "\n".join(title(key) for key in each.after)
        table.add_row(Text(f" {sign}", style), title(each.key), after, _makes(each), _needs(each.plan.estimate))
    console.print(table)
    wrong = [each for each in previews if each.problems]
    for each in wrong:
        for problem in each.problems:
            console.print(Text(" ✘ ", "bold red").append(f"{title(each.key)}: ", "bold").append(problem))
    if not wrong:
        waiting = sum(not each.done for each in previews)
        told = f"{waiting} of {len(previews)} resources would run" if waiting else "everything is done already"
        console.print(Text(f"{told}; nothing was touched.", "dim"))


def _makes(found: Preview) -> str:
    if found.done:
        return "nothing, it is done"
    made = [f"{child['kind']}/{child['metadata']['name']}" for child in found.children]
    attempt = f"attempt {found.plan.attempt}" if found.plan.attempt is not None and found.plan.attempt > 1 else ""
    return "\n".join([*made, *([attempt] if attempt else [])]) or "nothing"


def _needs(estimate: Estimate | None) -> str:
    if estimate is None:
        return ""
    parts = [
        f"{estimate.gpu_memory_gib:g} GiB a GPU" if estimate.gpu_memory_gib is not None else "",
        f"{estimate.disk_gib:g} GiB disk" if estimate.disk_gib is not None else "",
        f"{estimate.hours:g} hours" if estimate.hours is not None else "",
    ]
    return "\n".join(part for part in parts if part)


def _object(found: Preview) -> dict[str, Any]:
    planned = found.plan
    return {
        "kind": found.key.kind,
        "name": found.key.name,
        "action": found.action,
        "done": found.done,
        "attempt": planned.attempt,
        "after": [{"kind": key.kind, "name": key.name} for key in found.after],
        "problems": list(found.problems),
        "estimate": planned.estimate.to_json() if planned.estimate else None,
        "children": [json.loads(json.dumps(child, default=dict)) for child in planned.children],
    }
