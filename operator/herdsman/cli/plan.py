"""`herdsman plan`: what a run would make and need, and what is wrong, without touching anything."""

import asyncio
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from herdsman.cli.manifests import checked_manifests
from herdsman.cli.plan_table import dump_previews, print_previews
from herdsman.cli.refusals import REFUSED
from herdsman.local.home import Home
from herdsman.local.machine import this_machine
from herdsman.local.preview import PreviewCluster, preview
from herdsman.local.volumes import parse_volumes


def plan_command(paths: Sequence[Path], volumes: Sequence[str], home_option: str | None, output: str) -> int:
    """Print the plan and return the exit code: 1 where something would be refused everywhere."""
    manifests = checked_manifests(paths)
    home = Home.at(home_option)
    home.check_format()
    cluster = PreviewCluster(home, this_machine(), parse_volumes(volumes), list(manifests.claims))
    applications = cluster.store.compare(manifests.resources.values(), cluster.now())
    previews = asyncio.run(preview(cluster, applications))
    if output == "table":
        print_previews(Console(highlight=False), previews, "this machine")
    else:
        dump_previews(previews, output)
    return REFUSED if any(each.problems for each in previews) else 0
