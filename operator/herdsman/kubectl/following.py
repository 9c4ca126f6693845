"""Following logs: over lost connections, restarts and new attempts, until the run is final."""

import asyncio

from herdsman.api.v1alpha1.status import Phase, Status
from herdsman.cli.names import title
from herdsman.cli.refusals import Refused
from herdsman.cli.rows import sentence
from herdsman.core.world import Key
from herdsman.kube.errors import ApiError, NotFound, Unreachable
from herdsman.kube.port import Body
from herdsman.kubectl.children import attempt_of, pod_state, pods_of, rank_of
from herdsman.kubectl.connection import Connection
from herdsman.kubectl.log_lines import Line, Printer, Source, sources_of
from herdsman.kubectl.places import path_to
from herdsman.kubectl.resources import observed

LOOK_SECONDS = 1.0
PATIENCE = 120
"""Looks in a row without an answer of the API server, after which following ends."""
_SECOND = len("2026-01-02T03:04:05")


class Follower:
    """Follows the logs of one resource from attempt `first` on, or those of attempt `only`."""

    def __init__(
        self,
        connection: Connection,
        key: Key,
        first: int,
        only: int | None = None,
        rank: int | None = None,
        tail: int | None = None,
    ) -> None:
        self._connection = connection
        self._key = key
        self._first, self._only, self._rank, self._tail = first, only, rank, tail
        self._printer = Printer(prefixed=False)
        self._streams: dict[Source, asyncio.Task[None]] = {}
        self._attempt = 0
        self._told: tuple[str, ...] = ()
        self._seen: tuple[str, ...] = ()

    async def run(self) -> None:
        """Follow until the run is final and everything it wrote is printed, or the resource is gone."""
        silent = 0
        try:
            while True:
                try:
                    if await self._look():
                        return
                    silent = 0
                except Unreachable:
                    silent += 1
                    if silent == 1:
                        self._printer.note("the API server does not answer; trying again")
                    if silent > PATIENCE:
                        raise
                await self._pause()
        finally:
            for task in self._streams.values():
                task.cancel()
            await asyncio.gather(*self._streams.values(), return_exceptions=True)

    async def _pause(self) -> None:
        """Wait a moment, and no longer than until a stream ends."""
        open_streams = [task for task in self._streams.values() if not task.done()]
        if open_streams:
            await asyncio.wait(open_streams, timeout=LOOK_SECONDS, return_when=asyncio.FIRST_COMPLETED)
        else:
            await asyncio.sleep(LOOK_SECONDS)

    async def _look(self) -> bool:
        """Start what is new; returns whether nothing more will come."""
        try:
            body = await self._connection.find(self._key.kind, self._connection.namespace, self._key.name)
        except NotFound as error:
            raise Refused(f"{title(self._key)} is gone") from error
        status = observed(body).status
        pods = [pod for pod in await pods_of(self._connection, self._key) if self._concerns(pod)]
        self._printer.prefixed = self._printer.prefixed or _several(body)
        for pod in pods:
            for source in sources_of(pod):
                if source not in self._streams:
                    self._begin(source)
        for task in self._streams.values():
            if task.done():
                task.result()  # what went wrong in it goes wrong here
        working = any(not task.done() for task in self._streams.values())
        if working:
            return False
        over = self._is_over(status)
        self._tell(status, pods, at_once=over)
        return over

    def _begin(self, source: Source) -> None:
        if source.attempt is not None and source.attempt != self._attempt:
            if source.attempt > 1 or self._attempt or source.preflight:
                checks = ", a preflight" if source.preflight else ""
                self._printer.note(f"attempt {source.attempt} of {title(self._key)}{checks}:")
            self._attempt = source.attempt
        self._streams[source] = asyncio.create_task(self._follow(source))

    def _concerns(self, pod: Body) -> bool:
        if self._rank is not None and rank_of(pod) != self._rank:
            return False
        attempt = attempt_of(pod)
        if attempt is None:
            return True
        return attempt == self._only if self._only is not None else attempt >= self._first

    def _is_over(self, status: Status) -> bool:
        if status.phase in (Phase.SUCCEEDED, Phase.FAILED):
            return True
        known = {item.number: item for item in status.attempts}
        return self._only is not None and self._only in known and known[self._only].ended is not None

    def _tell(self, status: Status, pods: list[Body], *, at_once: bool) -> None:
        """Say how the resource stands while nothing is written, once it has stayed so for two looks."""
        waiting = [pod_state(pod).told for pod in pods if not sources_of(pod)]
        why = next((told for told in waiting if told), sentence(status))
        told = str(status.phase), why
        stays, self._seen = told == self._seen, told
        if told != self._told and (stays or at_once):
            self._told = told
            self._printer.note(f"{title(self._key)} is {status.phase}{f': {why}' if why else ''}")

    async def _follow(self, source: Source) -> None:
        """Print one container's log until it has ended for good."""
        path = path_to("Pod", self._connection.namespace, source.pod, "log")
        latest: str | None = None
        same_second: set[Line] = set()
        while True:
            query = {"container": source.container, "timestamps": "true", "follow": "true"}
            if latest is not None:
                query["sinceTime"] = _whole_second(latest)
            elif self._tail is not None:
                query["tailLines"] = str(self._tail)
            try:
                async for text in self._connection.lines(path, **query):
                    line = Line.parse(text)
                    if line in same_second:
                        continue  # told before the connection was lost
                    if latest is None or line.time[:_SECOND] != latest[:_SECOND]:
                        same_second.clear()
                    latest = line.time
                    same_second.add(line)
                    self._printer.write(source, line)
            except Unreachable:
                pass
            except ApiError as error:
                if error.status == 404:
                    return
                if error.status != 400 and not error.temporary:  # 400: the container is about to start
                    raise
            if await self._has_ended(source):
                return
            await asyncio.sleep(LOOK_SECONDS)

    async def _has_ended(self, source: Source) -> bool:
        try:
            pod = await self._connection.find("Pod", self._connection.namespace, source.pod)
        except NotFound:
            return True
        except Unreachable:
            return False
        if pod["metadata"]["uid"] != source.uid:
            return True
        status = pod.get("status") or {}
        if status.get("phase") in ("Succeeded", "Failed"):
            return True
        ended = [item["name"] for item in status.get("initContainerStatuses") or () if _terminated(item)]
        if source.attempt is not None:  # a server's container is started again, a run's is not
            ended += [item["name"] for item in status.get("containerStatuses") or () if _terminated(item)]
        return source.container in ended


def _terminated(container: Body) -> bool:
    state: Body = container.get("state") or {}
    return "terminated" in state


def _several(body: Body) -> bool:
    spec = body.get("spec") or {}
    return bool(max((spec.get("compute") or {}).get("nodes", 1), spec.get("replicas", 1)) > 1)


def _whole_second(time: str) -> str:
    """Return a time without its fraction: the API server takes whole seconds."""
    rest = time[_SECOND:].lstrip(".0123456789")
    return time[:_SECOND] + (rest or "Z")
