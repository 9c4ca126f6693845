"""The end of a run: what was made, what went wrong and what to do, and how to talk to the servers."""

import json
from collections.abc import Mapping

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from herdsman.api.v1alpha1.registry import AnyResource
from herdsman.api.v1alpha1.status import Phase, Status
from herdsman.cli.figures import duration, size, took
from herdsman.cli.names import command_name, title
from herdsman.cli.rows import MARKS, report_line
from herdsman.core.world import Key
from herdsman.local.follow import Ending, as_asked
from herdsman.local.history import headline


def print_summary(console: Console, ending: Ending, resources: Mapping[Key, AnyResource], home: str) -> None:
    """Print the table, the reports, what is wrong, and a request for each server that is ready."""
    console.print(_table(ending))
    for key, status in ending.statuses.items():
        if not as_asked(status):
            _print_trouble(console, key, status, home, interrupted=ending.interrupted)
    for key, status in ending.statuses.items():
        if status.phase == Phase.READY and status.url:
            _print_request(console, key, status.url, resources.get(key))


def _table(ending: Ending) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for heading in ("", "RESOURCE", "PHASE", "TOOK", "RESULT"):
        table.add_column(heading, no_wrap=heading in ("", "PHASE", "TOOK"), overflow="fold")
    for key, status in ending.statuses.items():
        sign, style = MARKS[status.phase]
        seconds = took(status)
        table.add_row(
            Text(f" {sign}", style),
            title(key),
            Text(status.phase, style),
            duration(seconds) if seconds is not None else "",
            _result(status),
        )
    return table


def _result(status: Status) -> Text:
    if status.artifact is not None:
        made = f"{status.artifact.kind}, {size(status.artifact.bytes)}"
        text = Text(made)
        return text.append(f"\n{report_line(status)}", "dim") if status.report else text
    if status.phase == Phase.READY and status.url:
        return Text(status.url)
    return Text(headline(status).reason, "dim" if as_asked(status) else "red")


def _print_trouble(console: Console, key: Key, status: Status, home: str, *, interrupted: bool) -> None:
    sign, style = MARKS[Phase.SUSPENDED if interrupted and status.phase != Phase.FAILED else Phase.FAILED]
    reason, message = headline(status)
    failure = status.failure
    line = Text(f" {sign} ", style).append(f"{title(key)}: ", "bold")
    told = failure.message if failure is not None and failure.message not in message else message
    console.print(line.append(told or reason))
    if failure is not None and failure.hint:
        console.print(Text(f"   {failure.hint}"))
    if status.attempts and not interrupted:
        console.print(Text(f"   The log: herdsman logs {command_name(key)}{home}", "dim"))


def _print_request(console: Console, key: Key, url: str, resource: AnyResource | None) -> None:
    name = getattr(resource.spec, "model_name", None) if resource is not None else None
    body = {"model": name or key.name, "messages": [{"role": "user", "content": "Hello!"}]}
    console.print(Text(f"\n{title(key)} answers at {url}", "bold"))
    request = f"curl {url}/chat/completions -H 'Content-Type: application/json' \\\n  -d '{json.dumps(body)}'"
    console.print(Text(request), soft_wrap=True)
