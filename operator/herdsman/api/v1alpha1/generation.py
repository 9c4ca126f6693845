"""Generation: what a model is asked for new instruction records, how fast, and for how much."""

from typing import Annotated, Literal, Self

from pydantic import ConfigDict, Field, model_validator

from herdsman.api.meta import MAX_COUNT, ApiModel
from herdsman.api.v1alpha1.remote_sources import HTTP_URL
from herdsman.api.v1alpha1.schema import cel
from herdsman.api.v1alpha1.secrets import SecretKeyRef
from herdsman.api.v1alpha1.sources import DatasetRef, LocalName

GenerationPreset = Literal["chinese-llama-alpaca", "self-instruct"]
AnswerFormat = Literal["Auto", "Schema", "Object", "Text"]
Word = Annotated[str, Field(min_length=1, max_length=100)]

_ONE = "set exactly one of url and modelServer"
_MODEL = "url needs model, the name of the model that is asked"
_KEY = "apiKey belongs to url; a ModelServer's own key is taken by itself"


class GenerationEndpoint(ApiModel):
    """Who is asked: an API that speaks OpenAI's chat completions."""

    model_config = ConfigDict(
        json_schema_extra=cel(
            ("has(self.url) != has(self.modelServer)", _ONE),
            ("!has(self.url) || has(self.model)", _MODEL),
            ("!has(self.apiKey) || has(self.url)", _KEY),
        )
    )

    url: str | None = Field(default=None, pattern=HTTP_URL, max_length=400)
    """The API's base, such as https://api.example.com/v1."""
    model_server: LocalName | None = None
    """The name of a ModelServer of the same namespace, which is waited for; its key, where it has one, is taken from
    the Secret that it names."""
    model: str | None = Field(default=None, pattern=r"^[A-Za-z0-9][A-Za-z0-9._:/@-]*$", max_length=200)
    """The model that is asked; the ModelServer's unless set."""
    api_key: SecretKeyRef | None = None
    """The key, sent as `Authorization: Bearer KEY`; none for an API that needs none. With `herdsman run` the
    environment variable HERDSMAN_ENDPOINT_API_KEY is taken instead."""

    @model_validator(mode="after")
    def _rules(self) -> Self:
        if (self.url is None) == (self.model_server is None):
            raise ValueError(_ONE)
        if self.url is not None and self.model is None:
            raise ValueError(_MODEL)
        if self.api_key is not None and self.url is None:
            raise ValueError(_KEY)
        return self


_ORDER = "least cannot be above most"


class CharacterRange(ApiModel):
    """Bounds between which a length is drawn for each request."""

    model_config = ConfigDict(json_schema_extra=cel(("self.least <= self.most", _ORDER)))

    least: int = Field(ge=1, le=100000)
    """The smallest length that is drawn."""
    most: int = Field(ge=1, le=100000)
    """The largest length that is drawn."""

    @model_validator(mode="after")
    def _rules(self) -> Self:
        if self.least > self.most:
            raise ValueError(_ORDER)
        return self


def input_lengths() -> CharacterRange:
    """Return what the original draws the longest input of a request from."""
    return CharacterRange(least=80, most=120)


def output_lengths() -> CharacterRange:
    """Return what the original draws the longest output of a request from."""
    return CharacterRange(least=128, most=512)


class SeedTasks(ApiModel):
    """Records that requests show as examples."""

    dataset: DatasetRef
    """Files with records of instruction, input and output (*.json, *.jsonl, *.csv, *.tsv, *.parquet)."""
    per_request: int = Field(default=3, ge=1, le=20)
    """Examples that a request shows, drawn from them."""


class EndpointLimits(ApiModel):
    """How fast the endpoint is asked, and how long it is waited for."""

    parallel: int = Field(default=4, ge=1, le=64)
    """Requests under way at once."""
    requests_per_minute: int | None = Field(default=None, ge=1, le=100000)
    """Requests that are begun in a minute, evenly; no limit unless set. Retry-After is kept to in any case."""
    tokens_per_minute: int | None = Field(default=None, ge=100, le=1000000000)
    """Tokens of requests and replies in a minute, on average; no limit unless set."""
    request_seconds: int = Field(default=300, ge=1, le=3600)
    """Seconds a reply may take before it is asked for again."""
    patience_seconds: int = Field(default=900, ge=0, le=86400)
    """Seconds without any reply, because the endpoint is down or the account's quota is exhausted, after which the
    attempt ends; the next attempt goes on with the replies that are there."""


