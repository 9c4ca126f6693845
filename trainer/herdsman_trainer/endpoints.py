"""/metrics for Prometheus and /progress for the operator, answered by threads of their own beside the work."""

import socket
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

ANSWER_SECONDS = 10.0
"""A connection that sends or takes nothing for so long is closed."""


class Endpoints:
    """An HTTP server on all addresses of the pod; port 0 takes a free one (`port` says which)."""

    def __init__(self, port: int, registry: CollectorRegistry, progress: Callable[[], bytes]) -> None:
        """Start serving; `progress` returns the JSON document of /progress. Raises OSError where the port is taken."""

        class Handler(_Handler):
            def answer(self, path: str) -> tuple[str, bytes] | None:
                if path == "/progress":
                    return "application/json", progress()
                if path == "/metrics":
                    encoder, content_type = choose_encoder(self.headers.get("Accept", ""))
                    return content_type, encoder(registry)
                return None

        self._server = _server(port, Handler)
        self.port = int(self._server.server_address[1])
        Thread(target=self._server.serve_forever, name="herdsman-endpoints", daemon=True).start()

    def close(self) -> None:
        """Stop serving."""
        self._server.shutdown()
        self._server.server_close()


class _Handler(BaseHTTPRequestHandler):
    timeout = ANSWER_SECONDS
    server_version = "herdsman"
    sys_version = ""

    def answer(self, path: str) -> tuple[str, bytes] | None:
        """Return content type and body of a page, or None where there is none."""
        raise NotImplementedError

    def do_GET(self) -> None:
        """Answer with the page, or with 404."""
        self.wfile.write(self._head())

    def do_HEAD(self) -> None:
        """Answer without the body."""
        self._head()

    def _head(self) -> bytes:
        """Send the head of the answer and return its body."""
        found = self.answer(self.path.partition("?")[0])
        status = HTTPStatus.OK if found is not None else HTTPStatus.NOT_FOUND
        content_type, body = found or ("text/plain; charset=utf-8", b"There are /metrics and /progress.\n")
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        return body

    def log_message(self, *_: Any) -> None:
        """Write no access log: the log is for the run."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: Any) -> None:
        """Say nothing of connections that break."""


class _DualStackServer(_Server):
    address_family = socket.AF_INET6

    def server_bind(self) -> None:
        self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        super().server_bind()


def _server(port: int, handler: type[_Handler]) -> _Server:
    """Listen for IPv4 and IPv6 where the machine has both."""
    if socket.has_dualstack_ipv6():
        try:
            return _DualStackServer(("::", port), handler)
        except OSError:  # IPv6 is compiled in and switched off
            pass
    return _Server(("0.0.0.0", port), handler)  # noqa: S104 - the operator and Prometheus ask from other pods
