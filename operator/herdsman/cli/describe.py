"""`herdsman describe`: everything about one resource."""

from datetime import datetime

from rich.console import Console

from herdsman.cli.at_home import observe_one, open_home
from herdsman.cli.description import moment, print_description, print_section
from herdsman.cli.names import command_name, parse_kind
from herdsman.core.world import Key


def describe_command(kind: str, name: str, home_option: str | None) -> None:
    """Print the resource and its history."""
    cluster = open_home(home_option)
    key = Key(parse_kind(kind).kind, name)
    console = Console(highlight=False)
    home = f" --home {home_option}" if home_option else ""
    print_description(console, observe_one(cluster, key), f"herdsman logs {command_name(key)}{home}", {})
    rows = [
        [moment(datetime.fromisoformat(entry["time"])), entry["phase"], entry["reason"], entry["message"]]
        for entry in cluster.store.history(key)
    ]
    print_section(console, "History", ("WHEN", "PHASE", "REASON", "MESSAGE"), rows)
