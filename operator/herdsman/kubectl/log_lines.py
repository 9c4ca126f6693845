"""Lines of several logs as one: whose they are, in the order of their time."""

import heapq
import os
import sys
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple

from herdsman.kube.facts import is_preflight
from herdsman.kube.pod_facts import MAIN_CONTAINERS
from herdsman.kube.port import Body
from herdsman.kubectl.children import attempt_of, rank_of

_COLOURS = (36, 33, 35, 32, 34, 31, 96, 93, 95, 92, 94, 91)


class Line(NamedTuple):
    """A line of a log with its time, which the API server puts before it."""

    time: str
    text: str

    @classmethod
    def parse(cls, line: str) -> "Line":
        """Split what the API server sends with timestamps=true."""
        time, _, text = line.partition(" ")
        return cls(time, text)

    @property
    def moment(self) -> float:
        """Seconds since 1970; 0 where the line has no time."""
        try:
            return datetime.fromisoformat(self.time).timestamp()
        except ValueError:
            return 0.0


@dataclass(frozen=True)
class Source:
    """One container's log."""

    pod: str
    uid: str
    container: str
    attempt: int | None = None
    rank: int | None = None
    preflight: bool = False

    @property
    def label(self) -> str:
        """What stands before its lines."""
        if self.preflight:
            return "preflight"
        whose = f"rank {self.rank}" if self.rank is not None else self.pod.rpartition("-")[2]
        return whose if self.container in MAIN_CONTAINERS else f"{whose} {self.container}"

    @property
    def order(self) -> int:
        """A number by which it gets its colour."""
        return self.rank if self.rank is not None else sum(self.pod.encode())


def sources_of(pod: Body) -> list[Source]:
    """Return the logs of a pod that have begun."""
    status = pod.get("status") or {}
    begun = []
    for container in (*(status.get("initContainerStatuses") or ()), *(status.get("containerStatuses") or ())):
        states = container.get("state") or {}, container.get("lastState") or {}
        if any("running" in state or "terminated" in state for state in states):
            begun.append(container["name"])
    metadata = pod["metadata"]
    attempt, rank, preflight = attempt_of(pod), rank_of(pod), is_preflight(pod)
    return [Source(metadata["name"], metadata["uid"], name, attempt, rank, preflight) for name in begun]


async def in_order(streams: Sequence[tuple[Source, AsyncIterator[Line]]]) -> AsyncIterator[tuple[Source, Line]]:
    """Merge logs that have ended by the time of their lines; holds one line of each."""
    waiting: list[tuple[float, int, Line]] = []
    for number, (_, lines) in enumerate(streams):
        async for line in lines:
            waiting.append((line.moment, number, line))
            break
    heapq.heapify(waiting)
    while waiting:
        _, number, line = waiting[0]
        source, lines = streams[number]
        yield source, line
        following = await anext(lines, None)
        if following is None:
            heapq.heappop(waiting)
        else:
            heapq.heapreplace(waiting, (following.moment, number, following))


class Printer:
    """Writes lines to standard output, with their source before them where there are several."""

    def __init__(self, *, prefixed: bool) -> None:
        self.prefixed = prefixed
        self._coloured = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
        self._width = 0

    def write(self, source: Source, line: Line) -> None:
        """Write one line, at once."""
        sys.stdout.write(f"{self._prefix(source)}{line.text}\n")
        sys.stdout.flush()

    def note(self, sentence: str) -> None:
        """Say something about the logs, beside them."""
        dim, plain = ("\x1b[2m", "\x1b[0m") if sys.stderr.isatty() and not os.environ.get("NO_COLOR") else ("", "")
        sys.stderr.write(f"{dim}{sentence}{plain}\n")
        sys.stderr.flush()

    def _prefix(self, source: Source) -> str:
        if not self.prefixed:
            return ""
        self._width = max(self._width, len(source.label))
        label = source.label.ljust(self._width)
        return f"\x1b[{_COLOURS[source.order % len(_COLOURS)]}m{label} |\x1b[0m " if self._coloured else f"{label} | "
