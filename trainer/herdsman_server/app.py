"""The HTTP face: OpenAI's routes, health, readiness and metrics."""

import time
from collections.abc import AsyncIterator, Callable
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.concurrency import run_in_threadpool

from herdsman_server.answers import (
    ENGINE_FAILED,
    Answer,
    AnyRequest,
    collect,
    model_card,
    model_list,
    wanted_generation,
)
from herdsman_server.connection import ClientLeftError, while_connected
from herdsman_server.errors import add_error_handlers
from herdsman_server.gate import Gate
from herdsman_server.generations import (
    Generation,
    GenerationFailedError,
    GenerationQueue,
    QueueClosedError,
    QueueFullError,
)
from herdsman_server.openai_api import ApiError, ChatRequest, CompletionRequest
from herdsman_server.state import ServerState


def create_app(state: ServerState) -> FastAPI:
    """Return the application; it answers 503 on the completion routes until `state.serve` was called."""
    app = FastAPI(title="Herdsman model server", version="1", docs_url="/docs", redoc_url=None)
    add_error_handlers(app)

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
