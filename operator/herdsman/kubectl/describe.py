"""`kubectl herdsman describe`: everything about one resource, with what was made for it and what happened."""

import asyncio
from collections.abc import Mapping
from datetime import UTC, datetime

from rich.console import Console
from rich.text import Text

from herdsman.cli.description import print_description, print_section
from herdsman.cli.figures import age
from herdsman.cli.names import command_name
from herdsman.cli.observed import Observed
from herdsman.kube.errors import ApiError
from herdsman.kube.port import Body
from herdsman.kubectl.children import Children, children_of, pod_state, state_of
from herdsman.kubectl.connection import Connection, connected
from herdsman.kubectl.options import Options
from herdsman.kubectl.resources import one

LAST_EVENTS = 20
_TOLD_PODS = 16
"""Pods of a run whose Events are asked for, the newest first."""


async def describe_command(options: Options, kind: str, name: str) -> None:
    """Print the resource, its children and the last Events of all of them."""
    async with connected(options) as connection:
        found = await one(connection, kind, name)
        children = await children_of(connection, found)
        events = await _events(connection, found, children)
    console = Console(highlight=False)
    log = f"kubectl herdsman logs {command_name(found.key)}{options.repeated}"
    metadata = found.manifest["metadata"]
    deleting = "since " + metadata["deletionTimestamp"] if metadata.get("deletionTimestamp") else None
    print_description(console, found, log, {"Namespace": found.namespace, "Being deleted": deleting})
    _print_pods(console, children.pods)
    rows = [[f"{body['kind']} {body['metadata']['name']}", state_of(body), _age(body)] for body in children.others]
    print_section(console, "Objects", ("OBJECT", "STATE", ">AGE"), rows)
    _print_events(console, events)
    for note in children.notes:
        console.print(Text(f"\n! {note}", "yellow"), soft_wrap=True)


def _print_pods(console: Console, pods: list[Body]) -> None:
    rows: list[list[Text | str]] = []
    for pod in pods:
        state = pod_state(pod)
        node = (pod.get("spec") or {}).get("nodeName", "")
        cells = [pod["metadata"]["name"], state.attempt, state.rank, Text(state.phase, state.style)]
        rows.append([*cells, state.told, str(state.restarts or ""), node, _age(pod)])
    headings = ("POD", ">ATTEMPT", ">RANK", "PHASE", "STATE", ">RESTARTS", "NODE", ">AGE")
    print_section(console, "Pods", headings, rows)


async def _events(connection: Connection, found: Observed, children: Children) -> list[Body]:
    newest = sorted(children.pods, key=lambda pod: str(pod["metadata"].get("creationTimestamp")))[-_TOLD_PODS:]
    concerned = [found.manifest, *children.others, *newest]
    uids = [body["metadata"]["uid"] for body in concerned if body["metadata"].get("uid")]
    asked = (connection.items("Event", found.namespace, fieldSelector=f"involvedObject.uid={uid}") for uid in uids)
    try:
        answers = await asyncio.gather(*asked)
    except ApiError as error:
        if error.status != 403:
            raise
        children.notes.append(f"Events are not shown: {error.message}")
        return []
    events = [event for answer in answers for event in answer]
    return sorted(events, key=_last_seen)[-LAST_EVENTS:]


def _print_events(console: Console, events: list[Body]) -> None:
    now = datetime.now(UTC)
    rows: list[list[Text | str]] = []
    for event in events:
        about, seen = event.get("involvedObject") or {}, _last_seen(event)
        times = (event.get("series") or {}).get("count") or event.get("count") or 1
        when = f"{age(datetime.fromisoformat(seen), now)} ago" if seen else ""
        warns = event.get("type") == "Warning"
        kind = Text(str(event.get("type", "")), "yellow" if warns else "")
        told = " ".join((event.get("message") or event.get("note") or "").split())
        cells = [when, kind, event.get("reason") or "", f"{about.get('kind', '')} {about.get('name', '')}"]
        rows.append([*cells, f"{told} ({times} times)" if times > 1 else told])
    print_section(console, "Events", (">WHEN", "TYPE", "REASON", "OBJECT", "MESSAGE"), rows)


def _last_seen(event: Mapping[str, object]) -> str:
    series = event.get("series")
    last = series.get("lastObservedTime") if isinstance(series, dict) else None
    times = (last, event.get("lastTimestamp"), event.get("eventTime"), event.get("firstTimestamp"))
    return next((str(time) for time in times if time), "")


def _age(body: Body) -> str:
    created = body["metadata"].get("creationTimestamp")
    return age(datetime.fromisoformat(created), datetime.now(UTC)) if created else ""
