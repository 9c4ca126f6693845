"""`herdsman get`: lists resources and how they stand."""

import sys

from rich.console import Console
from rich.text import Text

from herdsman.api.v1alpha1.status import Phase
from herdsman.cli.at_home import observe_all, observe_one, open_home
from herdsman.cli.names import parse_kind
from herdsman.cli.table import dump, print_table
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
        dump([each.object for each in found], output, single=name is not None)
        return
    console = Console(highlight=False)
    if not found:
        sys.stderr.write(f"no {info.kind if info else 'resources'} in {cluster.home.root}\n")
        return
    wide = output == "wide"
    print_table(console, found, wide=wide)
    if not all(as_asked(each.status) or each.status.phase == Phase.FAILED for each in found):
        if (pid := holder(cluster.home.lock_file)) is None:
            console.print(Text("No herdsman run is at work here; `herdsman run` goes on.", "dim"))
        elif wide:
            console.print(Text(f"herdsman run (process {pid}) is at work here.", "dim"))
