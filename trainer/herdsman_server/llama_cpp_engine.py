"""The engine `llamacpp`: a GGUF file, computed by llama.cpp.

llama.cpp's own server runs inside this process, on a port of this machine's loopback and behind a key that nobody else
knows; ids go in and ids come out, so that prompts and answers are those of the other engines.
"""

import os
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
import xllamacpp

from herdsman_server.engine import OnToken, Sampling
from herdsman_trainer.errors import BadInput

LONGEST_CONTEXT = 8192
"""Tokens whose keys and values are kept at most: memory for them is taken at the start."""
ALL_LAYERS = 999
SAMPLERS = ["penalties", "temperature", "top_k", "top_p"]
"""What shapes the choice of a token, in the order in which transformers does it."""
TOKENS_AT_ONCE = 4
"""After the first one: fewer are heard sooner, more cost fewer requests."""
_TIMEOUT = httpx.Timeout(10.0, read=600.0)
"""Reading waits for what is computed from a long prompt."""


class LlamaCppEngine:
    """Computes answers with llama.cpp, one at a time."""

    def __init__(self, path: Path, *, context_length: int, device: str = "cpu") -> None:
        """Load a GGUF file; raises BadInput where llama.cpp cannot."""
        self.context_length = min(context_length, LONGEST_CONTEXT)
        key = secrets.token_hex(32)
        self._server = _start(path, self.context_length, key, device)
        self._client = httpx.Client(
            base_url=self._server.listening_address,
            headers={"Authorization": f"Bearer {key}"},
            timeout=_TIMEOUT,
            trust_env=False,
        )

    def generate(self, prompt: Sequence[int], sampling: Sampling, stop_ids: frozenset[int], on_token: OnToken) -> None:
        """Ask llama.cpp for a few tokens at a time, and again from there; what it has computed it keeps.

        Its own stream leaves ids out wherever a character is spelled by several tokens. llama.cpp knows by the file
        which ids end an answer; where it keeps that id to itself, one of `stop_ids` stands for it.
        """
        ids, left, step = list(prompt), sampling.max_tokens, 1
        while left > 0:
            piece = self._ask(ids, sampling, min(step, left), len(ids) - len(prompt))
            tokens = piece["tokens"]
            if piece["stop_type"] == "eos" and not stop_ids.intersection(tokens[-1:]) and stop_ids:
                tokens.append(min(stop_ids))
            if not all(on_token(token) for token in tokens) or piece["stop_type"] == "eos" or not tokens:
                return
            ids += tokens
            left, step = left - len(tokens), TOKENS_AT_ONCE

    def _ask(self, ids: Sequence[int], sampling: Sampling, count: int, said: int) -> dict[str, Any]:
        """Return the next `count` tokens after `said` ones of the answer, or fewer where it ends."""
        body = {
            "prompt": ids,
            "n_predict": count,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "top_k": sampling.top_k,
            "min_p": 0.0,
            "repeat_penalty": sampling.repetition_penalty,
            "repeat_last_n": self.context_length,  # as transformers has it
            "samplers": SAMPLERS,
            "seed": -1 if sampling.seed is None else (sampling.seed + said) % 2**32,
            "cache_prompt": True,
            "return_tokens": True,
        }
        answer = self._client.post("/completion", json=body)
        if answer.status_code != httpx.codes.OK:
            raise RuntimeError(f"llama.cpp answered {answer.status_code}: {answer.text[:500]}")
        piece: dict[str, Any] = answer.json()
        return piece


def _start(path: Path, context_length: int, key: str, device: str) -> Any:
    settings = xllamacpp.CommonParams()
    settings.model.path = str(path)
    settings.n_ctx = context_length
    settings.n_parallel = 1
    settings.cpuparams.n_threads = len(os.sched_getaffinity(0))
    settings.api_keys = [key]
    settings.ui = False
    settings.endpoint_slots = False
    settings.warmup = False
    settings.verbosity = 0
    settings.n_gpu_layers = ALL_LAYERS if device == "cuda" else 0
    if device == "cuda" and not _has_gpu():
        hint = "Set compute.gpusPerNode to 0, or take an image whose xllamacpp is built for CUDA."
        raise BadInput("llama.cpp is to use a GPU and finds none.", hint=hint)
    try:
        return xllamacpp.Server(settings)
    except RuntimeError as error:
        hint = "The log has what llama.cpp says; make the file again with a LoRAMerge."
        raise BadInput(f"llama.cpp cannot load the file: {error}", file=str(path), hint=hint) from None


def _has_gpu() -> bool:
    return any("GPU" in str(device.get("type", "")) for device in xllamacpp.get_device_info())
