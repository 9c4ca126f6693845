"""Answers in OpenAI's shape, whole or in chunks."""

import json
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from typing import Any

from herdsman_server.answer_text import Finished, FinishReason, Piece, SaidToken
from herdsman_server.generations import GenerationFailedError
from herdsman_server.logprob_bodies import chat_logprobs, completion_logprobs
from herdsman_server.openai_api import ApiError, ChatRequest
from herdsman_server.wanted import AnyRequest

Events = AsyncIterator[tuple[int, Piece | Finished]]


class Answer:
    """The JSON of one answer, whole or in chunks; every chunk has the id of the answer."""

    def __init__(self, request: AnyRequest, model: str, prompt_tokens: int, choices: int) -> None:
        """Prepare the answer; `prompt_tokens` counts each prompt once, however many choices it gets."""
        self._request = request
        self._chat = isinstance(request, ChatRequest)
        self._logprobs = request.alternatives is not None
        self._usage_is_streamed = bool(request.stream_options and request.stream_options.include_usage)
        self._prompt_tokens = prompt_tokens
        self._choices = choices
        self._head = {
            "id": f"{'chatcmpl' if self._chat else 'cmpl'}-{uuid.uuid4().hex}",
            "created": int(time.time()),
            "model": model,
        }

    async def whole(self, events: Events) -> dict[str, Any]:
        """Return the body of an answer that is not streamed, once all its choices are there.

        Raises what the events raise.
        """
        texts, tokens = [""] * self._choices, [list[SaidToken]() for _ in range(self._choices)]
        ends: dict[int, Finished] = {}
        async for index, event in events:
            if isinstance(event, Finished):
                ends[index] = event
            else:
                texts[index] += event.text
                tokens[index] += event.tokens
        choices = [
            self._choice(index, self._said(texts[index]), tokens[index], ends[index].reason, whole=True)
            for index in range(self._choices)
        ]
        kind = "chat.completion" if self._chat else "text_completion"
        return {**self._head, "object": kind, "choices": choices, "usage": self._usage(list(ends.values()))}

    async def stream(self, events: Events) -> AsyncIterator[str]:
        """Yield server-sent events: the roles, pieces of text, the reasons of the ends, the usage if asked for, [DONE].

        Choices take turns as they are made; each chunk has one, and says which.
        """
        if self._chat:
            for index in range(self._choices):
                yield self._chunk(index, {"delta": {"role": "assistant", "content": ""}})
        ends: list[Finished] = []
        try:
            async for index, event in events:
                if isinstance(event, Piece):
                    said = {"delta": {"content": event.text}} if self._chat else {"text": event.text}
                    yield self._chunk(index, said, event.tokens)
                else:
                    ends.append(event)
                    yield self._chunk(index, {"delta": {}} if self._chat else {"text": ""}, reason=event.reason)
            if self._usage_is_streamed:
                yield sse({**self._chunk_head(), "choices": [], "usage": self._usage(ends)})
        except GenerationFailedError:
            yield sse(ENGINE_FAILED.body)
        yield "data: [DONE]\n\n"

    def _said(self, text: str) -> dict[str, Any]:
        return {"message": {"role": "assistant", "content": text, "refusal": None}} if self._chat else {"text": text}

    def _choice(
        self,
        index: int,
        said: dict[str, Any],
        tokens: Sequence[SaidToken],
        reason: FinishReason | None,
        *,
        whole: bool = False,
    ) -> dict[str, Any]:
        logprobs = None
        if self._logprobs and (tokens or whole):
            logprobs = chat_logprobs(tokens) if self._chat else completion_logprobs(tokens)
        return {"index": index, **said, "finish_reason": reason, "logprobs": logprobs}

    def _chunk_head(self) -> dict[str, Any]:
        return {**self._head, "object": "chat.completion.chunk" if self._chat else "text_completion"}

    def _chunk(
        self, index: int, said: dict[str, Any], tokens: Sequence[SaidToken] = (), reason: FinishReason | None = None
    ) -> str:
        usage = {"usage": None} if self._usage_is_streamed else {}
        return sse({**self._chunk_head(), "choices": [self._choice(index, said, tokens, reason)], **usage})

    def _usage(self, ends: Sequence[Finished]) -> dict[str, int]:
        said = sum(end.completion_tokens for end in ends)
        return {
            "prompt_tokens": self._prompt_tokens,
            "completion_tokens": said,
            "total_tokens": self._prompt_tokens + said,
        }


ENGINE_FAILED = ApiError(500, "The engine failed on this request; the server's log has the reason.")


def sse(body: dict[str, Any]) -> str:
    """Return a body as a server-sent event."""
    return f"data: {json.dumps(body, ensure_ascii=False)}\n\n"


def model_list(names: Sequence[str], created: int) -> dict[str, Any]:
    """Return the body of GET /v1/models."""
    return {"object": "list", "data": [model_card(name, created) for name in names]}


def model_card(name: str, created: int) -> dict[str, Any]:
    """Return the body of GET /v1/models/{name}."""
    return {"id": name, "object": "model", "created": created, "owned_by": "herdsman"}


def validation_message(errors: Sequence[Any]) -> tuple[str, str | None]:
    """Return a sentence and the parameter for the first of pydantic's errors in a body."""
    first = errors[0]
    path = [str(part) for part in first["loc"] if part != "body"]
    if first["type"] == "json_invalid":
        return f"The body is not valid JSON: {first.get('ctx', {}).get('error', first['msg'])}.", None
    if first["type"] == "extra_forbidden":
        return f"{'.'.join(path)} is not a known parameter; leave it out.", ".".join(path)
    message = first["msg"].removeprefix("Value error, ")
    return f"{'.'.join(path)}: {message}." if path else f"{message}.", ".".join(path) or None
