"""One answer at a time, by `generate` of transformers: for models whose forward pass is not ours to write."""

from collections.abc import Sequence
from typing import Any

import torch
from transformers import GenerationConfig, StoppingCriteria, StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer

from herdsman_server.engine import OnToken, Sampling
from herdsman_server.logits import LogprobRecorder, logits_processors

TEXTS_AT_ONCE = 8
"""Texts whose vectors are computed in one pass."""


class OneAtATime:
    """Computes answers with a transformers model, one at a time."""

    parallel = 1
    broken = None

    def __init__(self, model: Any) -> None:
        self._model = model
        self.context_length: int = model.config.max_position_embeddings

    def generate(self, prompt: Sequence[int], sampling: Sampling, stop_ids: frozenset[int], on_token: OnToken) -> None:
        """Generate with the model's cache; every id goes to `on_token` as soon as it is chosen."""
        device = self._model.device
        ids = torch.tensor([list(prompt)], device=device)
        shaping = logits_processors(sampling, len(prompt))
        stream = _TokenStream(on_token, shaping.recorder)
        drawn = {
            "do_sample": True,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "top_k": sampling.top_k,
        }
        settings = GenerationConfig(
            max_new_tokens=sampling.max_tokens,
            eos_token_id=sorted(stop_ids),
            pad_token_id=min(stop_ids, default=0),
            use_cache=True,
            **(drawn if sampling.temperature > 0 else {"do_sample": False}),
        )
        if sampling.seed is not None:
            torch.manual_seed(sampling.seed)
        else:
            torch.seed()
        with torch.inference_mode():
            self._model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                generation_config=settings,
                streamer=stream,
                logits_processor=shaping.processors,
                stopping_criteria=StoppingCriteriaList([stream.stop]),
            )

    def embed(self, texts: Sequence[Sequence[int]]) -> list[list[float]]:
        """Average the last layer's states over the tokens of each text, and scale the mean to length 1."""
        vectors: list[list[float]] = []
        for start in range(0, len(texts), TEXTS_AT_ONCE):
            vectors += self._embed_together(texts[start : start + TEXTS_AT_ONCE])
        return vectors

    def _embed_together(self, texts: Sequence[Sequence[int]]) -> list[list[float]]:
        longest = max(map(len, texts))
        device = self._model.device
        ids = torch.tensor([[*text, *[0] * (longest - len(text))] for text in texts], device=device)
        lengths = torch.tensor([len(text) for text in texts], device=device)
        mask = torch.arange(longest, device=device)[None] < lengths[:, None]
        with torch.inference_mode():
            states = self._model.model(input_ids=ids, attention_mask=mask.long(), use_cache=False).last_hidden_state
            total = (states.float() * mask[..., None]).sum(dim=1)
            vectors: list[list[float]] = torch.nn.functional.normalize(total / lengths[:, None], dim=-1).tolist()
        return vectors


class _Stop(StoppingCriteria):  # type: ignore[misc]  # transformers is untyped here
    """Ends the generation once nobody wants more tokens."""

    wanted = True

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:  # noqa: ARG002
        return torch.full((input_ids.shape[0],), not self.wanted, device=input_ids.device, dtype=torch.bool)


class _TokenStream(BaseStreamer):  # type: ignore[misc]  # transformers is untyped here
    """Passes generated ids on; the first thing `generate` puts is the prompt."""

    def __init__(self, on_token: OnToken, recorder: LogprobRecorder | None) -> None:
        self.stop = _Stop()
        self._on_token = on_token
        self._recorder = recorder
        self._prompt_seen = False

    def put(self, value: torch.Tensor) -> None:
        if not self._prompt_seen:
            self._prompt_seen = True
            return
        for token in value.reshape(-1).tolist():
            said = (token,) if self._recorder is None else (token, self._recorder.of(token))
            self.stop.wanted = self.stop.wanted and self._on_token(*said)

    def end(self) -> None:
        """Nothing is held back here."""
