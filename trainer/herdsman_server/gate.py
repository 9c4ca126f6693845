"""What stands before the routes: the API key, limits of size and time, and the count of answers."""

import asyncio
import json
import logging
import traceback
from collections.abc import Sequence
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from herdsman.api.v1alpha1.model_server import ServerLimits
from herdsman_server.answers import ENGINE_FAILED
from herdsman_server.bodies import BodyNotReadError, check_text, linger, read_body, replayed
from herdsman_server.openai_api import ApiError
from herdsman_server.state import ServerState

log = logging.getLogger(__name__)

CLIENT_LEFT = "499"
"""The status under which requests are counted whose client did not wait for the answer."""
EVENT_STREAM = b"text/event-stream"


class Gate:
    """Checks the key, reads the body within its limits, and ends what takes too long; streams pass as they come.

    While the server is about to stop, each answer is the last one of its connection.
    """

    def __init__(self, app: ASGIApp, state: ServerState) -> None:
        self._app = app
        self._state = state

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection."""
        if scope["type"] != "http" or not scope["path"].startswith("/v1/"):
            await self._app(scope, receive, send)
            return
        passage = _Passage(self._state, send)
        try:
            await self._pass(scope, receive, passage)
        finally:
            passage.close()
            # Only routes that exist become label values, or anybody could make series without end.
            route = scope.get("route")
            endpoint = route.path if route is not None else "other"
            self._state.metrics.requests.labels(endpoint, passage.status).inc()

    async def _pass(self, scope: Scope, receive: Receive, passage: "_Passage") -> None:
        seconds = self._state.limits.request_seconds
        try:
            if not self._state.api_keys.opens(_header(scope, b"authorization")):
                raise _unauthorised()
            body = await read_body(scope, receive, self._state.limits)
            check_text(body)
            async with asyncio.timeout(seconds):
                await self._app(scope, replayed(body, receive), passage.send)
        except BodyNotReadError:
            passage.status = CLIENT_LEFT
        except ApiError as error:
            await passage.refuse(error, receive)
        except TimeoutError:
            await passage.refuse(_too_long(seconds))
        except Exception as error:  # noqa: BLE001 - whatever it is, its message may quote the request
            _log_without_words(scope, error)
            await passage.refuse(ENGINE_FAILED)


def check_prompt(limits: ServerLimits, tokens: int) -> None:
    """Raise ApiError where a prompt has more tokens than this server takes, whatever its model could."""
    if limits.prompt_tokens is not None and tokens > limits.prompt_tokens:
        message = f"The prompt has {tokens} tokens and this server takes {limits.prompt_tokens}; shorten it."
        raise ApiError(400, message, code="context_length_exceeded")


def check_streams(state: ServerState) -> None:
    """Raise ApiError where as many answers are streamed as may be."""
    if state.streams >= state.limits.streams:
        message = f"{state.streams} answers are being streamed already; try again in 1 s."
        raise ApiError(429, message, headers={"Retry-After": "1"})


def cors(origins: Sequence[str]) -> dict[str, Any]:
    """Return the settings of the middleware that lets web pages of these origins, and no others, use the API.

    Cookies mean nothing here and are not asked for.
    """
    return {
        "allow_origins": list(origins),
        "allow_methods": ["GET", "POST"],
        "allow_headers": ["*"],
        "expose_headers": ["Retry-After", "X-Request-Id"],
        "max_age": 600,
    }


class _Passage:
    """One answer on its way out."""

    def __init__(self, state: ServerState, send: Send) -> None:
        self._state = state
        self._send = send
        self._started = False
        self._streams = False
        self._ended = False
        self.status = "500"

    async def send(self, message: Message) -> None:
        """Pass a message of the routes on."""
        if message["type"] == "http.response.start":
            message = self._start(message)
        else:
            self._ended = not message.get("more_body", False)
        await self._send(message)

    def _start(self, message: Message) -> Message:
        headers = list(message.get("headers", ()))
        if any(name == b"content-type" and value.startswith(EVENT_STREAM) for name, value in headers):
            self._state.streams += 1
            self._streams = True
        self._started = True
        self.status = str(message["status"])
        if self._state.draining:
            headers.append((b"connection", b"close"))
        return {**message, "headers": headers}

    async def refuse(self, error: ApiError, receive: Receive | None = None) -> None:
        """Answer with an error, or end a stream with it; what the client still sends is thrown away."""
        body = json.dumps(error.body, ensure_ascii=False).encode()
        if self._ended:
            return
        if self._streams:
            end = b"data: " + body + b"\n\ndata: [DONE]\n\n"
            await self.send({"type": "http.response.body", "body": end, "more_body": False})
            return
        if self._started:
            raise _CutOffError from None
        headers = {"Content-Type": "application/json", "Content-Length": str(len(body)), **(error.headers or {})}
        raw = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
        await self.send({"type": "http.response.start", "status": error.status, "headers": raw})
        if receive is not None and headers.get("Connection") == "close":
            # The length is stated, so the client has the whole answer before this.
            await self.send({"type": "http.response.body", "body": body, "more_body": True})
            await linger(receive)
            body = b""
        await self.send({"type": "http.response.body", "body": body, "more_body": False})

    def close(self) -> None:
        """Count a stream no longer."""
        if self._streams:
            self._state.streams -= 1


class _CutOffError(Exception):
    """An answer of known length cannot be completed; the connection is closed, by which the client knows."""


def _header(scope: Scope, wanted: bytes) -> bytes:
    return next((bytes(value) for name, value in scope["headers"] if name == wanted), b"")


def _unauthorised() -> ApiError:
    message = "The API key is missing or wrong; send it as `Authorization: Bearer KEY`."
    return ApiError(401, message, code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"})


def _too_long(seconds: int) -> ApiError:
    message = f"The answer was not complete after {seconds} s, the longest a request may take; ask for fewer tokens."
    return ApiError(504, message, code="timeout")


def _log_without_words(scope: Scope, error: Exception) -> None:
    """Say what failed and where, but not the exception's message: that may quote what the client wrote."""
    where = "".join(traceback.format_tb(error.__traceback__))
    log.error("%s %s failed with %s:\n%s", scope["method"], scope["path"], type(error).__name__, where)
