"""POST /v1/embeddings: texts as vectors of length 1."""

import asyncio
import base64
import threading
import time
from collections.abc import AsyncIterator, Sequence

import numpy as np
from fastapi import Request
from fastapi.responses import JSONResponse, Response
from starlette.concurrency import run_in_threadpool

from herdsman.api.v1alpha1.model_server import ServerLimits
from herdsman_server.answers import ENGINE_FAILED
from herdsman_server.completions import opened, submit
from herdsman_server.connection import ClientLeftError, while_connected
from herdsman_server.engine import Engine, ServedModel, UnsupportedError
from herdsman_server.gate import check_prompt
from herdsman_server.metrics import ServerMetrics
from herdsman_server.openai_api import ApiError, EmbeddingsRequest
from herdsman_server.state import ServerState
from herdsman_server.wanted import text_ids
from herdsman_trainer.tokenizers import TextTokenizer

Vectors = list[list[float]]


class Embedding:
    """The vectors of one request, a job for the work queue."""

    def __init__(self, texts: Sequence[Sequence[int]]) -> None:
        self.cancelled = threading.Event()
        self._texts = texts
        self._loop = asyncio.get_running_loop()
        self._done: asyncio.Queue[Vectors | Exception] = asyncio.Queue()

    def compute(self, engine: Engine, tokenizer: TextTokenizer, metrics: ServerMetrics) -> None:  # noqa: ARG002
        """Compute the vectors and tell them."""
        if self.cancelled.is_set():
            return
        try:
            self._tell(engine.embed(self._texts))
        except UnsupportedError as error:
            self._tell(error)
        metrics.prompt_tokens.inc(sum(map(len, self._texts)))

    def fail(self, error: Exception) -> None:
        """Tell that there are no vectors."""
        self._tell(error)

    def leave(self) -> None:
        """Say that the client has left."""
        self._tell(ClientLeftError())

    async def outcome(self) -> AsyncIterator[Vectors | Exception]:
        """Yield the vectors, or the error; raises ClientLeftError where nobody wants them any more."""
        outcome = await self._done.get()
        if isinstance(outcome, ClientLeftError):
            raise outcome
        yield outcome

    def _tell(self, outcome: Vectors | Exception) -> None:
        try:
            self._loop.call_soon_threadsafe(self._done.put_nowait, outcome)
        except RuntimeError:  # the loop is gone, and nobody waits any more
            self.cancelled.set()


async def embed(state: ServerState, body: EmbeddingsRequest, request: Request) -> Response:
    """Answer a request for vectors."""
    began = time.monotonic()
    served, queue = opened(state, body.model)
    if served.adapter is not None:
        message = f"Embeddings are those of the model itself: ask for {state.model_name!r} instead of {body.model!r}."
        raise ApiError(400, message, param="model")
    texts = await run_in_threadpool(_texts, served, state.limits, body)
    job = Embedding(texts)
    submit(queue, [job])
    vectors: Vectors | Exception = []
    try:
        async for outcome in while_connected(request, job.outcome(), job.leave):
            vectors = outcome
    except ClientLeftError:
        return Response(status_code=499)  # nobody reads it; it is counted under this status
    finally:
        queue.cancel([job])
        state.metrics.request_seconds.labels(request.scope["route"].path).observe(time.monotonic() - began)
    if isinstance(vectors, UnsupportedError):
        raise ApiError(501, str(vectors))
    if isinstance(vectors, Exception):
        raise ENGINE_FAILED from None
    count = sum(map(len, texts))
    data = [
        {
            "object": "embedding",
            "index": index,
            "embedding": vector if body.encoding_format == "float" else _encoded(vector),
        }
        for index, vector in enumerate(vectors)
    ]
    usage = {"prompt_tokens": count, "total_tokens": count}
    return JSONResponse({"object": "list", "data": data, "model": body.model, "usage": usage})


def _texts(served: ServedModel, limits: ServerLimits, body: EmbeddingsRequest) -> list[list[int]]:
    texts = [text_ids(served, text, "input") for text in body.texts]
    for index, text in enumerate(texts):
        check_prompt(limits, len(text))
        if len(text) > served.engine.context_length:
            message = (
                f"input[{index}] has {len(text)} tokens and the model takes {served.engine.context_length}. Shorten it."
            )
            raise ApiError(400, message, code="context_length_exceeded", param="input")
    return texts


def _encoded(vector: Sequence[float]) -> str:
    """The vector as OpenAI's clients unpack it: little-endian float32 in base64."""
    return base64.b64encode(np.asarray(vector, dtype="<f4").tobytes()).decode()
