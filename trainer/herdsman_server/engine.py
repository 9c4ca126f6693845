"""What the server needs of whatever computes the answers: ids in, ids out."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from herdsman_trainer.prompts import PromptTemplate
from herdsman_trainer.tokenizers import TextTokenizer


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


OnToken = Callable[[int], bool]
"""Takes each generated id, the one that ends the answer included; returns whether to go on."""


class Engine(Protocol):
    """Computes answers, one at a time, in the thread that calls it."""

    context_length: int
    """Tokens of prompt and answer together at most."""

    def generate(self, prompt: Sequence[int], sampling: Sampling, stop_ids: frozenset[int], on_token: OnToken) -> None:
        """Generate until a stop id, `max_tokens`, or `on_token` says no; it has heard every id when this returns."""


@dataclass(frozen=True)
class ServedModel:
    """An engine with the tokenizer and the prompt template of its model."""

    engine: Engine
    tokenizer: TextTokenizer
    template: PromptTemplate
    starts_with_bos: bool
    """Whether plain text for /v1/completions is put behind BOS, as the model was trained."""

    @property
    def chat_stop_ids(self) -> frozenset[int]:
        """The ids that end a turn."""
        return self.template.stop_ids(self.tokenizer)
