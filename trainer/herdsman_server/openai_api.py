"""The bodies of OpenAI's API, as far as they mean something here; what would be ignored is refused instead."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

HARMLESS: dict[str, tuple[Any, ...]] = {
    "n": (1,),
    "best_of": (1,),
    "echo": (False,),
    "suffix": ("",),
    "logprobs": (False, 0),
    "top_logprobs": (0,),
    "logit_bias": ({},),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
}
"""Fields of OpenAI's that are not implemented: the values, besides null, under which nothing is lost by that."""

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


class Request(BaseModel):
    """What both kinds of completion share; the defaults of sampling are the published server's."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())
    model: str
    max_tokens: int | None = Field(default=None, ge=1)
    temperature: float = Field(default=0.2, ge=0, le=2)
    top_p: float = Field(default=0.9, gt=0, le=1)
    top_k: int = Field(default=40, ge=0)
    repetition_penalty: float = Field(default=1.1, gt=0, le=10)
    seed: int | None = Field(default=None, ge=-(2**63), lt=2**63)
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

    @property
    def answer_tokens(self) -> int | None:
        """The tokens asked for, under either name."""
        return self.max_completion_tokens or self.max_tokens


class CompletionRequest(Request):
    """POST /v1/completions: plain text, or ids, to be continued."""

    prompt: str | list[int] | list[str]

    @property
    def answer_tokens(self) -> int | None:
        """The tokens asked for."""
        return self.max_tokens

    @property
    def single_prompt(self) -> str | list[int]:
        """The prompt; raises ApiError for several at once."""
        match self.prompt:
            case str() as text:
                return text
            case [str() as text]:
                return text
            case [int(), *_]:
                return [index for index in self.prompt if isinstance(index, int)]
        message = f"prompt holds {len(self.prompt)} texts; send one request for each prompt."
        raise ApiError(400, message, param="prompt")
