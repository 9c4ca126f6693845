"""The operator's process: everything in one event loop, from the lease to the last farewell."""

import asyncio
import contextlib
import gc
import logging
import signal
from collections.abc import AsyncIterator, Coroutine
from dataclasses import dataclass
from typing import Any

import kopf

from herdsman.core.site import Site
from herdsman.kube.api import KubeApi
from herdsman.kube.handlers import make_registry, make_settings, straight_on
from herdsman.kube.health import Health, make_app, serve
from herdsman.kube.lease import Lease, Lost
from herdsman.kube.listing import CHILDREN, OURS
from herdsman.kube.live import HttpFetch
from herdsman.kube.metrics import Metrics, ShellCollector
from herdsman.kube.operator import Operator
from herdsman.kube.pulse import LoopPulse, WatchPulse
from herdsman.kube.shell import Shell, make_shell

DRAIN_SECONDS = 5.0
"""What is under way when the process is asked to end may take this long."""
FAREWELL_SECONDS = 12.0
"""And the event source after that."""
YOUNG_OBJECTS = 50_000
"""New objects after which garbage is looked for: one watch event is hundreds, none of which are in a cycle."""
_log = logging.getLogger("herdsman")


@dataclass(frozen=True)
class Options:
    """How the process was started."""

    site: Site
    namespaces: tuple[str, ...] = ()
    """None: all."""
    port: int = 8080
    """Of /livez, /readyz and /metrics."""
    workers: int = 16
    lease: tuple[str, str] | None = None
    """Namespace and name; None where there is one replica."""
    identity: str = "herdsman"


async def run(options: Options) -> int:
    """Run until a signal asks to end (0) or something cannot go on (1)."""
    gc.set_threshold(YOUNG_OBJECTS, *gc.get_threshold()[1:])
    stop = asyncio.Event()
    _on_signals(stop)
    async with contextlib.AsyncExitStack() as stack:
        metrics = Metrics()
        api = await KubeApi.connect(count=metrics.count_request)
        stack.push_async_callback(api.close)
        fetch = HttpFetch()
        stack.push_async_callback(fetch.close)
        shell = make_shell(api, fetch)
        operator = Operator(shell, options.site, metrics, namespaces=options.namespaces, workers=options.workers)
        await stack.enter_async_context(_health(options, shell, operator, metrics))
        lease = Lease(api, *options.lease, options.identity) if options.lease else None
        work = asyncio.create_task(_work(options, shell, operator, lease, stop), name="work")
        stopped = asyncio.create_task(stop.wait(), name="stop")
        await asyncio.wait({work, stopped}, return_when=asyncio.FIRST_COMPLETED)
        stop.set()
        if not work.done():
            _log.info("asked to end: what is under way is finished first")
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(asyncio.shield(work), DRAIN_SECONDS + FAREWELL_SECONDS)
        return _outcome(work)


@contextlib.asynccontextmanager
async def _health(options: Options, shell: Shell, operator: Operator, metrics: Metrics) -> AsyncIterator[None]:
    loop_pulse, watch_pulse = LoopPulse(), WatchPulse(shell.intake, {*OURS, *CHILDREN})
    health = Health(loop_pulse, watch_pulse, operator.readiness)
    metrics.registry.register(ShellCollector(shell, health.figures))
    ticking = asyncio.create_task(loop_pulse.run(), name="pulse")
    cleanup = await serve(make_app(health, metrics.registry), options.port)
    try:
        yield
    finally:
        ticking.cancel()
        await cleanup()


async def _work(options: Options, shell: Shell, operator: Operator, lease: Lease | None, stop: asyncio.Event) -> None:
    if lease is not None:
        if not await _unless(stop, lease.acquire(operator.readiness.stand_by)):
            return
        operator.readiness.take_over()
    if not await _unless(stop, operator.list_until_done()):
        return
    gc.freeze()  # what was listed mostly stays, and need not be looked through for garbage ever again
    tasks = [asyncio.create_task(operator.run(), name="operator")]
    if lease is not None:
        tasks.append(asyncio.create_task(lease.keep(), name="lease"))
    farewell = asyncio.Event()
    source = asyncio.create_task(_watch(options, shell, stop, farewell), name="watches")
    waiting = asyncio.create_task(stop.wait(), name="asked to end")
    try:
        done, _ = await asyncio.wait({*tasks, source, waiting}, return_when=asyncio.FIRST_COMPLETED)
        if lease is None or tasks[-1] not in done:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(operator.drain(), DRAIN_SECONDS)
    finally:
        for task in (*tasks, waiting):
            task.cancel()
        ended = await asyncio.gather(*tasks, return_exceptions=True)
        farewell.set()
        await source
    for error in ended:
        if isinstance(error, Exception):
            raise error
    if lease is not None:
        await lease.release()


async def _watch(options: Options, shell: Shell, stop: asyncio.Event, farewell: asyncio.Event) -> None:
    """Run kopf, which takes the signals for itself: they are taken back."""
    before = asyncio.all_tasks()
    with straight_on(shell.intake):
        tasks = await kopf.spawn_tasks(
            registry=make_registry(shell.intake),
            settings=make_settings(),
            clusterwide=not options.namespaces,
            namespaces=options.namespaces,
            standalone=True,
            stop_flag=farewell,
        )
    _on_signals(stop)
    await kopf.run_tasks(tasks, ignored=before)


async def _unless(stop: asyncio.Event, work: Coroutine[Any, Any, None]) -> bool:
    """Do the work unless asked to end before it is done; returns whether it was done."""
    working, stopped = asyncio.create_task(work), asyncio.create_task(stop.wait())
    try:
        await asyncio.wait({working, stopped}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            return False
        working.result()
        return True
    finally:
        working.cancel()
        stopped.cancel()


def _outcome(work: "asyncio.Task[None]") -> int:
    if not work.done():
        _log.error("what is under way did not end in time, and is given up")
        work.cancel()
        return 1
    error = work.exception()
    if error is None:
        return 0
    if isinstance(error, Lost):
        _log.error("%s: another replica may work now, so this one ends", error)
    else:
        _log.error("the operator cannot go on and ends, to be started anew", exc_info=error)
    return 1


def _on_signals(stop: asyncio.Event) -> None:
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
