"""The HTTP face: OpenAI's routes, health, readiness and metrics."""

import hmac
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from herdsman.api.v1alpha1.model_server import ServerLimits
from herdsman_server.answers import (
    ENGINE_FAILED,
    Answer,
    AnyRequest,
    collect,
    model_card,
    model_list,
    validation_message,
    wanted_generation,
)
from herdsman_server.connection import ClientLeftError, while_connected
from herdsman_server.engine import ServedModel
from herdsman_server.generations import (
    Generation,
    GenerationFailedError,
    GenerationQueue,
    QueueClosedError,
    QueueFullError,
)
from herdsman_server.metrics import ServerMetrics
from herdsman_server.openai_api import ApiError, ChatRequest, CompletionRequest


@dataclass
class ServerState:
    """What the routes work with; the model comes in later than the port is open."""

    model_name: str
    limits: ServerLimits = field(default_factory=ServerLimits)
    api_keys: Sequence[bytes] = ()
    """Any of these opens /v1; none leaves it open."""
    metrics: ServerMetrics = field(default_factory=ServerMetrics)
    served: ServedModel | None = None
    queue: GenerationQueue | None = None
    draining: bool = False
    """Whether the server goes on answering and is about to stop: nobody should send it anything new."""
    started: int = field(default_factory=lambda: int(time.time()))

    @property
    def unready(self) -> str | None:
        """Why nothing should be sent here, or None."""
        if self.draining:
            return "the server is stopping"
        return "the model is loading" if self.queue is None else None

    def serve(self, served: ServedModel) -> None:
        """Open the completion routes for a model that has answered once."""
        self.served = served
        self.queue = GenerationQueue(served.engine, served.tokenizer, self.limits.queue_length, self.metrics)
        self.metrics.ready.set(1)

    def drain(self) -> None:
        """Say that the server stops, and go on answering; clients that keep a connection open are told to drop it."""
        self.draining = True
        self.metrics.ready.set(0)

    def close(self) -> None:
        """Finish what is queued and end the worker."""
        self.metrics.ready.set(0)
        if self.queue is not None:
            self.queue.close()


def create_app(state: ServerState) -> FastAPI:
    """Return the application; it answers 503 on the completion routes until `state.serve` was called."""
    app = FastAPI(title="Herdsman model server", version="1", docs_url="/docs", redoc_url=None)
    _add_errors(app)

    app.add_middleware(Gate, state=state)

    @app.get("/healthz")
    async def healthz() -> PlainTextResponse:
        """The process answers."""
        return PlainTextResponse("ok\n")

    @app.get("/readyz")
    async def readyz() -> PlainTextResponse:
        """The model is loaded and has generated a token, and the server is not about to stop."""
        return PlainTextResponse(f"{state.unready or 'ok'}\n", 503 if state.unready else 200)

    @app.get("/metrics")
    async def metrics() -> Response:
        """Prometheus' text format."""
        return Response(state.metrics.exposition(), media_type="text/plain; version=0.0.4; charset=utf-8")

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        """The one model there is."""
        return model_list(state.model_name, state.started)

    @app.get("/v1/models/{name:path}")
    async def model(name: str) -> dict[str, Any]:
        """One model."""
        _check_model(state, name)
        return model_card(name, state.started)

    @app.post("/v1/chat/completions")
    async def chat_completions(body: ChatRequest, request: Request) -> Response:
        """The next turn of a conversation."""
        return await _answer(state, body, request)

    @app.post("/v1/completions")
    async def completions(body: CompletionRequest, request: Request) -> Response:
        """The continuation of a text."""
        return await _answer(state, body, request)

    return app


async def _answer(state: ServerState, body: AnyRequest, request: Request) -> Response:
    began = time.monotonic()
    _check_model(state, body.model)
    if state.served is None or state.queue is None:
        raise ApiError(503, "The model is still loading; try again shortly.", headers={"Retry-After": "5"})
    # Encoding a long text takes a while and stays off the event loop.
    wanted = await run_in_threadpool(wanted_generation, state.served, state.limits, body)
    generation = Generation(wanted)
    try:
        state.queue.submit(generation)
    except QueueFullError as error:
        message = f"{error.waiting} requests are waiting already; try again in {error.retry_after} s."
        raise ApiError(429, message, headers={"Retry-After": str(error.retry_after)}) from None
    except QueueClosedError:
        raise ApiError(503, "The server is shutting down; ask another replica.") from None
    answer = Answer(body, len(wanted.prompt))
    events = while_connected(request, generation.events())
    seconds = state.metrics.request_seconds.labels(request.scope["route"].path)
    if body.stream:
        chunks = _released(state.queue, generation, answer.stream(events), lambda: seconds.observe(_since(began)))
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        return StreamingResponse(chunks, media_type="text/event-stream; charset=utf-8", headers=headers)
    try:
        text, finished = await collect(events)
    except GenerationFailedError:
        raise ENGINE_FAILED from None
    except ClientLeftError:
        return Response(status_code=499)  # nobody reads it; it is counted under this status
    finally:
        state.queue.cancel(generation)
        seconds.observe(_since(began))
    return JSONResponse(answer.whole(text, finished))


async def _released(
    queue: GenerationQueue, generation: Generation, chunks: AsyncIterator[str], on_end: Callable[[], None]
) -> AsyncIterator[str]:
    """Pass chunks on, and stop the generation when the client leaves."""
    try:
        async for chunk in chunks:
            yield chunk
    except ClientLeftError:
        return
    finally:
        queue.cancel(generation)
        on_end()


def _since(began: float) -> float:
    return time.monotonic() - began


def _check_model(state: ServerState, name: str) -> None:
    if name != state.model_name:
        message = f"The model {name!r} does not exist; this server has {state.model_name!r}."
        raise ApiError(404, message, code="model_not_found", param="model")


class Gate:
    """Checks the API key and counts answers, before and behind the routes; it leaves streams alone.

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
        status = "500"

        async def counted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = str(message["status"])
                if self._state.draining:
                    message = {**message, "headers": [*message.get("headers", ()), (b"connection", b"close")]}
            await send(message)

        try:
            if _authorised(Request(scope), self._state.api_keys):
                await self._app(scope, receive, counted)
            else:
                message = "The API key is missing or wrong; send it as `Authorization: Bearer KEY`."
                await _error(ApiError(401, message, code="invalid_api_key"))(scope, receive, counted)
        finally:
            # Only routes that exist become label values, or anybody could make series without end.
            route = scope.get("route")
            endpoint = route.path if route is not None else "other"
            self._state.metrics.requests.labels(endpoint, status).inc()


def _authorised(request: Request, keys: Sequence[bytes]) -> bool:
    if not keys:
        return True
    given = request.headers.get("authorization", "").removeprefix("Bearer ").strip().encode()
    # Every key is compared, each in constant time, so that the time tells nothing.
    matches = [hmac.compare_digest(given, key) for key in keys]
    return any(matches)


def _error(error: ApiError) -> JSONResponse:
    return JSONResponse(error.body, error.status, headers=error.headers)


def _add_errors(app: FastAPI) -> None:
    @app.exception_handler(ApiError)
    async def api_error(_: Request, error: ApiError) -> Response:
        return _error(error)

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> Response:
        message, param = validation_message(error.errors())
        return _error(ApiError(400, message, param=param))

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> Response:
        message = f"{request.method} {request.url.path}: {error.detail}."
        return _error(ApiError(error.status_code, message, headers=dict(error.headers or {})))

    @app.exception_handler(Exception)
    async def crash(_: Request, __: Exception) -> Response:
        return _error(ENGINE_FAILED)
