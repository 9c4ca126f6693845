"""An activator on a free port of this process, and replicas that come and go, in one event loop."""

import asyncio
import contextlib
import json
import socket

import aiohttp
from aiohttp import web

from herdsman.activator.app import Activator, client_app, control_app
from herdsman.activator.settings import Settings


class Stage:
    """Clients, one activator, and at most one replica."""

    def __init__(self, **settings):
        self._stack = contextlib.AsyncExitStack()
        self.replica_port = free_port()
        given = {"hold_seconds": 5.0, "hold_requests": 3, "model": "demo", **settings}
        self.activator = Activator(Settings(backend=f"http://127.0.0.1:{self.replica_port}", **given))
        self.seen = []
        """(method, path with query, headers, body) of what reached the replica."""
        self.answer = self._say_hello
        self.left = asyncio.Event()
        """Set when a client has left the replica before its answer was complete."""

    async def __aenter__(self):
        clients = await self._serve(client_app(self.activator), 0, handler_cancellation=True)
        control = await self._serve(control_app(self.activator), 0)
        self.url = f"http://127.0.0.1:{clients}"
        self.control = f"http://127.0.0.1:{control}"
        self.http = await self._stack.enter_async_context(
            aiohttp.ClientSession(auto_decompress=False, timeout=aiohttp.ClientTimeout(total=20))
        )
        self._stack.push_async_callback(self.activator.close)
        return self

    async def __aexit__(self, *_):
        await self._stack.aclose()

    async def start_replica(self):
        app = web.Application(client_max_size=2**26)
        app.router.add_route("*", "/{path:.*}", self._record)
        await self._serve(app, self.replica_port, handler_cancellation=True)

    async def demand(self):
        """What the operator is told."""
        async with self.http.get(f"{self.control}/demand") as answer:
            return await answer.json()

    async def metrics(self):
        async with self.http.get(f"{self.control}/metrics") as answer:
            return await answer.text()

    async def ask(self, path="/v1/chat/completions", *, method="POST", **options):
        """(status, headers, body) of an answer."""
        async with self.http.request(method, self.url + path, **options) as answer:
            return answer.status, answer.headers, await answer.read()

    async def held(self, count):
        """Wait until so many requests are held."""
        while self.activator._room.waiting != count:
            await asyncio.sleep(0.01)

    async def _record(self, request):
        self.seen.append((request.method, request.path_qs, request.headers.copy(), await request.read()))
        try:
            return await self.answer(request)
        except asyncio.CancelledError:
            self.left.set()
            raise

    async def _say_hello(self, _request):
        return web.Response(text="hello")

    async def _serve(self, app, port, **options):
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0, **options)
        await runner.setup()
        self._stack.push_async_callback(runner.cleanup)
        site = web.TCPSite(runner, "127.0.0.1", port)
        await site.start()
        return site._server.sockets[0].getsockname()[1]


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def error(body):
    return json.loads(body)["error"]


def play(scene, **settings):
    """Run a coroutine function of a test with a stage of its own."""

    async def run():
        async with Stage(**settings) as stage:
            return await scene(stage)

    return asyncio.run(run())
