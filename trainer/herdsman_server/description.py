"""The OpenAPI description: what the routes answer, errors included, in the shapes that they really have."""

from typing import Annotated, Any, Literal

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel, ConfigDict, Field

ERRORS = {
    400: "Something is wrong with the request; the message says what.",
    401: "The API key is missing or wrong.",
    404: "There is no such model.",
    408: "The body took too long to come.",
    413: "The body is longer than this server takes.",
    429: "Too many requests wait, or too many answers are streamed; Retry-After says when to try again.",
    500: "The engine failed.",
    503: "The model is still loading, or the server stops.",
    504: "The answer took too long.",
}
READING = (401, 404, 408, 413, 500, 504)
"""Errors of routes that compute nothing."""


class _Shape(BaseModel):
    model_config = ConfigDict(extra="forbid")


class ErrorDetails(_Shape):
    """What went wrong."""

    message: str
    type: Literal["invalid_request_error", "rate_limit_error", "server_error"]
    param: str | None
    code: str | None


class ErrorBody(_Shape):
    """The body of every error."""

    error: ErrorDetails


class Model(_Shape):
    """A model that is served."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str


class ModelList(_Shape):
    """The models that are served."""

    object: Literal["list"]
    data: list[Model]


class Usage(_Shape):
    """Tokens of a request; embeddings have no answer."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class PromptUsage(_Shape):
    """Tokens of a request without an answer."""

    prompt_tokens: int
    total_tokens: int


class TokenLogprob(_Shape):
    """A token and its log-probability."""

    token: str
    logprob: float
    bytes: list[Annotated[int, Field(ge=0, le=255)]]


class SaidLogprob(TokenLogprob):
    """A token of the answer, with the most probable ones in its place."""

    top_logprobs: list[TokenLogprob]


class ChatLogprobs(_Shape):
    """The tokens of the answer."""

    content: list[SaidLogprob]
    refusal: None


class ChatMessage(_Shape):
    """What the model says."""

    role: Literal["assistant"]
    content: str
    refusal: None


class ChatChoice(_Shape):
    """One answer."""

    index: int
    message: ChatMessage
    finish_reason: Literal["stop", "length"]
    logprobs: ChatLogprobs | None


class ChatCompletion(_Shape):
    """The next turn of a conversation."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage


class CompletionLogprobs(_Shape):
    """The tokens of the answer, in lists of the same length."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]
    text_offset: list[int]


class CompletionChoice(_Shape):
    """One continuation."""

    index: int
    text: str
    finish_reason: Literal["stop", "length"]
    logprobs: CompletionLogprobs | None


class Completion(_Shape):
    """The continuation of a text."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage


class Embedding(_Shape):
    """The vector of one text; base64 of little-endian float32 where that was asked for."""

    object: Literal["embedding"]
    index: int
    embedding: list[float] | str


class Embeddings(_Shape):
    """The vectors of texts."""

    object: Literal["list"]
    data: list[Embedding]
    model: str
    usage: PromptUsage


ANSWERS: dict[tuple[str, str], tuple[type[BaseModel], tuple[int, ...], bool]] = {
    ("/v1/models", "get"): (ModelList, READING, False),
    ("/v1/models/{name}", "get"): (Model, READING, False),
    ("/v1/chat/completions", "post"): (ChatCompletion, tuple(ERRORS), True),
    ("/v1/completions", "post"): (Completion, tuple(ERRORS), True),
    ("/v1/embeddings", "post"): (Embeddings, tuple(ERRORS), False),
}
"""What each route answers: the body of 200, the errors, and whether it streams on request."""
REFERENCES = "#/components/schemas/{model}"


def describe(app: FastAPI) -> None:
    """Let /openapi.json tell what is really answered; FastAPI knows it of none of these routes."""
    made: dict[str, Any] = {}

    def openapi() -> dict[str, Any]:
        if not made:
            made.update(_description(app))
        return made

    app.openapi = openapi  # type: ignore[method-assign]


def _description(app: FastAPI) -> dict[str, Any]:
    found = get_openapi(title=app.title, version=app.version, routes=app.routes)
    components = found.setdefault("components", {})
    schemas = components.setdefault("schemas", {})
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    for path, operations in found["paths"].items():
        for method, operation in operations.items():
            # A body that does not fit is answered with 400, as OpenAI does.
            operation["responses"].pop("422", None)
            if (answer := ANSWERS.get((path, method))) is not None:
                _tell(operation, *answer, schemas)
    return found


def _tell(
    operation: dict[str, Any], body: type[BaseModel], errors: tuple[int, ...], streams: bool, schemas: dict[str, Any]
) -> None:
    content: dict[str, Any] = {"application/json": {"schema": _referred(body, schemas)}}
    if streams:
        # Without a schema, which some would read as that of each event and others as that of them all.
        content["text/event-stream"] = {}
    operation["responses"]["200"] = {"description": (body.__doc__ or "").strip(), "content": content}
    for status in errors:
        shape = {"application/json": {"schema": _referred(ErrorBody, schemas)}}
        operation["responses"][str(status)] = {"description": ERRORS[status], "content": shape}
    # Without keys in its configuration a server needs none.
    operation["security"] = [{}, {"key": []}]


def _referred(model: type[BaseModel], schemas: dict[str, Any]) -> dict[str, str]:
    """Add a model's schema, and those it refers to, and return a reference to it."""
    # Requests have names of their own, so answers get another ending.
    schema = model.model_json_schema(ref_template=REFERENCES.replace("{model}", "{model}Answer"))
    for name, part in schema.pop("$defs", {}).items():
        schemas[f"{name}Answer"] = part
    schemas[f"{model.__name__}Answer"] = schema
    return {"$ref": REFERENCES.replace("{model}", f"{model.__name__}Answer")}
