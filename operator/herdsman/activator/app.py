"""The two faces of an activator: the one for clients, and the one for the operator, probes and Prometheus."""

import asyncio
import contextlib
import time
from collections.abc import Iterator

import aiohttp
from aiohttp import web
from prometheus_client import generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from yarl import URL

from herdsman.activator import answers
from herdsman.activator.demand import Demand
from herdsman.activator.passing_on import NotConnectedError, new_session, pass_on
from herdsman.activator.settings import Settings
from herdsman.activator.waiting_room import RoomFullError, StillAsleepError, WaitingRoom, can_connect

QUIET = ("/healthz", "/readyz", "/v1/models")
"""What wakes nobody and keeps nobody awake: it is asked again and again by programs that want nothing else."""


class Activator:
    """Passes requests on, and holds them while no replica can be reached."""

    def __init__(self, settings: Settings, demand: Demand | None = None) -> None:
        self._settings = settings
        self._backend = URL(settings.backend)
        host, port = self._backend.host or "", self._backend.port or 80
        self.demand = demand or Demand()
        self.draining = False
        """Whether it is about to end: each answer is then the last one of its connection."""
        self._room = WaitingRoom(settings.hold_requests, lambda: can_connect(host, port))
        self._session: aiohttp.ClientSession | None = None
        self._under_way = 0
        self._nothing = asyncio.Event()

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Answer one request of a client."""
        opens = self._settings.keys.opens(request.headers.get("Authorization", "").encode(errors="surrogateescape"))
        wakes = opens and request.method != "OPTIONS" and not _is_quiet(request.path)
        with self._one(), self.demand.one() if wakes else contextlib.nullcontext():
            answer = await self._answer(request, wakes=wakes, opens=opens)
        if not isinstance(answer, web.Response):
            return answer  # a replica's, on its way already
        if self.draining:
            answer.force_close()
        origin = request.headers.get("Origin", "")
        return answers.allowed(answer, origin) if origin in self._settings.origins else answer

    async def finished(self) -> None:
        """Wait until no request is under way, counted or not."""
        while self._under_way:
            self._nothing.clear()
            await self._nothing.wait()

    @contextlib.contextmanager
    def _one(self) -> Iterator[None]:
        self._under_way += 1
        try:
            yield
        finally:
            self._under_way -= 1
            self._nothing.set()

    async def close(self) -> None:
        """Close the connections to the replicas."""
        if self._session is not None:
            await self._session.close()

    async def _answer(self, request: web.Request, *, wakes: bool, opens: bool) -> web.StreamResponse:
        self._session = self._session or new_session()
        deadline = asyncio.get_running_loop().time() + self._settings.hold_seconds
        while True:
            try:
                return await pass_on(request, self._session, self._backend, last=self.draining)
            except NotConnectedError:
                if not wakes:
                    return answers.without_a_replica(request, self._settings, opens=opens)
            refusal = await self._hold(deadline)
            if refusal is not None:
                self.demand.refused.labels(str(refusal.status)).inc()
                return refusal

    async def _hold(self, deadline: float) -> web.Response | None:
        """Wait until a replica can be reached; returns the refusal where that took too long or too many wait."""
        began = time.monotonic()
        try:
            with self.demand.held.track_inprogress():
                await self._room.wait(deadline)
        except RoomFullError:
            return answers.room_full(self._settings.hold_requests)
        except StillAsleepError:
            return answers.still_asleep(self._settings.hold_seconds)
        self.demand.hold_seconds.observe(time.monotonic() - began)
        return None


def client_app(activator: Activator) -> web.Application:
    """Return the face for clients: every path and method."""
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", activator.handle)
    return app


def control_app(activator: Activator) -> web.Application:
    """Return the face for the operator (/demand), probes (/healthz) and Prometheus (/metrics)."""

    async def demand(_: web.Request) -> web.Response:
        return web.json_response(activator.demand.report())

    async def healthz(_: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def metrics(_: web.Request) -> web.Response:
        body = generate_latest(activator.demand.registry)
        return web.Response(body=body, headers={"Content-Type": CONTENT_TYPE_LATEST})

    app = web.Application()
    app.add_routes([web.get("/demand", demand), web.get("/healthz", healthz), web.get("/metrics", metrics)])
    return app


def _is_quiet(path: str) -> bool:
    return path in QUIET or path.startswith("/v1/models/")
