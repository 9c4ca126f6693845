"""`herdsman describe`: everything about one resource."""

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

from rich.console import Console
from rich.text import Text

from herdsman.api.v1alpha1.status import Attempt, Status
from herdsman.cli.columns import print_columns
from herdsman.cli.figures import duration, shorter, size, span, took
from herdsman.cli.names import command_name, parse_kind, title
from herdsman.cli.observed import observe_one, open_home
from herdsman.cli.rows import MARKS
from herdsman.core.world import Key


def describe_command(kind: str, name: str, home_option: str | None) -> None:
    """Print spec, conditions, progress, attempts, failure, artifact, figures and history."""
    cluster = open_home(home_option)
    key = Key(parse_kind(kind).kind, name)
    found = observe_one(cluster, key)
    status, console = found.status, Console(highlight=False)
    console.print(Text(title(key), "bold"))
    sign, style = MARKS[status.phase]
    seconds = took(status)
    metadata = found.manifest["metadata"]
    facts = {
        "Phase": Text(f"{sign} {status.phase}", style),
        "Created": _moment(datetime.fromisoformat(metadata["creationTimestamp"])),
        "Generation": metadata["generation"],
        "UID": metadata["uid"],
        "Took": duration(seconds) if seconds is not None else None,
        "URL": status.url,
        "Restarts": status.restarts or None,
    }
    _print_pairs(console, "", facts)
    _print_pairs(console, "Spec", dict(_flat(found.manifest["spec"])))
    _print_conditions(console, status)
    _print_pairs(console, "Progress", _progress(status))
    _print_pairs(console, "Checkpoint", status.checkpoint.to_json() if status.checkpoint else {})
    _print_attempts(console, status.attempts)
    _print_pairs(console, "Failure", _failure(status, key, home_option))
    _print_pairs(console, "Estimate", status.estimate.to_json() if status.estimate else {})
    _print_pairs(console, "Artifact", _artifact(status))
    _print_pairs(console, "Report", {item.name: shorter(item.value) for item in status.report})
    _print_history(console, cluster.store.history(key))


def _print_pairs(console: Console, heading: str, pairs: Mapping[str, Any]) -> None:
    rows = {name: value for name, value in pairs.items() if value is not None and value != ""}
    if not rows:
        return
    if heading:
        console.print(Text(f"\n{heading}", "bold"))
    cells = [
        [Text(name, "dim"), value if isinstance(value, Text) else Text(str(value))] for name, value in rows.items()
    ]
    print_columns(console, ("", ""), cells, indent=2)


def _print_conditions(console: Console, status: Status) -> None:
    rows = [
        [item.type, item.status, item.reason, _moment(item.last_transition_time), item.message]
        for item in status.conditions
    ]
    _print_table(console, "Conditions", ("TYPE", "STATUS", "REASON", "SINCE", "MESSAGE"), rows)


def _print_attempts(console: Console, attempts: list[Attempt]) -> None:
    rows = []
    for attempt in attempts:
        seconds = span(attempt)
        cells = [
            str(attempt.number),
            _moment(attempt.started) if attempt.started else "",
            duration(seconds) if seconds is not None else "",
            str(attempt.exit_code) if attempt.exit_code is not None else "",
            attempt.reason or "",
            f"step {attempt.resumed_from_step}" if attempt.resumed_from_step else "",
        ]
        rows.append(cells)
    _print_table(console, "Attempts", (">ATTEMPT", "STARTED", ">TOOK", ">EXIT CODE", "REASON", "RESUMED FROM"), rows)


def _print_history(console: Console, history: list[dict[str, Any]]) -> None:
    rows = [
        [_moment(datetime.fromisoformat(entry["time"])), entry["phase"], entry["reason"], entry["message"]]
        for entry in history
    ]
    _print_table(console, "History", ("WHEN", "PHASE", "REASON", "MESSAGE"), rows)


def _print_table(console: Console, heading: str, titles: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    if rows:
        console.print(Text(f"\n{heading}", "bold"))
        print_columns(console, titles, rows, indent=2)


def _progress(status: Status) -> dict[str, Any]:
    progress = status.progress
    if progress is None:
        return {}
    remaining = progress.estimated_remaining_seconds
    steps = f"{progress.percent}%, step {progress.step} of {progress.total_steps}"
    return {
        "Done": steps if progress.total_steps else None,
        "To go": duration(remaining) if remaining is not None else None,
        "Tokens/s": progress.tokens_per_second,
        "Activity": progress.activity,
        **{item.name: shorter(item.value) for item in progress.metrics},
    }


def _failure(status: Status, key: Key, home_option: str | None) -> dict[str, Any]:
    failure = status.failure
    if failure is None:
        return {}
    home = f" --home {home_option}" if home_option else ""
    return {
        "Reason": failure.reason,
        "Message": failure.message,
        "Hint": failure.hint,
        "Exit code": failure.exit_code,
        "Log": f"herdsman logs {command_name(key)}{home}" if status.attempts else None,
    }


def _artifact(status: Status) -> dict[str, Any]:
    artifact = status.artifact
    if artifact is None:
        return {}
    fields = artifact.to_json()
    return {**fields, "bytes": f"{artifact.bytes} ({size(artifact.bytes)})", "parents": ", ".join(artifact.parents)}


def _flat(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        for name, member in value.items():
            yield from _flat(member, f"{path}.{name}" if path else name)
    elif isinstance(value, list) and any(isinstance(item, dict) for item in value):
        for index, item in enumerate(value):
            yield from _flat(item, f"{path}[{index}]")
    else:
        yield path, ", ".join(str(item) for item in value) if isinstance(value, list) else value


def _moment(moment: datetime) -> str:
    return moment.astimezone().strftime("%Y-%m-%d %H:%M:%S")
