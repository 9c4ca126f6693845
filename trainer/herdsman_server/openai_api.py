"""The bodies of OpenAI's API, as far as they mean something here; what would be ignored is refused instead."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

HARMLESS: dict[str, tuple[Any, ...]] = {
    "best_of": (1,),
    "echo": (False,),
    "suffix": ("",),
    "logit_bias": ({},),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "modalities": (["text"],),
}
"""Fields of OpenAI's that are not implemented: the values, besides null, under which nothing is lost by that."""

MAX_CHOICES = 128
"""Answers that one request may want, as OpenAI has it."""
MAX_ALTERNATIVES = 20
"""Most probable tokens that a request may want to see."""

MAX_INPUTS = 2048
"""Texts that one request may want vectors of, as OpenAI has it."""

Text = str | list[int]
"""What a client means: words, or their ids."""

IGNORED = {"user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "parallel_tool_calls"}
"""Fields that do not change the answer."""


class ApiError(Exception):
    """An answer other than 200, in OpenAI's shape."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.headers = headers
        kind = "invalid_request_error" if status < 500 and status != 429 else "server_error"
        if status == 429:
            kind = "rate_limit_error"
        self.body = {"error": {"message": message, "type": kind, "param": param, "code": code}}


class StreamOptions(BaseModel):
    """Options of a streamed answer."""

    model_config = ConfigDict(extra="forbid")
    include_usage: bool = False
    include_obfuscation: bool = False


class JsonSchema(BaseModel):
    """A schema that the answer has to fit."""

    model_config = ConfigDict(extra="ignore", protected_namespaces=())
    name: str = Field(default="answer", max_length=64)
    body: dict[str, Any] = Field(alias="schema")
    """The JSON schema. It is always kept to, whatever `strict` says."""


class ResponseFormat(BaseModel):
    """The form of the answer: free text, any JSON object, or JSON that fits a schema."""

    model_config = ConfigDict(extra="forbid")
    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None

    @model_validator(mode="after")
    def _a_schema_where_one_is_named(self) -> Self:
        if (self.type == "json_schema") != (self.json_schema is not None):
            raise ValueError("json_schema belongs to the type json_schema, and only there")
        return self


class Request(BaseModel):
    """What both kinds of completion share; the defaults of sampling are the published server's."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())
    model: str
    max_tokens: int | None = Field(default=None, ge=1)
    temperature: float = Field(default=0.2, ge=0, le=2)
    top_p: float = Field(default=0.9, gt=0, le=1)
    top_k: int = Field(default=40, ge=0)
    repetition_penalty: float = Field(default=1.1, gt=0, le=10)
    presence_penalty: float = Field(default=0, ge=-2, le=2)
    frequency_penalty: float = Field(default=0, ge=-2, le=2)
    n: int = Field(default=1, ge=1, le=MAX_CHOICES)
    seed: int | None = Field(default=None, ge=-(2**63), lt=2**63)
    response_format: ResponseFormat | None = None
    stop: Annotated[list[Annotated[str, Field(min_length=1, max_length=256)]], Field(max_length=16)] = []
    stream: bool = False
    stream_options: StreamOptions | None = None

    @model_validator(mode="before")
    @classmethod
    def _leave_out_what_changes_nothing(cls, body: Any) -> Any:
        """Drop nulls and harmless fields; raise for those that ask for what is not implemented."""
        if not isinstance(body, dict):
            return body
        given = {name: value for name, value in body.items() if value is not None and name not in IGNORED}
        for name, harmless in HARMLESS.items():
            if name in given and name not in cls.model_fields and given.pop(name) not in harmless:
                raise ValueError(f"{name} is not supported; leave it out")
        return given

    @field_validator("stop", mode="before")
    @classmethod
    def _one_stop_is_a_list(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value


class TextPart(BaseModel):
    """A part of a message; only text is understood."""

    type: Literal["text"]
    text: str


class ChatMessage(BaseModel):
    """One turn of a conversation."""

    model_config = ConfigDict(extra="ignore")
    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart]

    @property
    def text(self) -> str:
        """The content as one string."""
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)


class ChatRequest(Request):
    """POST /v1/chat/completions."""

    messages: list[ChatMessage] = Field(min_length=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    """OpenAI's newer name of max_tokens."""
    logprobs: bool = False
    top_logprobs: int = Field(default=0, ge=0, le=MAX_ALTERNATIVES)

    @model_validator(mode="after")
    def _alternatives_need_logprobs(self) -> Self:
        if self.top_logprobs and not self.logprobs:
            raise ValueError("top_logprobs needs logprobs to be true")
        return self

    @property
    def characters(self) -> int:
        """The length of its texts."""
        return sum(len(each.text) for each in self.messages)

    @property
    def alternatives(self) -> int | None:
        """The most probable tokens wanted beside each token; None where no log-probabilities are."""
        return self.top_logprobs if self.logprobs else None

    @property
    def answer_tokens(self) -> int | None:
        """The tokens asked for, under either name."""
        return self.max_completion_tokens or self.max_tokens


class CompletionRequest(Request):
    """POST /v1/completions: plain text, or ids, to be continued; or several of them."""

    prompt: str | list[int] | list[str] | list[list[int]]
    logprobs: int | None = Field(default=None, ge=0, le=MAX_ALTERNATIVES)

    @model_validator(mode="before")
    @classmethod
    def _no_logprobs(cls, body: Any) -> Any:
        """Some clients write false where they want none."""
        return {**body, "logprobs": None} if isinstance(body, dict) and body.get("logprobs") is False else body

    @property
    def characters(self) -> int:
        """The length of its texts; ids are not counted."""
        return sum(len(each) for each in self.prompts if isinstance(each, str))

    @property
    def answer_tokens(self) -> int | None:
        """The tokens asked for."""
        return self.max_tokens

    @property
    def alternatives(self) -> int | None:
        """The most probable tokens wanted beside each token; None where no log-probabilities are."""
        return self.logprobs

    @property
    def prompts(self) -> list[Text]:
        """The prompts, one or several; raises ApiError for none or too many."""
        return texts_of(self.prompt, "prompt", MAX_CHOICES // self.n)


class EmbeddingsRequest(BaseModel):
    """POST /v1/embeddings: a text, its ids, or several of them."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())
    model: str
    input: str | list[int] | list[str] | list[list[int]]
    encoding_format: Literal["float", "base64"] = "float"
    user: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _nothing_is_shortened(cls, body: Any) -> Any:
        if not isinstance(body, dict):
            return body
        if body.get("dimensions") is not None:
            raise ValueError("dimensions is not supported: the vectors of this model cannot be shortened; leave it out")
        return {name: value for name, value in body.items() if value is not None and name != "dimensions"}

    @property
    def texts(self) -> list[Text]:
        """The inputs, one or several; raises ApiError for none or too many."""
        return texts_of(self.input, "input", MAX_INPUTS)


def texts_of(given: str | Sequence[int] | Sequence[str] | Sequence[list[int]], name: str, most: int) -> list[Text]:
    """Return what a field holds as a list of texts, or of ids in their place; raises ApiError for none or too many."""
    if isinstance(given, str):
        return [given]
    ids = [each for each in given if isinstance(each, int)]
    if ids:
        return [ids]
    texts: list[Text] = [each for each in given if not isinstance(each, int)]
    if not texts:
        raise ApiError(400, f"{name} is empty; send at least one text.", param=name)
    if len(texts) > most:
        message = f"{name} holds {len(texts)} texts and {most} are taken at most; send several requests."
        raise ApiError(400, message, param=name)
    return texts
