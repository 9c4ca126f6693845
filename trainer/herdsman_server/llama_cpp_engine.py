"""The engine `llamacpp`: a GGUF file, computed by llama.cpp.

llama.cpp's own server runs inside this process, on a port of this machine's loopback and behind a key that nobody else
knows; ids go in and ids come out, so that prompts and answers are those of the other engines.
"""

import ctypes
import os
import secrets
import time
import weakref
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import numpy as np
import xllamacpp
from numpy.typing import NDArray

from herdsman_server.engine import Constraint, Logprobs, OnToken, Sampling, UnsupportedError
from herdsman_server.slots import Slots
from herdsman_trainer.errors import BadInput

LONGEST_CONTEXT = 8192
"""Tokens whose keys and values are kept at most: memory for them is taken at the start."""
ALL_LAYERS = 999
SAMPLERS = ["penalties", "temperature", "top_k", "top_p"]
"""What shapes the choice of a token, in the order in which transformers does it."""
FEWEST_AT_ONCE, MOST_AT_ONCE = 4, 32
"""Tokens of one request after the first one: fewer are heard sooner, more cost fewer requests."""
ROUND_SECONDS = 0.08
"""As many are asked for as come in about this time."""
OUT_OF_REACH = 1000.0
"""Added to the logits of allowed tokens, it leaves the others behind; float32 still tells logits apart there."""
SOME, ALL = 50, 10**6
"""Most probable tokens to ask for, at first and where that was not enough."""
_TIMEOUT = httpx.Timeout(10.0, read=600.0)
"""Reading waits for what is computed from a long prompt."""


class _Piece(NamedTuple):
    """What llama.cpp said to one request."""

    tokens: list[tuple[int, Logprobs | None]]
    ended: bool


