"""The API as the demonstration servers of Chinese-LLaMA-Alpaca speak it, so that their clients go on working.

A message may hold its text in `message`; `messages` may be one string; a completion's prompt is an instruction; the
choices of a chat repeat the conversation, and the answer is the last one. The fields `n`, `stop`, `logprobs`, `echo`,
`user` and `num_beams` change nothing, as there; unlike there, usage and the reason of the end are told.
"""

import json
from typing import Any, Literal

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from herdsman_server.answers import validation_message
from herdsman_server.completions import complete, opened
from herdsman_server.embeddings import embed
from herdsman_server.openai_api import ApiError, ChatRequest, EmbeddingsRequest
from herdsman_server.state import ServerState

FIRST_GENERATION = "alpaca"
"""The prompt template of the generation whose defaults differ from those of all later ones, which are ours."""
CHAT_DEFAULTS = {"temperature": 0.7, "top_p": 1.0, "top_k": 40, "max_tokens": 128, "repetition_penalty": 1.0}
COMPLETION_DEFAULTS = {"temperature": 0.1, "top_p": 0.75, "top_k": 40, "max_tokens": 128, "repetition_penalty": 1.0}


class OriginalMessage(BaseModel):
    """One turn, its text under either name."""

    model_config = ConfigDict(extra="ignore")
    role: Literal["system", "user", "assistant"]
    content: str

    @model_validator(mode="before")
    @classmethod
    def _either_name(cls, body: Any) -> Any:
        if isinstance(body, dict) and "content" not in body and "message" in body:
            return {**body, "content": body["message"]}
        return body


class OriginalRequest(BaseModel):
    """What both kinds of completion share; what is not named here changes nothing."""

    model_config = ConfigDict(extra="ignore", protected_namespaces=())
    model: str | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    max_tokens: int | None = None
    repetition_penalty: float | None = None

    def as_openai(self, state: ServerState, turns: list[dict[str, str]], defaults: dict[str, Any]) -> ChatRequest:
        """Return the same request in OpenAI's terms; raises ApiError, as a wrong body of theirs does."""
        served, _ = opened(state, state.model_name)
        given = self.model_dump(include={*CHAT_DEFAULTS}, exclude_none=True)
        known = defaults if served.template.name == FIRST_GENERATION else {}
        try:
            return ChatRequest.model_validate({"model": state.model_name, "messages": turns, **known, **given})
        except ValidationError as error:
            message, param = validation_message(error.errors())
            raise ApiError(400, message, param=param) from None


class OriginalChatRequest(OriginalRequest):
    """POST /v1/chat/completions."""

    messages: list[OriginalMessage] = Field(min_length=1)
    stream: bool | None = False

    @field_validator("messages", mode="before")
    @classmethod
    def _a_string_is_what_the_user_says(cls, value: Any) -> Any:
        return [{"role": "user", "content": value}] if isinstance(value, str) else value

    @property
    def turns(self) -> list[dict[str, str]]:
        """The conversation in OpenAI's terms."""
        return [{"role": each.role, "content": each.content} for each in self.messages]


class OriginalCompletionRequest(OriginalRequest):
    """POST /v1/completions: an instruction."""

    prompt: str = Field(min_length=1)


class OriginalEmbeddingsRequest(BaseModel):
    """POST /v1/embeddings."""

    model_config = ConfigDict(extra="ignore")
    input: str | list[str]


def add_original_routes(app: FastAPI, state: ServerState) -> None:
    """Add the routes that take bodies."""

    @app.post("/v1/chat/completions")
    async def chat_completions(body: OriginalChatRequest, request: Request) -> Response:
        """The next turn of a conversation."""
        asked = body.as_openai(state, body.turns, CHAT_DEFAULTS).model_copy(update={"stream": bool(body.stream)})

        def with_the_conversation(answer: dict[str, Any]) -> dict[str, Any]:
            turns = [{"index": index, "message": turn} for index, turn in enumerate(body.turns)]
            (last,) = answer["choices"]
            said = {"role": "assistant", "content": last["message"]["content"]}
            end = {"index": len(turns), "message": said, "finish_reason": last["finish_reason"]}
            return {**answer, "choices": [*turns, end]}

        return await complete(state, asked, request, with_the_conversation)

    @app.post("/v1/completions")
    async def completions(body: OriginalCompletionRequest, request: Request) -> Response:
        """The answer to an instruction."""
        asked = body.as_openai(state, [{"role": "user", "content": body.prompt}], COMPLETION_DEFAULTS)

        def as_text(answer: dict[str, Any]) -> dict[str, Any]:
            (last,) = answer["choices"]
            choice = {"index": 0, "text": last["message"]["content"], "finish_reason": last["finish_reason"]}
            name = answer["id"].replace("chatcmpl-", "cmpl-", 1)
            return {**answer, "id": name, "object": "text_completion", "choices": [choice]}

        return await complete(state, asked, request, as_text)

    @app.post("/v1/embeddings")
    async def embeddings(body: OriginalEmbeddingsRequest, request: Request) -> Response:
        """Texts as vectors; those of a list are the rows of one."""
        asked = EmbeddingsRequest(model=state.model_name, input=body.input)
        response = await embed(state, asked, request)
        if isinstance(body.input, str) or not isinstance(response, JSONResponse):
            return response
        answer = json_of(response)
        rows = [each["embedding"] for each in answer["data"]]
        return JSONResponse({**answer, "data": [{"object": "embedding", "embedding": rows, "index": 0}]})


def json_of(response: JSONResponse) -> dict[str, Any]:
    """Return the body of an answer."""
    body: dict[str, Any] = json.loads(bytes(response.body))
    return body
