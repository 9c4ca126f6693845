"""`herdsman describe`: everything about one resource."""

from datetime import datetime
from pathlib import Path

from rich.console import Console

from herdsman.api.v1alpha1.status import Status
from herdsman.cli.at_home import observe_one, open_home
from herdsman.cli.description import moment, print_description, print_section
from herdsman.cli.names import command_name, parse_kind
from herdsman.core.world import Key
from herdsman.local.home import Home


def report_path(status: Status, home: Home) -> Path | None:
    """Return the page that tells how a finished run went, where there is one."""
    artifact = status.artifact
    if artifact is None or artifact.report is None:
        return None
    return home.volumes / artifact.claim / artifact.path / artifact.report


def describe_command(kind: str, name: str, home_option: str | None) -> None:
    """Print the resource and its history."""
    cluster = open_home(home_option)
    key = Key(parse_kind(kind).kind, name)
    console = Console(highlight=False)
    home = f" --home {home_option}" if home_option else ""
    found = observe_one(cluster, key)
    facts = {"Report": report_path(found.status, cluster.home)}
    print_description(console, found, f"herdsman logs {command_name(key)}{home}", facts)
    rows = [
        [moment(datetime.fromisoformat(entry["time"])), entry["phase"], entry["reason"], entry["message"]]
        for entry in cluster.store.history(key)
    ]
    print_section(console, "History", ("WHEN", "PHASE", "REASON", "MESSAGE"), rows)