class LlamaCppEngine:
    """Computes answers with llama.cpp, several at once; they share the memory of one context."""

    broken = None

    def __init__(
        self, path: Path, *, context_length: int, device: str = "cpu", parallel: int = 1, exact: bool = False
    ) -> None:
        """Load a GGUF file; raises BadInput where llama.cpp cannot.

        `exact` keeps keys and values as float32, as transformers does on the CPU, in twice the memory.
        """
        self.context_length = min(context_length, LONGEST_CONTEXT)
        self.parallel = parallel
        key = secrets.token_hex(32)
        self._server = _start(_settings(path, self.context_length, key, device, parallel, exact=exact), path)
        self._whole = 0
        """A token that is no part of a character, or the next that may be none."""
        self._slots = Slots(parallel, self.context_length)
        self._client = httpx.Client(
            base_url=self._server.listening_address,
            headers={"Authorization": f"Bearer {key}"},
            timeout=_TIMEOUT,
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=parallel),
            trust_env=False,
        )
        weakref.finalize(self, self._client.close)

    def generate(self, prompt: Sequence[int], sampling: Sampling, stop_ids: frozenset[int], on_token: OnToken) -> None:
        """Ask llama.cpp for a few tokens at a time, and again from there; what it has computed it keeps.

        Its own stream leaves ids out wherever a character is spelled by several tokens. llama.cpp knows by the file
        which ids end an answer; where it keeps that id to itself, one of `stop_ids` stands for it. Penalties of the
        answer and grammars change with every token, and log-probabilities are complete only for one, so that it is
        then asked for one at a time.
        """
        constraint = sampling.grammar.start() if sampling.grammar else None
        penalised = bool(sampling.presence_penalty or sampling.frequency_penalty)
        singly = bool(penalised or constraint or sampling.logprobs is not None)
        said: list[int] = []
        step = 1
        with self._slots.lend(prompt, len(prompt) + sampling.max_tokens) as slot:
            while (left := sampling.max_tokens - len(said)) > 0:
                if constraint and constraint.ended:
                    on_token(min(stop_ids))
                    return
                body = {**self._body(prompt, said, sampling), "n_predict": min(step, left), "id_slot": slot}
                began = time.monotonic()
                tokens, ended = self._ask(body, constraint, stop_ids)
                if not all(_say(on_token, sampling, *each) for each in tokens) or ended or not tokens:
                    return
                said += [token for token, _ in tokens]
                if sampling.seed is None and not singly:
                    step = _next_step(len(tokens), time.monotonic() - began)
                else:
                    # A seed means the same answer, and so the same requests, however long they take.
                    step = 1 if singly else FEWEST_AT_ONCE

    def embed(self, texts: Sequence[Sequence[int]]) -> list[list[float]]:  # noqa: ARG002
        """Refuse: llama.cpp computes either answers or vectors."""
        raise UnsupportedError(
            "The engine llamacpp computes no embeddings; serve the Hugging Face weights with the engine transformers."
        )

    def _ask(self, body: dict[str, Any], constraint: Constraint | None, stop_ids: frozenset[int]) -> _Piece:
        """Return the next tokens, and whether the answer ends with them.

        As in llama.cpp's own grammars a token is drawn freely first, and again among the allowed ones if it is not.
        """
        piece = self._complete(body, stop_ids)
        if constraint is None or not piece.tokens:
            return piece
        allowed = constraint.allowed()
        ids = stop_ids if piece.ended else {piece.tokens[0][0]}
        if not any(index < len(allowed) and allowed[index] for index in ids):
            bias = dict(body["logit_bias"])
            body = {**body, "logit_bias": _only(allowed, bias, shift=body["repeat_penalty"] == 1.0)}
            piece = self._complete(body, stop_ids)
        if not piece.ended:
            constraint.push(piece.tokens[0][0])
        return piece

    def _complete(self, body: dict[str, Any], stop_ids: frozenset[int]) -> _Piece:
        answer = self._client.post("/completion", json=body)
        if answer.status_code != httpx.codes.OK:
            raise RuntimeError(f"llama.cpp answered {answer.status_code}: {answer.text[:500]}")
        said: dict[str, Any] = answer.json()
        ended = said["stop_type"] == "eos"
        entries = said.get("completion_probabilities", [])
        tokens = [(token, _logprobs(entries[0]) if entries else None) for token in said["tokens"]]
        if body["n_probs"] and not ended and not entries:
            tokens = [(token, self._logprobs_again(body, token)) for token, _ in tokens]
        if ended and not stop_ids.intersection(said["tokens"][-1:]) and stop_ids:
            tokens.append((min(stop_ids), None))
        return _Piece(tokens, ended)

    def _logprobs_again(self, body: dict[str, Any], token: int) -> Logprobs:
        """Return what llama.cpp leaves out for a token that begins a character: asked again, for another token."""
        for count in (SOME, ALL):
            forced = {**body, "n_probs": count, "repeat_penalty": 1.0, "temperature": 0.0}
            entries: list[dict[str, Any]] = []
            while not entries:
                answer = self._client.post("/completion", json={**forced, "logit_bias": [(self._whole, OUT_OF_REACH)]})
                answer.raise_for_status()
                entries = answer.json().get("completion_probabilities", [])
                self._whole += not entries
            top = tuple((each["id"], float(each["logprob"])) for each in entries[0]["top_logprobs"])
            if token in dict(top):
                break
        return Logprobs(dict(top)[token], top[: body["n_probs"]])

    def _body(self, prompt: Sequence[int], said: Sequence[int], sampling: Sampling) -> dict[str, Any]:
        """Return the request for what follows `said`."""
        return {
            "prompt": [*prompt, *said],
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "top_k": sampling.top_k,
            "min_p": 0.0,
            "repeat_penalty": sampling.repetition_penalty,
            "repeat_last_n": self.context_length,  # as transformers has it
            "samplers": SAMPLERS,
            "seed": -1 if sampling.seed is None else (sampling.seed + len(said)) % 2**32,
            "cache_prompt": True,
            "return_tokens": True,
            # llama.cpp's own penalties would count the prompt as well
            "logit_bias": _penalties(said, sampling),
            "n_probs": 0 if sampling.logprobs is None else max(1, sampling.logprobs),
        }


