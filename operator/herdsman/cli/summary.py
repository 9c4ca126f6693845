"""The end of a run: what was made, what went wrong and what to do, and how to talk to the servers."""

import json
from collections.abc import Mapping
from pathlib import Path

from rich.console import Console
from rich.text import Text

from herdsman.api.durations import duration
from herdsman.api.v1alpha1.registry import AnyResource
from herdsman.api.v1alpha1.status import Phase, Reason, Status
from herdsman.cli.columns import print_columns
from herdsman.cli.figures import size, took
from herdsman.cli.names import command_name, title
from herdsman.cli.rows import MARKS, Inputs, stands
from herdsman.core.world import Key
from herdsman.local.follow import Ending, as_asked
from herdsman.local.history import headline


def print_summary(
    console: Console,
    ending: Ending,
    resources: Mapping[Key, AnyResource],
    inputs: Inputs,
    home: str,
    reports: Mapping[Key, Path],
) -> None:
    """Print the table, what is wrong, the reports, and a request for each server that is ready.

    `home` is the option to repeat.
    """
    rows = [_row(key, status, ending, inputs) for key, status in ending.statuses.items()]
    print_columns(console, ("RESOURCE", "  PHASE", ">TOOK", "RESULT"), rows, indent=1)
    for key, status in ending.statuses.items():
        if _is_trouble(status, ending):
            _print_trouble(console, key, status, home)
    if reports:
        console.print(Text("\nReports", "bold"))
        print_columns(console, ("", ""), [[title(key), str(path)] for key, path in reports.items()], indent=1)
    for key, status in ending.statuses.items():
        if status.phase == Phase.READY and status.url:
            _print_request(console, key, status.url, resources.get(key), home)


def _row(key: Key, status: Status, ending: Ending, inputs: Inputs) -> list[Text]:
    sign, style = MARKS[status.phase]
    seconds = took(status)
    phase = Text(f"{sign} ", style).append(status.phase)
    result = Text("see below", "red") if _is_trouble(status, ending) else _result(key, status, ending, inputs)
    return [Text(title(key)), phase, Text(duration(seconds) if seconds is not None else ""), result]


def _result(key: Key, status: Status, ending: Ending, inputs: Inputs) -> Text:
    if status.artifact is not None:
        return Text(f"{status.artifact.kind}, {size(status.artifact.bytes)}")
    if ending.interrupted and status.attempts and status.phase != Phase.SUSPENDED:
        step = status.checkpoint.step if status.checkpoint is not None else None
        return Text(f"stopped, saved at step {step}" if step is not None else "stopped")
    return Text(stands(key, ending.statuses, inputs), "dim" if status.phase == Phase.WAITING else "")


def _is_trouble(status: Status, ending: Ending) -> bool:
    """Whether it is not as asked and neither merely waits for others nor was stopped with everything."""
    if as_asked(status) or headline(status).reason == Reason.REFERENCE_NOT_READY:
        return False
    return not ending.interrupted or status.phase in (Phase.FAILED, Phase.DEGRADED)


def _print_trouble(console: Console, key: Key, status: Status, home: str) -> None:
    reason, message = headline(status)
    failure = status.failure
    told = failure.message if failure is not None and failure.message not in message else message
    console.print(Text("\n ✘ ", "bold red").append(f"{title(key)}: ", "bold").append(told or reason))
    if failure is not None and failure.hint and failure.hint not in told:
        console.print(Text(f"   {failure.hint}"))
    if status.phase == Phase.FAILED:
        again = f"herdsman delete {command_name(key)} --purge{home}, and run again"
        console.print(Text(f"   Once that is mended: {again}", "dim"))
    if any(attempt.started for attempt in status.attempts) or status.replicas is not None:
        console.print(Text(f"   Its log: herdsman logs {command_name(key)}{home}", "dim"))


def _print_request(console: Console, key: Key, url: str, resource: AnyResource | None, home: str) -> None:
    name = getattr(resource.spec, "model_name", None) if resource is not None else None
    body = {"model": name or key.name, "messages": [{"role": "user", "content": "Hello!"}]}
    request = f"curl {url}/chat/completions \\\n  -H 'Content-Type: application/json' \\\n  -d '{json.dumps(body)}'"
    console.print(Text(f"\n{title(key)} answers at {url}", "bold").append(f" until herdsman stop{home}.", "not bold"))
    console.print(Text(request), soft_wrap=True)
    console.print(Text(f"herdsman chat {key.name}{home}"))
