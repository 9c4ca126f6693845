"""/livez, /readyz and /metrics on one port."""

import time
from collections.abc import Awaitable, Callable

from aiohttp import web
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from herdsman.kube.operator import Readiness
from herdsman.kube.pulse import LONGEST_LAG, LoopPulse, WatchPulse


class Health:
    """What is wrong with the process, and with its start."""

    def __init__(self, loop: LoopPulse, watches: WatchPulse, readiness: Readiness) -> None:
        self._loop = loop
        self._watches = watches
        self._readiness = readiness

    def ailments(self) -> list[str]:
        """Return why the process should be started anew; nothing where it lives well.

        An API server that is away is no reason: a new process would not find it either.
        """
        stuck = [f"the event loop was {self._loop.lag:.0f} s late"] if self._loop.lag > LONGEST_LAG else []
        return [*stuck, *self._watches.silent()]

    def obstacles(self) -> list[str]:
        """Return why the operator does not work yet; nothing where it does, or stands by while another one does.

        A replica that stands by is as ready as it can be: a roll-out that waits for it would wait for ever otherwise.
        """
        return [] if self._readiness.listed or self._readiness.standing_by else [self._readiness.problem]

    def figures(self) -> dict[str, float]:
        """Return what Prometheus is told of it."""
        listed = self._readiness.listed_at
        age = {"herdsman_resync_age_seconds": time.monotonic() - listed} if listed else {}
        return {"herdsman_loop_lag_seconds": self._loop.lag, **age}


def make_app(health: Health, registry: CollectorRegistry) -> web.Application:
    """Return the HTTP application."""

    def answer(problems: list[str]) -> web.Response:
        return web.Response(text="".join(f"{line}\n" for line in problems) or "ok\n", status=503 if problems else 200)

    async def livez(_: web.Request) -> web.Response:
        return answer(health.ailments())

    async def readyz(_: web.Request) -> web.Response:
        return answer(health.obstacles())

    async def metrics(_: web.Request) -> web.Response:
        return web.Response(body=generate_latest(registry), headers={"Content-Type": CONTENT_TYPE_LATEST})

    app = web.Application()
    app.add_routes([web.get("/livez", livez), web.get("/readyz", readyz), web.get("/metrics", metrics)])
    return app


async def serve(app: web.Application, port: int, host: str = "0.0.0.0") -> Callable[[], Awaitable[object]]:  # noqa: S104 - a pod's port
    """Serve until the returned coroutine function is called."""
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, host, port).start()
    return runner.cleanup