def _next_step(tokens: int, seconds: float) -> int:
    """Return how many tokens to ask for next, after so many took so long."""
    return max(FEWEST_AT_ONCE, min(MOST_AT_ONCE, int(ROUND_SECONDS * tokens / max(seconds, 1e-6))))


def _penalties(said: Sequence[int], sampling: Sampling) -> list[tuple[int, float]]:
    """Return what the answer's tokens lose by the presence and the frequency penalty."""
    presence, frequency = sampling.presence_penalty, sampling.frequency_penalty
    if not (presence or frequency):
        return []
    return [(token, -presence - frequency * count) for token, count in Counter(said).items()]


def _only(allowed: NDArray[np.bool_], bias: dict[int, float], *, shift: bool) -> list[tuple[int, float | bool]]:
    """Return the bias that leaves the allowed ids, in as few entries as it can.

    Raising the allowed ones is the same as forbidding the others unless logits are multiplied afterwards (`shift`).
    """
    count = int(allowed.sum())
    if shift and count < len(allowed) // 2:
        return [(token, bias.get(token, 0.0) + OUT_OF_REACH) for token in np.flatnonzero(allowed).tolist()]
    kept = [(token, value) for token, value in bias.items() if allowed[token]]
    return [*kept, *[(token, False) for token in np.flatnonzero(~allowed).tolist()]]


def _say(on_token: OnToken, sampling: Sampling, token: int, logprobs: Logprobs | None) -> bool:
    if logprobs is None or sampling.logprobs is None:
        return on_token(token)
    return on_token(token, Logprobs(logprobs.chosen, logprobs.top[: sampling.logprobs]))


def _logprobs(entry: dict[str, Any]) -> Logprobs:
    most = tuple((each["id"], float(each["logprob"])) for each in entry["top_logprobs"])
    return Logprobs(float(entry["logprob"]), most)


def _settings(path: Path, context_length: int, key: str, device: str, parallel: int, *, exact: bool) -> Any:
    settings = xllamacpp.CommonParams()
    settings.model.path = str(path)
    settings.n_ctx = context_length
    settings.n_parallel = parallel
    settings.kv_unified = True
    # Between two requests of an answer its slot is idle: what is computed has to stay where it is, and only there.
    settings.cache_idle_slots = False
    settings.cache_ram_mib = 0
    settings.cpuparams.n_threads = len(os.sched_getaffinity(0))
    settings.api_keys = [key]
    settings.ui = False
    settings.endpoint_slots = False
    settings.warmup = False
    settings.verbosity = 0
    settings.n_gpu_layers = ALL_LAYERS if device == "cuda" else 0
    if exact:
        settings.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
        settings.cache_type_k = settings.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    if device == "cuda" and not _has_gpu():
        hint = "Set compute.gpusPerNode to 0, or take an image whose xllamacpp is built for CUDA."
        raise BadInput("llama.cpp is to use a GPU and finds none.", hint=hint)
    return settings


def _start(settings: Any, path: Path) -> Any:
    try:
        return keep(xllamacpp.Server(settings))
    except RuntimeError as error:
        hint = "The log has what llama.cpp says; make the file again with a LoRAMerge."
        raise BadInput(f"llama.cpp cannot load the file: {error}", file=str(path), hint=hint) from None


def keep(server: Any) -> Any:
    """Return llama.cpp's server, which from now on ends with the process: its destructor joins a thread that now and
    then has missed the signal to stop, and waits for ever then.
    """
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(server))
    return server


def _has_gpu() -> bool:
    return any("GPU" in str(device.get("type", "")) for device in xllamacpp.get_device_info())
