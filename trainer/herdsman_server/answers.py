"""From a request to a generation: the prompt as ids, the limits checked, the answer in OpenAI's shape."""

import json
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from typing import Any

from herdsman.api.v1alpha1.model_server import ServerLimits
from herdsman_server.engine import Sampling, ServedModel
from herdsman_server.generations import Finished, GenerationFailedError, Wanted
from herdsman_server.openai_api import ApiError, ChatRequest, CompletionRequest
from herdsman_trainer.errors import BadInput
from herdsman_trainer.prompts import Message

AnyRequest = ChatRequest | CompletionRequest


def wanted_generation(served: ServedModel, limits: ServerLimits, request: AnyRequest) -> Wanted:
    """Return the generation a request asks for; raises ApiError, with counts, where it does not fit."""
    prompt, stop_ids = prompt_ids(served, request)
    tokens = _answer_tokens(served.engine.context_length, limits.max_tokens, len(prompt), request.answer_tokens)
    sampling = Sampling(
        max_tokens=tokens,
        temperature=request.temperature,
        top_p=request.top_p,
        top_k=request.top_k,
        repetition_penalty=request.repetition_penalty,
        seed=request.seed,
    )
    return Wanted(prompt, sampling, stop_ids, request.stop)


def prompt_ids(served: ServedModel, request: AnyRequest) -> tuple[list[int], frozenset[int]]:
    """Return the prompt and the ids that end the answer; text of a client never becomes a control token."""
    tokenizer = served.tokenizer
    if isinstance(request, ChatRequest):
        turns = [Message("system" if each.role == "developer" else each.role, each.text) for each in request.messages]
        try:
            return served.template.chat_ids(tokenizer, turns), served.chat_stop_ids
        except BadInput as error:
            raise ApiError(400, str(error), param="messages") from None
    prompt = request.single_prompt
    if isinstance(prompt, str):
        ids = tokenizer.encode(prompt)
        if served.starts_with_bos and tokenizer.bos_id is not None:
            ids = [tokenizer.bos_id, *ids]
    else:
        ids = prompt
        if wrong := [index for index in ids if not 0 <= index < tokenizer.vocab_size]:
            message = f"prompt holds the id {wrong[0]}; ids of this model are 0 to {tokenizer.vocab_size - 1}."
            raise ApiError(400, message, param="prompt")
    if not ids:
        raise ApiError(400, "prompt is empty; send at least one character.", param="prompt")
    return ids, frozenset({tokenizer.eos_id})


def _answer_tokens(context: int, limit: int, prompt: int, asked: int | None) -> int:
    room = context - prompt
    if room < 1:
        message = f"The prompt has {prompt} tokens and the model takes {context}, prompt and answer together."
        raise ApiError(400, f"{message} Shorten the prompt.", code="context_length_exceeded")
    if asked is None:
        return min(Sampling.max_tokens, limit, room)
    if asked > limit:
        message = f"max_tokens is {asked} and this server gives {limit} at most; ask for fewer."
        raise ApiError(400, message, param="max_tokens")
    if asked > room:
        message = (
            f"The prompt has {prompt} tokens and max_tokens is {asked}, {prompt + asked} together; "
            f"the model takes {context}. Shorten the prompt or ask for fewer tokens."
        )
        raise ApiError(400, message, code="context_length_exceeded", param="max_tokens")
    return asked


class Answer:
    """The JSON of one answer, whole or in chunks; every chunk has the id of the answer."""

    def __init__(self, request: AnyRequest, prompt_tokens: int) -> None:
        self._request = request
        self._chat = isinstance(request, ChatRequest)
        self._prompt_tokens = prompt_tokens
        self._head = {
            "id": f"{'chatcmpl' if self._chat else 'cmpl'}-{uuid.uuid4().hex}",
            "created": int(time.time()),
            "model": request.model,
        }

    def whole(self, text: str, finished: Finished) -> dict[str, Any]:
        """Return the body of an answer that is not streamed: one choice, the assistant's words only."""
        said = {"message": {"role": "assistant", "content": text, "refusal": None}} if self._chat else {"text": text}
        choice = {"index": 0, **said, "finish_reason": finished.reason, "logprobs": None}
        kind = "chat.completion" if self._chat else "text_completion"
        return {**self._head, "object": kind, "choices": [choice], "usage": self._usage(finished)}

    async def stream(self, events: AsyncIterator[str | Finished]) -> AsyncIterator[str]:
        """Yield server-sent events: the role, pieces of text, the reason of the end, the usage if asked for, [DONE]."""
        if self._chat:
            yield self._chunk(delta={"role": "assistant", "content": ""})
        try:
            async for event in events:
                if isinstance(event, str):
                    yield self._chunk(delta={"content": event}, text=event)
                    continue
                yield self._chunk(delta={}, text="", reason=event.reason)
                if self._request.stream_options and self._request.stream_options.include_usage:
                    yield _sse({**self._chunk_head(), "choices": [], "usage": self._usage(event)})
        except GenerationFailedError:
            yield _sse(ENGINE_FAILED.body)
        yield "data: [DONE]\n\n"

    def _chunk_head(self) -> dict[str, Any]:
        return {**self._head, "object": "chat.completion.chunk" if self._chat else "text_completion"}

    def _chunk(self, *, delta: dict[str, str], text: str = "", reason: str | None = None) -> str:
        said: dict[str, Any] = {"delta": delta} if self._chat else {"text": text}
        choice = {"index": 0, **said, "finish_reason": reason, "logprobs": None}
        usage = {"usage": None} if self._request.stream_options and self._request.stream_options.include_usage else {}
        return _sse({**self._chunk_head(), "choices": [choice], **usage})

    def _usage(self, finished: Finished) -> dict[str, int]:
        return {
            "prompt_tokens": self._prompt_tokens,
            "completion_tokens": finished.completion_tokens,
            "total_tokens": self._prompt_tokens + finished.completion_tokens,
        }


ENGINE_FAILED = ApiError(500, "The engine failed on this request; the server's log has the reason.")


async def collect(events: AsyncIterator[str | Finished]) -> tuple[str, Finished]:
    """Return a whole answer and how it ended."""
    pieces: list[str] = []
    async for event in events:
        if isinstance(event, Finished):
            return "".join(pieces), event
        pieces.append(event)
    raise GenerationFailedError("the generation ended without an end")


def _sse(body: dict[str, Any]) -> str:
    return f"data: {json.dumps(body, ensure_ascii=False)}\n\n"


def model_list(name: str, created: int) -> dict[str, Any]:
    """Return the body of GET /v1/models."""
    return {"object": "list", "data": [model_card(name, created)]}


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
