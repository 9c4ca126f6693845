"""What the server needs of whatever computes the answers: ids in, ids out."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from herdsman_trainer.prompts import PromptTemplate
from herdsman_trainer.tokenizers import TextTokenizer


class Constraint(Protocol):
    """What an answer may go on with, token by token."""

    ended: bool
    """Whether the answer is complete and nothing but its end may follow."""

    def allowed(self) -> NDArray[np.bool_]:
        """Return for each id of the tokenizer whether it may come next."""

    def push(self, token: int) -> None:
        """Go on with a token; ValueError for one that is not allowed."""


class Grammar(Protocol):
    """A language that answers have to be in."""

    schema: Mapping[str, Any]
    """The JSON schema that it is, for engines that keep to it themselves."""

    def start(self) -> Constraint:
        """Return the constraint of a new answer."""


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen; the defaults are those of the second generation's published server."""

    max_tokens: int = 512
    temperature: float = 0.2
    """0 takes the most probable token."""
    top_p: float = 0.9
    top_k: int = 40
    """0 considers all tokens."""
    repetition_penalty: float = 1.1
    """Divides the logits of tokens that already occurred, in the prompt too; 1 leaves them alone."""
    seed: int | None = None
    """The same seed gives the same answer; without one every answer is drawn anew."""
    presence_penalty: float = 0.0
    """Subtracted from the logits of tokens that the answer has already, not the prompt; before everything else."""
    frequency_penalty: float = 0.0
    """The same, for each time the answer has the token."""
    logprobs: int | None = None
    """Asks for log-probabilities, and for those of this many most probable tokens beside."""
    adapter: str | None = None
    """The adapter that is asked for by its name; None for the model alone."""
    grammar: Grammar | None = None
    """What the answer has to be in the language of."""


@dataclass(frozen=True)
class Logprobs:
    """How probable a token is to the model, before penalties, temperature and grammars (natural logarithms)."""

    chosen: float
    top: tuple[tuple[int, float], ...] = ()
    """The most probable tokens, as many as were asked for, the most probable one first."""


class OnToken(Protocol):
    """Takes each generated id, the one that ends the answer included; returns whether to go on.

    The log-probabilities come with it where `Sampling.logprobs` asks for them, except for the id that ends the answer.
    """

    def __call__(self, token: int, logprobs: Logprobs | None = None, /) -> bool:
        """Hear one token."""


class UnsupportedError(Exception):
    """The engine cannot do this at all; the message is for clients."""


class Engine(Protocol):
    """Computes answers, each in the thread that calls it."""

    context_length: int
    """Tokens of prompt and answer together at most."""
    parallel: int
    """Answers that are computed at once; more callers would wait for each other."""

    def generate(self, prompt: Sequence[int], sampling: Sampling, stop_ids: frozenset[int], on_token: OnToken) -> None:
        """Generate until a stop id, `max_tokens`, or `on_token` says no; it has heard every id when this returns."""

    def embed(self, texts: Sequence[Sequence[int]]) -> list[list[float]]:
        """Return a vector of length 1 for each text: the mean of the last layer's states over its tokens.

        Raises UnsupportedError where the engine has no such states.
        """

    @property
    def broken(self) -> str | None:
        """Why it will never answer again, so that only a restart helps; None as long as it may."""


@dataclass(frozen=True)
class ServedModel:
    """An engine with the tokenizer and the prompt template of its model, or of one of its adapters."""

    engine: Engine
    tokenizer: TextTokenizer
    template: PromptTemplate
    starts_with_bos: bool
    """Whether plain text for /v1/completions is put behind BOS, as the model was trained."""
    adapter: str | None = None
    """The adapter that answers are made with; None for the model alone."""

    @property
    def chat_stop_ids(self) -> frozenset[int]:
        """The ids that end a turn."""
        return self.template.stop_ids(self.tokenizer)
