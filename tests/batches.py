"""Answers of an engine that computes several at once, asked for from as many threads."""

import threading
from dataclasses import dataclass, field

from herdsman_server.engine import Sampling

NOBODY_STOPS = frozenset[int]()


@dataclass
class Asked:
    """One request, and what came of it."""

    prompt: list[int]
    sampling: Sampling
    stop_ids: frozenset[int] = NOBODY_STOPS
    enough: int = 10**6
    tokens: list[int] = field(default_factory=list)
    logprobs: list = field(default_factory=list)
    error: Exception | None = None

    def on_token(self, token, logprobs=None, /):
        self.tokens.append(token)
        self.logprobs.append(logprobs)
        return len(self.tokens) < self.enough

    def ask(self, engine):
        try:
            engine.generate(self.prompt, self.sampling, self.stop_ids, self.on_token)
        except Exception as error:  # noqa: BLE001 - whatever it is, the test looks at it
            self.error = error
        return self


def together(engine, requests):
    """Ask for all of them at once and return them when all are answered."""
    threads = [threading.Thread(target=request.ask, args=(engine,), daemon=True) for request in requests]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
        assert not thread.is_alive(), "the engine does not answer"
    return requests
