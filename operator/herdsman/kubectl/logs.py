"""`kubectl herdsman logs`: what the pods of a run or a server wrote, all of them."""

from collections.abc import AsyncIterator
from dataclasses import dataclass

from herdsman.api.durations import duration
from herdsman.api.v1alpha1.status import Attempt
from herdsman.cli.figures import span
from herdsman.cli.names import title
from herdsman.cli.observed import Observed
from herdsman.cli.refusals import USAGE, Refused
from herdsman.cli.rows import sentence
from herdsman.core.status import is_final
from herdsman.kube.errors import ApiError
from herdsman.kube.port import Body
from herdsman.kubectl.children import attempt_of, pod_state, pods_of, rank_of
from herdsman.kubectl.connection import Connection, connected
from herdsman.kubectl.following import Follower
from herdsman.kubectl.log_lines import Line, Printer, Source, in_order, sources_of
from herdsman.kubectl.options import Options
from herdsman.kubectl.places import path_to
from herdsman.kubectl.resources import one


@dataclass(frozen=True)
class Wanted:
    """Which logs are asked for."""

    rank: int | None = None
    attempt: int | None = None
    tail: int | None = None
    """Only so many lines of each."""
    previous: bool = False
    """Those of the containers before the last restart."""


async def logs_command(options: Options, kind: str, name: str, wanted: Wanted, *, follow: bool) -> None:
    """Print the logs; with `follow`, go on over restarts and new attempts until the run is final."""
    async with connected(options) as connection:
        found = await one(connection, kind, name)
        serves = found.key.kind == "ModelServer"
        if serves and (wanted.rank is not None or wanted.attempt is not None):
            raise Refused("a ModelServer has neither ranks nor attempts; leave --rank and --attempt out", USAGE)
        pods = await pods_of(connection, found.key, wanted.attempt)
        if follow and (pods or not is_final(found.status)):
            first = wanted.attempt or max((attempt_of(pod) or 0 for pod in pods), default=0)
            await Follower(connection, found.key, first, wanted.attempt, wanted.rank, wanted.tail).run()
            return
        chosen = pods if serves else _chosen(found, pods, wanted)
        if not chosen:
            raise Refused(_without_pods(found, wanted.attempt))
        await _print(connection, found, chosen, wanted)


def _chosen(found: Observed, pods: list[Body], wanted: Wanted) -> list[Body]:
    """Return the pods of the attempt, of one rank if asked for."""
    newest = max((attempt_of(pod) or 0 for pod in pods), default=0)
    of_attempt = [pod for pod in pods if (attempt_of(pod) or 0) == newest]
    if wanted.rank is None or not of_attempt:
        return of_attempt
    chosen = [pod for pod in of_attempt if rank_of(pod) == wanted.rank]
    if not chosen:
        ranks = ", ".join(str(rank) for rank in sorted({rank_of(pod) or 0 for pod in of_attempt}))
        raise Refused(f"attempt {newest} of {title(found.key)} has no pod of rank {wanted.rank}; there are {ranks}")
    return chosen


async def _print(connection: Connection, found: Observed, pods: list[Body], wanted: Wanted) -> None:
    sources = [source for pod in pods for source in sources_of(pod)]
    printer = Printer(prefixed=len(sources) > 1)
    for pod in pods:
        if not sources_of(pod):
            state = pod_state(pod)
            printer.note(f"{pod['metadata']['name']} has not started: {state.told or state.phase}")
    if not sources:
        raise Refused(f"no pod of {title(found.key)} has written anything yet; -f waits for it")
    streams = [(source, lines_of(connection, found.namespace, source, wanted, printer)) for source in sources]
    written = False
    async for source, line in in_order(streams):
        printer.write(source, line)
        written = True
    if not written:
        printer.note(f"{title(found.key)} has written nothing; kubectl herdsman describe tells its figures")


async def lines_of(
    connection: Connection, namespace: str, source: Source, wanted: Wanted, printer: Printer
) -> AsyncIterator[Line]:
    """Yield the lines of one log; one that is gone is said to be."""
    tail = str(wanted.tail) if wanted.tail is not None else None
    query = {"container": source.container, "timestamps": "true", "tailLines": tail}
    if wanted.previous:
        query["previous"] = "true"
    try:
        async for line in connection.lines(path_to("Pod", namespace, source.pod, "log"), **query):
            yield Line.parse(line)
    except ApiError as error:
        if error.status not in (400, 404):
            raise
        printer.note(f"no log of {source.pod}: {error.message}")


def _without_pods(found: Observed, attempt: int | None) -> str:
    """Return why there is no log."""
    status, me = found.status, title(found.key)
    if not status.attempts:
        told = f": {sentence(status)}" if sentence(status) else ""
        return f"{me} has no pods (it is {status.phase}{told})"
    known = {item.number: item for item in status.attempts}
    if attempt is not None and attempt not in known:
        return f"{me} has no attempt {attempt}; there are {', '.join(map(str, known))}"
    last = known[attempt] if attempt is not None else status.attempts[-1]
    failure = f" {status.failure.message}" if status.failure is not None and last is status.attempts[-1] else ""
    return f"the pods of attempt {last.number} of {me} are gone, and their logs with them; {_ending(last)}.{failure}"


def _ending(attempt: Attempt) -> str:
    if attempt.ended is None:
        return "it has not ended"
    seconds = span(attempt)
    took = f" after {duration(seconds)}" if seconds is not None else ""
    code = f", exit code {attempt.exit_code}" if attempt.exit_code is not None else ""
    return f"it ended{took} ({attempt.reason or 'for an unknown reason'}{code})"
