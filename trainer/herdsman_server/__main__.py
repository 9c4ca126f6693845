"""`python -m herdsman_server --config FILE`: opens the port, loads the model, serves until SIGTERM.

The exit codes and the termination message are those of the trainer: 42 for bad input, 75 for what may pass.
"""

import argparse
import asyncio
import gc
import logging
import os
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import uvicorn
from pydantic import ValidationError

from herdsman.api.exit_codes import ExitCode, TerminationMessage
from herdsman.api.job_config import ServerConfig
from herdsman_server.app import create_app
from herdsman_server.keys import ApiKeys, keys_of
from herdsman_server.metrics_endpoint import serve_endpoint
from herdsman_server.startup import Startup, told
from herdsman_server.state import ServerState
from herdsman_trainer.errors import BadInput, StepError, Temporary

if TYPE_CHECKING:
    from herdsman_server.loading import Loaded

log = logging.getLogger("herdsman_server")

T = TypeVar("T")

CRASHED = 1


def main(argv: Sequence[str] | None = None) -> int:
    """Serve the model of the configuration file and return the exit code; never raises."""
    parser = argparse.ArgumentParser(prog="python -m herdsman_server", description="Serve a model with the OpenAI API.")
    parser.add_argument("--config", type=Path, required=True, help="the server's configuration, a JSON file")
    arguments = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    try:
        asyncio.run(serve(read_config(arguments.config), keys_of(os.environ)))
    except Exception as error:  # noqa: BLE001 - every end gets an exit code and a message
        if isinstance(known := told(error), StepError):
            sys.stderr.write(f"{known}\n")
            _say(known.termination_message())
            return int(known.exit_code)
        sys.stderr.write(traceback.format_exc())
        message = f"{type(error).__name__}: {error}"
        _say(TerminationMessage(reason="Crashed", message=message, hint="The log has the traceback."))
        return CRASHED
    return int(ExitCode.DONE)


def read_config(path: Path) -> ServerConfig:
    """Read the configuration; BadInput names the first wrong field."""
    try:
        return ServerConfig.model_validate_json(path.read_bytes())
    except OSError as error:
        raise BadInput(f"The configuration cannot be read: {error.strerror}.", file=str(path)) from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the document"
        hint = "Operator and server image must be of the same version."
        raise BadInput(f"{where}: {first['msg']}.", file=str(path), hint=hint) from None


def bind(host: str, port: int) -> socket.socket:
    """Open the port; Temporary where another program has it."""
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise _taken("spec.port", host, port, error) from None
    return listener


def serve_metrics(config: ServerConfig, state: ServerState) -> None:
    """Serve the metrics on their port from a thread of its own; Temporary where another program has the port."""
    if not config.metrics_port:
        return
    try:
        serve_endpoint(config.host, config.metrics_port, state.metrics.registry, state.adapter_report)
    except OSError as error:
        raise _taken("spec.metricsPort", config.host, config.metrics_port, error) from None


def _taken(field: str, host: str, port: int, error: OSError) -> Temporary:
    hint = f"Choose another {field}, or end the program that uses it."
    return Temporary(f"The port {port} of {host} cannot be opened: {error.strerror}.", hint=hint)


async def serve(config: ServerConfig, keys: ApiKeys) -> None:
    """Serve until SIGTERM or SIGINT; the port answers at once, the model when it is loaded.

    After the signal requests are still accepted for `accept_seconds`, while those who send them learn from /readyz
    that they should not; then what is under way has `limits.drain_seconds` to finish. A second signal ends the former.

    Raises what loading raised, BadInput above all.
    """
    origins, dialect = config.cors_origins, config.dialect
    state = ServerState(config.model_name, config.limits, keys, cors_origins=origins, dialect=dialect)
    serve_metrics(config, state)
    listener = bind(config.host, config.port)
    settings = uvicorn.Config(
        create_app(state),
        log_config=None,
        access_log=False,
        lifespan="off",
        timeout_graceful_shutdown=config.limits.drain_seconds,
    )
    server = _Server(settings)
    loop = asyncio.get_running_loop()

    def stop(number: signal.Signals) -> None:
        again, waits = state.draining, config.accept_seconds if state.queue is not None else 0
        state.drain()
        if again or not waits:
            server.handle_exit(number, None)
        else:
            log.info("%s: requests are accepted for another %d s.", number.name, waits)
            loop.call_later(waits, server.handle_exit, number, None)

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop, number)
    startup = Startup(state.metrics)
    loaded = _in_daemon_thread(lambda: _load(config, startup))
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    log.info("The port %d is open; the model is loading.", config.port)
    either: set[asyncio.Future[Any]] = {serving, loaded}
    await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
    if loaded.done() and loaded.exception() is None and not serving.done():
        state.serve(*loaded.result())
        gc.freeze()  # what was loaded stays; looking through it for garbage would hold requests up
        log.info("Ready: %s answers on port %d (%s).", config.model_name, config.port, startup)
    elif loaded.done():
        server.should_exit = True
    await serving
    state.close()
    if loaded.done():
        loaded.result()


def _load(config: ServerConfig, startup: Startup) -> "Loaded":
    with startup.phase("import"):
        # Here because torch and transformers take seconds, in which the port already answers the liveness probe.
        from herdsman_server.loading import load_served_model

    return load_served_model(config, startup)


class _Server(uvicorn.Server):
    """uvicorn without its signal handling, which would kill the process before the queue is closed."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def _in_daemon_thread(work: Callable[[], T]) -> asyncio.Future[T]:
    """Run something in a thread that does not keep the process alive: SIGTERM may come while a model loads."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def settle(result: T | None, error: BaseException | None) -> None:
        if future.cancelled():
            return
        if error is not None:
            future.set_exception(error)
        elif result is not None:
            future.set_result(result)

    def run() -> None:
        result, error = None, None
        try:
            result = work()
        except Exception as raised:  # noqa: BLE001 - handed to whoever awaits the future
            error = raised
        with suppress(RuntimeError):  # the loop is gone: nobody waits any more
            loop.call_soon_threadsafe(settle, result, error)

    threading.Thread(target=run, name="loading", daemon=True).start()
    return future


def _say(message: TerminationMessage) -> None:
    path = Path(os.environ.get("HERDSMAN_TERMINATION_FILE", "/dev/termination-log"))
    try:
        path.write_bytes(message.to_bytes())
    except OSError as error:
        sys.stderr.write(f"The termination message was not written: {error}\n{message.to_bytes().decode()}\n")


if __name__ == "__main__":
    code = main()
    sys.stderr.flush()
    # Without the interpreter's clean-up, which a thread that is still loading a model would turn into an abort.
    os._exit(code)
