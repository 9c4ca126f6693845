"""What would be made, what it would need and what is wrong, as a table or with all children."""

import json
import sys
from collections.abc import Sequence
from typing import Any

import yaml
from rich.console import Console
from rich.text import Text

from herdsman.api.v1alpha1.registry import KINDS
from herdsman.api.v1alpha1.status import Estimate
from herdsman.cli.columns import print_columns
from herdsman.cli.names import title
from herdsman.core.preview import Preview
from herdsman.core.world import Key


def dump_previews(previews: Sequence[Preview], output: str) -> None:
    """Print the previews with all children, as JSON or as YAML documents."""
    if output == "json":
        sys.stdout.write(json.dumps([_object(each) for each in previews], indent=2, ensure_ascii=False) + "\n")
    else:
        sys.stdout.write(yaml.safe_dump_all([_object(each) for each in previews], sort_keys=False, allow_unicode=True))


def print_previews(console: Console, previews: Sequence[Preview], place: str) -> None:
    """Print the table, what is wrong, what is lacking, and a verdict; `place` is this machine, or this cluster."""
    print_columns(console, ("", "RESOURCE", "MAKES", "AFTER", "NEEDS"), [_row(each) for each in previews])
    console.print()
    for each in previews:
        for problem in each.problems:
            console.print(Text("✘ ", "bold red").append(f"{title(each.key)}: ", "bold").append(problem))
    for want, keys in _wants(previews).items():
        console.print(Text("! ", "yellow").append(f"{', '.join(map(title, keys))}: ", "bold").append(want))
    console.print(Text(f"{_verdict(previews, place)}; nothing was touched.", "dim"))


def _wants(previews: Sequence[Preview]) -> dict[str, list[Key]]:
    """Return what is lacking, each with the resources that need it."""
    found: dict[str, list[Key]] = {}
    for each in previews:
        for want in dict.fromkeys(each.wants):
            found.setdefault(want, []).append(each.key)
    return found


def _verdict(previews: Sequence[Preview], place: str) -> str:
    sound = [each for each in previews if not (each.problems or each.blocked)]
    elsewhere = sum(bool(each.wants) for each in sound)
    told = f"{len(sound)} of {len(previews)} resources can run"
    return f"{told}, {elsewhere} of them not on {place} as it is" if elsewhere else told


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
    made = next((f"{child['kind']} {child['metadata']['name']}" for child in workers), "nothing")
    return f"{made}, a preflight without GPUs" if found.plan.preflight and found.children else made


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
        "preflight": planned.preflight,
        "after": [{"kind": key.kind, "name": key.name} for key in found.after],
        "problems": list(found.problems),
        "wants": list(found.wants),
        "blocked": found.blocked,
        "estimate": planned.estimate.to_json() if planned.estimate else None,
        "children": [json.loads(json.dumps(child, default=dict)) for child in planned.children],
    }
