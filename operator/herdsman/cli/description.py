"""Everything about one resource, in sections."""

import json
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from rich.console import Console
from rich.text import Text

from herdsman.api.durations import duration
from herdsman.api.v1alpha1.status import Attempt, Status
from herdsman.cli.columns import print_columns
from herdsman.cli.figures import shorter, size, span, took
from herdsman.cli.names import title
from herdsman.cli.observed import Observed
from herdsman.cli.rows import MARKS


def print_description(console: Console, found: Observed, log_command: str, facts: Mapping[str, Any]) -> None:
    """Print spec, conditions, progress, attempts, failure, artifact and figures; `facts` are added to those on top."""
    status, metadata = found.status, found.manifest["metadata"]
    console.print(Text(title(found.key), "bold"))
    sign, style = MARKS[status.phase]
    seconds = took(status)
    told = {
        "Phase": Text(f"{sign} {status.phase}", style),
        "Created": moment(datetime.fromisoformat(metadata["creationTimestamp"])),
        "Generation": metadata["generation"],
        "UID": metadata["uid"],
        "Took": duration(seconds) if seconds is not None else None,
        "URL": status.url,
        "Replicas": f"{status.ready_replicas or 0} of {status.replicas} ready" if status.replicas is not None else None,
        "Restarts": status.restarts or None,
    }
    print_pairs(console, "", {**facts, **told})
    print_pairs(console, "Spec", dict(_flat(found.manifest["spec"])))
    _print_conditions(console, status)
    print_pairs(console, "Progress", _progress(status))
    print_pairs(console, "Data", _data(status))
    print_pairs(console, "Checkpoint", _checkpoint(status))
    _print_attempts(console, status.attempts)
    print_pairs(console, "Failure", _failure(status, log_command))
    print_pairs(console, "Estimate", status.estimate.to_json() if status.estimate else {})
    print_pairs(console, "Artifact", _artifact(status))
    print_pairs(console, "Report", {item.name: shorter(item.value) for item in status.report})


def print_pairs(console: Console, heading: str, pairs: Mapping[str, Any]) -> None:
    """Print names and values under a heading; nothing where there are none."""
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
        [item.type, item.status, item.reason, moment(item.last_transition_time), item.message]
        for item in status.conditions
    ]
    print_section(console, "Conditions", ("TYPE", "STATUS", "REASON", "SINCE", "MESSAGE"), rows)


def _print_attempts(console: Console, attempts: list[Attempt]) -> None:
    rows = []
    for attempt in attempts:
        seconds = span(attempt)
        cells = [
            str(attempt.number),
            moment(attempt.started) if attempt.started else "",
            duration(seconds) if seconds is not None else "",
            str(attempt.exit_code) if attempt.exit_code is not None else "",
            f"{attempt.reason or ''}{' (preflight)' if attempt.preflight else ''}".strip(),
            f"step {attempt.resumed_from_step}" if attempt.resumed_from_step else "",
        ]
        rows.append(cells)
    print_section(console, "Attempts", (">ATTEMPT", "STARTED", ">TOOK", ">EXIT CODE", "REASON", "RESUMED FROM"), rows)


def print_section(console: Console, heading: str, titles: Sequence[str], rows: Sequence[Sequence[Text | str]]) -> None:
    """Print a table under a heading; nothing where it has no rows."""
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
        "Loss curve": progress.loss_curve,
        "Activity": progress.activity,
        "As of": moment(progress.last_updated_time) if progress.last_updated_time else None,
        **dict(_figure(item.name, item.value) for item in progress.metrics),
    }


def _checkpoint(status: Status) -> dict[str, Any]:
    checkpoint = status.checkpoint
    if checkpoint is None:
        return {}
    told = checkpoint.to_json()
    step, loss = told.pop("bestStep", None), told.pop("bestHeldoutLoss", None)
    best = f"step {step}, held-out loss {shorter(loss)}" if step is not None and loss is not None else None
    return {**told, "best": best}


def _data(status: Status) -> dict[str, Any]:
    data = status.progress.data if status.progress is not None else None
    if data is None:
        return {}
    lost = {"Truncated": data.truncated, "Dropped": data.dropped, "Duplicates": data.duplicates}
    return {
        "Documents": f"{data.documents:,}" + (f", {data.held_out:,} of them held out" if data.held_out else ""),
        "Tokens": f"{data.tokens:,}",
        "Characters": f"{data.characters:,}",
        "Tokens per character": data.tokens_per_character,
        **{name: f"{count:,}" for name, count in lost.items() if count},
    }


def _figure(name: str, value: str) -> tuple[str, str]:
    """Return a figure as people read it; checkpoint_timestamp_seconds is told as a time."""
    stem = name.removesuffix("_timestamp_seconds")
    if stem == name or not value.replace(".", "", 1).isdigit():
        return name, shorter(value)
    return stem, moment(datetime.fromtimestamp(float(value), UTC))


def _failure(status: Status, log_command: str) -> dict[str, Any]:
    failure = status.failure
    if failure is None:
        return {}
    return {
        "Reason": failure.reason,
        "Message": failure.message,
        "Hint": failure.hint,
        "Pod": failure.pod,
        "Exit code": failure.exit_code,
        "Log": log_command if status.attempts else None,
    }


def _artifact(status: Status) -> dict[str, Any]:
    artifact = status.artifact
    if artifact is None:
        return {}
    fields = artifact.to_json()
    told = {"bytes": f"{artifact.bytes} ({size(artifact.bytes)})", "parents": ", ".join(artifact.parents)}
    report = {"report": f"{artifact.path}/{artifact.report}"} if artifact.report is not None else {}
    return {**fields, **told, **report}


def _flat(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        for name, member in value.items():
            yield from _flat(member, f"{path}.{name}" if path else name)
    elif isinstance(value, list) and any(isinstance(item, dict) for item in value):
        for index, item in enumerate(value):
            yield from _flat(item, f"{path}[{index}]")
    else:
        written = json.dumps(value) if isinstance(value, bool) else value
        yield path, ", ".join(str(item) for item in value) if isinstance(value, list) else written


def moment(time: datetime) -> str:
    """Return a time as people here read it."""
    return time.astimezone().strftime("%Y-%m-%d %H:%M:%S")
