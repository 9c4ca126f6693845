"""`python -m herdsman.activator`: holds and passes on until SIGTERM.

After the signal it goes on for a while, in which the cluster sends new requests elsewhere, then takes no more, and ends
when those under way are answered. A second signal ends it at once.
"""

import argparse
import asyncio
import logging
import os
import signal
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

from aiohttp import web

from herdsman.activator.app import Activator, client_app, control_app
from herdsman.activator.settings import Settings
from herdsman.api_keys import ApiKeys

KEY_FILE_VARIABLE = "HERDSMAN_API_KEY_FILE"
BACKLOG = 1024
"""Connections that may wait to be accepted."""
CLOSING_SECONDS = 1.0
"""How long connections on which nothing is under way have to close."""
log = logging.getLogger("herdsman.activator")


def make_parser() -> argparse.ArgumentParser:
    """Return the command line."""
    parser = argparse.ArgumentParser(prog="herdsman-activator", description="Holds requests while a server starts.")
    parser.add_argument("--backend", required=True, metavar="URL", help="the Service of the replicas")
    parser.add_argument("--model", required=True, help="the name clients ask for")
    parser.add_argument("--host", default="0.0.0.0", help="the address to listen on (%(default)s)")  # noqa: S104
    parser.add_argument("--port", type=int, default=8000, help="the port for clients (%(default)s)")
    parser.add_argument(
        "--control-port", type=int, default=9400, help="the port of /demand, /healthz and /metrics (%(default)s)"
    )
    parser.add_argument("--hold-seconds", type=float, default=600, help="a request waits so long at most (%(default)s)")
    parser.add_argument("--hold-requests", type=int, default=32, help="so many wait at most (%(default)s)")
    parser.add_argument("--origin", action="append", default=[], help="web pages of this origin may ask; repeatable")
    parser.add_argument(
        "--accept-seconds", type=float, default=0, help="after SIGTERM requests are taken for so long (%(default)s)"
    )
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the activator; returns its exit code."""
    given = make_parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    file = os.environ.get(KEY_FILE_VARIABLE)
    settings = Settings(
        backend=given.backend,
        model=given.model,
        hold_seconds=given.hold_seconds,
        hold_requests=given.hold_requests,
        origins=frozenset(given.origin),
        keys=ApiKeys(file=Path(file) if file else None),
    )
    return asyncio.run(run(settings, given.host, given.port, given.control_port, given.accept_seconds))


async def run(settings: Settings, host: str, port: int, control_port: int, accept_seconds: float) -> int:
    """Serve both faces until a signal; returns the exit code."""
    activator = Activator(settings)
    clients = web.AppRunner(
        client_app(activator), access_log=None, handler_cancellation=True, shutdown_timeout=CLOSING_SECONDS
    )
    control = web.AppRunner(control_app(activator), access_log=None)
    asked, again = _signals()
    try:
        listener = socket.create_server((host, port), backlog=BACKLOG)
        await clients.setup()
        await web.SockSite(clients, listener, backlog=BACKLOG).start()
        await control.setup()
        await web.TCPSite(control, host, control_port).start()
    except OSError as error:
        log.error("A port cannot be opened: %s", error)
        return 1
    log.info("Holds and passes on for %s on port %d, to %s.", settings.model, port, settings.backend)
    await asked.wait()
    activator.draining = True
    log.info("Asked to end: what is under way is finished first.")
    ending = asyncio.create_task(_end(activator, clients, listener, accept_seconds))
    hurry = asyncio.create_task(again.wait())
    await asyncio.wait({ending, hurry}, return_when=asyncio.FIRST_COMPLETED)
    for task in (ending, hurry):
        task.cancel()
    # Last, so that the operator hears until the end that requests are under way.
    await control.cleanup()
    await activator.close()
    return 0


async def _end(activator: Activator, clients: web.AppRunner, listener: socket.socket, accept_seconds: float) -> None:
    """Take requests for a while more, then no connections, and return once everything is answered."""
    await asyncio.sleep(accept_seconds)
    # Accepting ends before the socket is closed: asyncio would forget a connection that it has just accepted.
    asyncio.get_running_loop().remove_reader(listener.fileno())
    await asyncio.sleep(0.01)
    for site in list(clients.sites):
        await site.stop()
    # Not left to the runner: it would leave those unanswered that have connected and not asked yet.
    await asyncio.sleep(CLOSING_SECONDS)
    await activator.finished()
    await clients.cleanup()


def _signals() -> tuple[asyncio.Event, asyncio.Event]:
    """Return what is set by a first and by a second SIGTERM or SIGINT."""
    asked, again = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, lambda: (again if asked.is_set() else asked).set())
    return asked, again


if __name__ == "__main__":
    code = main()
    sys.stderr.flush()
    # Without the clean-up of what a second signal left under way.
    os._exit(code)
