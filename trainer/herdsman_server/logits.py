"""What shapes the choice of a token in the engine `transformers`, and what is told of it."""

from typing import Any, NamedTuple

import torch
from transformers import LogitsProcessor, LogitsProcessorList, RepetitionPenaltyLogitsProcessor

from herdsman_server.engine import Constraint, Logprobs, Sampling


class LogprobRecorder(LogitsProcessor):  # type: ignore[misc]  # transformers is untyped here
    """Keeps the model's own log-probabilities of the next token; it changes nothing."""

    def __init__(self, top: int) -> None:
        self._top = top
        self._logprobs = torch.zeros(0)

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:  # noqa: ARG002
        """Keep the log-probabilities of the scores, which no other processor has touched."""
        self._logprobs = torch.log_softmax(scores[0].float(), dim=-1)
        return scores

    def of(self, token: int) -> Logprobs:
        """Return the log-probability of the token that was chosen last, and of the most probable ones."""
        values, ids = self._logprobs.topk(min(self._top, len(self._logprobs)))
        top = tuple(zip(ids.tolist(), values.tolist(), strict=True))
        return Logprobs(float(self._logprobs[token]), top)


class AnswerPenalties(LogitsProcessor):  # type: ignore[misc]  # transformers is untyped here
    """OpenAI's presence and frequency penalties, which count tokens of the answer and none of the prompt."""

    def __init__(self, presence: float, frequency: float, prompt_length: int) -> None:
        self._presence = presence
        self._frequency = frequency
        self._prompt_length = prompt_length

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Return the scores less what the answer's tokens lose."""
        said = input_ids[:, self._prompt_length :]
        counts = torch.zeros_like(scores).scatter_add_(1, said, torch.ones_like(said, dtype=scores.dtype))
        return scores - self._presence * (counts > 0) - self._frequency * counts


class ConstrainedLogits(LogitsProcessor):  # type: ignore[misc]  # transformers is untyped here
    """Leaves the tokens that a grammar allows."""

    def __init__(self, constraint: Constraint, prompt_length: int) -> None:
        self._constraint = constraint
        self._seen = prompt_length

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Return the scores with -inf for what is not allowed."""
        for token in input_ids[0, self._seen :].tolist():
            self._constraint.push(token)
        self._seen = input_ids.shape[1]
        allowed = torch.zeros(scores.shape[1], dtype=torch.bool)
        ids = torch.from_numpy(self._constraint.allowed())[: len(allowed)]
        allowed[: len(ids)] = ids
        return scores.masked_fill(~allowed.to(scores.device), float("-inf"))


class Shaping(NamedTuple):
    """The processors of one generation, and the one of them that is asked for log-probabilities."""

    processors: Any
    recorder: LogprobRecorder | None


def logits_processors(sampling: Sampling, prompt_length: int) -> Shaping:
    """Return what runs before temperature, top_k and top_p, in the order in which llama.cpp is asked to do it."""
    recorder = None if sampling.logprobs is None else LogprobRecorder(sampling.logprobs)
    processors = LogitsProcessorList([] if recorder is None else [recorder])
    if sampling.grammar is not None:
        processors.append(ConstrainedLogits(sampling.grammar.start(), prompt_length))
    if sampling.presence_penalty or sampling.frequency_penalty:
        penalties = AnswerPenalties(sampling.presence_penalty, sampling.frequency_penalty, prompt_length)
        processors.append(penalties)
    if sampling.repetition_penalty != 1.0:
        processors.append(RepetitionPenaltyLogitsProcessor(penalty=sampling.repetition_penalty))
    return Shaping(processors, recorder)
