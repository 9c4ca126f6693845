"""A request that is computed in the batch."""

import random
import threading
from collections.abc import Sequence as Ids
from dataclasses import dataclass, field

from herdsman_server.engine import Constraint, OnToken, Sampling


@dataclass(eq=False)
class Sequence:
    """One answer in the making."""

    prompt: Ids[int]
    sampling: Sampling
    stop_ids: frozenset[int]
    on_token: OnToken
    max_tokens: int
    adapter: int = 0
    """The number of the adapter it is computed with; 0 for the model alone."""
    said: list[int] = field(default_factory=list)
    """Tokens of the answer that are known here; the device may be one ahead."""
    computed: int = 0
    """Tokens whose keys and values are in the memory, or on their way."""
    launched: int = 0
    """Tokens of the answer that were chosen, or are on their way."""
    slot: int = -1
    """Its row of what the device remembers of requests; -1 while it waits."""
    ended: bool = False
    error: BaseException | None = None
    done: threading.Event = field(default_factory=threading.Event)
    constraint: Constraint | None = None
    begin: list[int] = field(init=False)
    """What is computed before a token is chosen: the prompt, and what was said before it had to make room."""
    luck: random.Random = field(init=False)
    """Its own, and nobody else's: who shares the batch changes nothing."""

    def __post_init__(self) -> None:
        self.begin = list(self.prompt)
        self.luck = random.Random(self.sampling.seed)
        if self.sampling.grammar is not None:
            self.constraint = self.sampling.grammar.start()

    @property
    def missing(self) -> int:
        """Tokens that have to be computed before one can be chosen."""
        return max(0, len(self.begin) - self.computed)

    @property
    def wants_more(self) -> bool:
        """Whether another token is to be chosen."""
        return not self.ended and self.launched < self.max_tokens

    def withdraw(self) -> None:
        """Forget what is in the memory; all of it is computed again. Nothing may be on its way."""
        self.begin = [*self.prompt, *self.said]
        self.computed, self.slot = 0, -1

    def end(self, error: BaseException | None = None) -> None:
        """Tell whoever waits that nothing more comes."""
        self.ended, self.error = True, error
        self.done.set()
