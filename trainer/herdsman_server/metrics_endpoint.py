"""/metrics for Prometheus and /adapters for the operator, on a port that no client reaches."""

import socket
from collections.abc import Callable, Iterable
from threading import Thread
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, make_server

from prometheus_client import CollectorRegistry, make_wsgi_app
from prometheus_client.exposition import ThreadingWSGIServer


def serve_endpoint(host: str, port: int, registry: CollectorRegistry, adapters: Callable[[], bytes]) -> None:
    """Answer from a thread of its own, /adapters with what `adapters` returns; OSError where the port is taken."""
    metrics = make_wsgi_app(registry)

    def answer(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        if environ["PATH_INFO"] != "/adapters":
            found: Iterable[bytes] = metrics(environ, start_response)
            return found
        body = adapters()
        start_response("200 OK", [("Content-Type", "application/json"), ("Content-Length", str(len(body)))])
        return [body]

    class Server(ThreadingWSGIServer):
        daemon_threads = True
        address_family = socket.AF_INET6 if ":" in host else socket.AF_INET

    server = make_server(host, port, answer, Server, handler_class=_Silent)
    Thread(target=server.serve_forever, name="metrics", daemon=True).start()


class _Silent(WSGIRequestHandler):
    def log_message(self, *_: Any) -> None:
        """Write no access log."""