class Budget(ApiModel):
    """After which nothing more is asked. What is under way is waited for, and may go beyond it."""

    requests: int | None = Field(default=None, ge=1, le=100000000)
    """Requests in all."""
    tokens: int | None = Field(default=None, ge=1, le=MAX_COUNT)
    """Tokens of requests and replies in all."""
    cost: float | None = Field(default=None, gt=0, le=1000000)
    """What they cost by `price`, in its currency."""


class Price(ApiModel):
    """What a million tokens cost, so that the status can tell what was spent."""

    input_per_million: float = Field(ge=0, le=100000)
    """A million tokens of requests."""
    output_per_million: float = Field(ge=0, le=100000)
    """A million tokens of replies."""
    currency: str = Field(default="USD", pattern=r"^[A-Z]{3}$", max_length=3)
    """Its three letters."""


_PRICE = "budget.cost needs price"
_ENOUGH = "minRecords cannot be above records"


class Generation(ApiModel):
    """New records from a model, as Self-Instruct makes them."""

    model_config = ConfigDict(
        json_schema_extra=cel(
            ("!has(self.budget.cost) || has(self.price)", _PRICE),
            ("!has(self.minRecords) || self.minRecords <= self.records", _ENOUGH),
        )
    )

    endpoint: GenerationEndpoint
    """Who is asked."""
    preset: GenerationPreset = "chinese-llama-alpaca"
    """What is asked: the request of Chinese-LLaMA-Alpaca's crawler, in Chinese, or the same in English for any
    spec.language."""
    records: int = Field(default=1000, ge=1, le=10000000)
    """New records that are wanted, counted after cleaning."""
    min_records: int | None = Field(default=None, ge=1, le=10000000)
    """What is enough where the account's quota or the budget ends before `records` are there. Unless set, a quota that
    is exhausted is waited for, and a budget that is spent is enough with whatever there is."""
    records_per_request: int = Field(default=20, ge=1, le=100)
    """Records that one request asks for."""
    domains_per_request: int = Field(default=10, ge=1, le=100)
    """Domains that a request names, drawn from `domains`."""
    kinds_per_request: int = Field(default=10, ge=1, le=100)
    """Kinds of task that a request names, drawn from `taskKinds`."""
    input_characters: CharacterRange = Field(default_factory=input_lengths)
    """From which the longest input of a request is drawn."""
    output_characters: CharacterRange = Field(default_factory=output_lengths)
    """From which the longest output of a request is drawn."""
    domains: list[Word] = Field(default_factory=list, max_length=1000)
    """What records are about; the 82 domains of the preset unless given."""
    task_kinds: list[Word] = Field(default_factory=list, max_length=100)
    """Kinds of task; the 14 of the preset unless given."""
    guidance: str | None = Field(default=None, min_length=1, max_length=4000)
    """A further requirement, in the language of the preset."""
    seed_tasks: SeedTasks | None = None
    """Examples that requests show."""
    answer_format: AnswerFormat = "Auto"
    """How replies are asked for: Schema (JSON by a schema), Object (any JSON object) or Text. Auto takes Schema for a
    ModelServer and Object for a URL, and goes on with Text where the API refuses that."""
    max_tokens: int = Field(default=8192, ge=16, le=131072)
    """Tokens of a reply at most; no more than a ModelServer's own limit is asked for."""
    temperature_percent: int | None = Field(default=None, ge=0, le=200)
    """The sampling temperature in hundredths; the API's own unless set."""
    top_p_percent: int | None = Field(default=None, ge=1, le=100)
    """The probability mass that is sampled from, in percent; the API's own unless set."""
    limits: EndpointLimits = Field(default_factory=EndpointLimits)
    """How fast the endpoint is asked."""
    budget: Budget = Field(default_factory=Budget)
    """After which nothing more is asked."""
    price: Price | None = None
    """What tokens cost."""
    keep_replies: bool = True
    """Keeps the replies on the workspace's volume: another InstructionSet there with the same requests, such as this
    one deleted and applied again, takes them instead of asking again."""
    weight: int | None = Field(default=None, ge=1, le=10000)
    """Its share of the set beside the weights of the sources."""

    @model_validator(mode="after")
    def _rules(self) -> Self:
        if self.budget.cost is not None and self.price is None:
            raise ValueError(_PRICE)
        if self.min_records is not None and self.min_records > self.records:
            raise ValueError(_ENOUGH)
        return self
