"""POST /v1/chat/completions and /v1/completions: a request through the queue, and its answer to the client."""

import time
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

from fastapi import Request
from fastapi.responses import JSONResponse, Response
from starlette.concurrency import run_in_threadpool

from herdsman_server.answers import ENGINE_FAILED, Answer
from herdsman_server.connection import ClientLeftError, WatchedStream, while_connected
from herdsman_server.engine import ServedModel
from herdsman_server.gate import check_prompt, check_streams
from herdsman_server.generations import Answers, GenerationFailedError
from herdsman_server.openai_api import ApiError
from herdsman_server.state import ServerState
from herdsman_server.wanted import AnyRequest, wanted_generations
from herdsman_server.work_queue import Job, QueueClosedError, QueueFullError, WorkQueue

SHORT = 4000
"""Characters that are encoded in less than a millisecond or two."""


def opened(state: ServerState, name: str) -> tuple[ServedModel, WorkQueue]:
    """Return what a name stands for and its queue; ApiError 503 before it is loaded, 404 for no such name."""
    if state.served is None or state.queue is None:
        check_model(state, name)
        raise ApiError(503, "The model is still loading; try again shortly.", headers={"Retry-After": "5"})
    if (served := state.model(name)) is None:
        raise _no_such_model(state, name)
    return served, state.queue


def submit(queue: WorkQueue, jobs: Sequence[Job]) -> None:
    """Queue the jobs of a request; ApiError 429 where too many wait, 503 where the server stops."""
    try:
        queue.submit(jobs)
    except QueueFullError as error:
        message = f"{error.waiting} requests are waiting already; try again in {error.retry_after} s."
        raise ApiError(429, message, headers={"Retry-After": str(error.retry_after)}) from None
    except QueueClosedError:
        raise ApiError(503, "The server is shutting down; ask another replica.") from None


async def complete(
    state: ServerState,
    body: AnyRequest,
    request: Request,
    reshape: Callable[[dict[str, Any]], dict[str, Any]] = lambda answer: answer,
) -> Response:
    """Answer a request for completions, streamed or whole; `reshape` may give a whole one another shape."""
    began = time.monotonic()
    served, queue = opened(state, body.model)
    # Encoding a long text takes a while and stays off the event loop; for a short one that would be a detour.
    if body.characters <= SHORT and body.response_format is None:
        wanted = wanted_generations(served, state.limits, body)
    else:
        wanted = await run_in_threadpool(wanted_generations, served, state.limits, body)
    for each in wanted:
        check_prompt(state.limits, len(each.prompt))
    if body.stream:
        check_streams(state)
    answers = Answers(wanted)
    submit(queue, answers.generations)
    prompt_tokens = sum(len(each.prompt) for each in wanted[:: body.n])
    answer = Answer(body, body.model, prompt_tokens, len(wanted))
    events = while_connected(request, answers.events(), answers.leave)
    seconds = state.metrics.request_seconds.labels(request.scope["route"].path)
    if body.stream:
        chunks = _released(queue, answers, answer.stream(events), lambda: seconds.observe(_since(began)))
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        return WatchedStream(chunks, media_type="text/event-stream; charset=utf-8", headers=headers)
    try:
        return JSONResponse(reshape(await answer.whole(events)))
    except GenerationFailedError:
        raise ENGINE_FAILED from None
    except ClientLeftError:
        return Response(status_code=499)  # nobody reads it; it is counted under this status
    finally:
        queue.cancel(answers.generations)
        seconds.observe(_since(began))


async def _released(
    queue: WorkQueue, answers: Answers, chunks: AsyncIterator[str], on_end: Callable[[], None]
) -> AsyncIterator[str]:
    """Pass chunks on, and stop the generations when the client leaves."""
    try:
        async for chunk in chunks:
            yield chunk
    except ClientLeftError:
        return
    finally:
        queue.cancel(answers.generations)
        on_end()


def _since(began: float) -> float:
    return time.monotonic() - began


def check_model(state: ServerState, name: str) -> None:
    """Raise ApiError 404 for any name but those of the model and of its adapters."""
    if name not in state.model_names:
        raise _no_such_model(state, name)


def _no_such_model(state: ServerState, name: str) -> ApiError:
    known = ", ".join(repr(each) for each in state.model_names)
    message = f"The model {name!r} does not exist; this server has {known}."
    return ApiError(404, message, code="model_not_found", param="model")
