"""`herdsman plan`: what a run would make and need, and what is wrong, without touching anything."""

import asyncio
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.text import Text

from herdsman.api.v1alpha1.registry import KINDS
from herdsman.api.v1alpha1.status import Estimate
from herdsman.cli.columns import print_columns
from herdsman.cli.names import title
from herdsman.cli.refusals import REFUSED
from herdsman.cli.run import checked_manifests
from herdsman.core.world import Key
from herdsman.local.home import Home
from herdsman.local.machine import this_machine
from herdsman.local.preview import Preview, PreviewCluster, preview
from herdsman.local.volumes import parse_volumes


def plan_command(paths: Sequence[Path], volumes: Sequence[str], home_option: str | None, output: str) -> int:
    """Print the plan and return the exit code: 1 where something would be refused everywhere."""
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
    print_columns(console, ("", "RESOURCE", "MAKES", "AFTER", "NEEDS"), [_row(each) for each in previews])
    console.print()
    for each in previews:
        for problem in each.problems:
            console.print(Text("✘ ", "bold red").append(f"{title(each.key)}: ", "bold").append(problem))
    for want, keys in _wants(previews).items():
        console.print(Text("! ", "yellow").append(f"{', '.join(map(title, keys))}: ", "bold").append(want))
    console.print(Text(f"{_verdict(previews)}; nothing was touched.", "dim"))


def _wants(previews: Sequence[Preview]) -> dict[str, list[Key]]:
    """Return what this machine lacks, each with the resources that need it."""
    found: dict[str, list[Key]] = {}
    for each in previews:
        for want in dict.fromkeys(each.wants):
            found.setdefault(want, []).append(each.key)
    return found


def _verdict(previews: Sequence[Preview]) -> str:
    sound = [each for each in previews if not (each.problems or each.blocked)]
    elsewhere = sum(bool(each.wants) for each in sound)
    told = f"{len(sound)} of {len(previews)} resources can run"
    return f"{told}, {elsewhere} of them not on this machine as it is" if elsewhere else told


def _row(found: Preview) -> list[Text | str]:
    sign, style = _sign(found)
    after = ", ".join(f"{KINDS[key.kind].short}/{key.name}" for key in found.after)
    return [Text(sign, style), title(found.key), _makes(found), after, _needs(found.plan.estimate)]


def _sign(found: Preview) -> tuple[str, str]:
    if found.problems:
        return "✘", "bold red"
    if found.blocked:
        return "○", "yellow"
    return ("✔", "green") if found.done else ("+", "cyan")


def _makes(found: Preview) -> str:
    """Return the one child that does the work; all of them are in the JSON and YAML output."""
    if found.done:
        return "nothing, it is done"
    workers = (child for child in found.children if child["kind"] in ("Job", "Deployment"))
    return next((f"{child['kind']} {child['metadata']['name']}" for child in workers), "nothing")


def _needs(estimate: Estimate | None) -> str:
    if estimate is None:
        return ""
    parts = [
        f"{estimate.gpu_memory_gib:g} GiB a GPU" if estimate.gpu_memory_gib else "",
        f"{estimate.disk_gib:g} GiB disk" if estimate.disk_gib else "",
        f"{estimate.hours:g} hours" if estimate.hours else "",
    ]
    return ", ".join(part for part in parts if part)


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
        "wants": list(found.wants),
        "blocked": found.blocked,
        "estimate": planned.estimate.to_json() if planned.estimate else None,
        "children": [json.loads(json.dumps(child, default=dict)) for child in planned.children],
    }
