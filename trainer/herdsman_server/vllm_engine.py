"""The engine `vllm`: vLLM's own server, beside this one in the pod; ids go in and ids come out.

Templates, texts, stops, keys and limits are therefore those of the other engines, and text of a client is never
tokenised by anybody but us.
"""

import json
import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx

from herdsman_server.engine import Logprobs, OnToken, Sampling, UnsupportedError
from herdsman_trainer.errors import BadInput, Temporary
from herdsman_trainer.weights.adapters import load_adapter

log = logging.getLogger(__name__)

PARALLEL = 128
"""Answers that are asked for at once, unless something else is said; vLLM makes its own batches of them."""
LOADING_SECONDS = 1800
LOOK_SECONDS = 5.0
MISSES = 6
"""Looks in a row without an answer after which vLLM counts as gone: what it had loaded is lost then."""
NAME = "token_id:"
"""How vLLM names a token by its id, where it is asked to."""
MERGE_IT = "Merge it with a LoRAMerge and serve the result as a model of its own."
_TIMEOUT = httpx.Timeout(10.0, read=600.0)


class VllmEngine:
    """Has answers computed by vLLM."""

    def __init__(
        self,
        upstream: str,
        model_name: str,
        *,
        parallel: int | None = None,
        loading_seconds: float = LOADING_SECONDS,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        """Wait until vLLM has loaded the model; raises Temporary where it takes too long."""
        self.parallel = parallel or PARALLEL
        self.broken: str | None = None
        self._model = model_name
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=self.parallel)
        self._client = httpx.Client(base_url=upstream, timeout=_TIMEOUT, limits=limits, trust_env=False)
        self._closed = threading.Event()
        self._wait(loading_seconds, pause)
        self.context_length = self._context_length()
        self._watcher = threading.Thread(target=self._watch, name="vllm", daemon=True)
        self._watcher.start()

    def generate(self, prompt: Sequence[int], sampling: Sampling, stop_ids: frozenset[int], on_token: OnToken) -> None:
        """Stream an answer; hanging up is how vLLM learns that nobody wants more."""
        said = 0
        for choice in self._stream(self._body(prompt, sampling, stop_ids)):
            tokens = choice.get("token_ids") or []
            logprobs = _logprobs(choice.get("logprobs"), sampling.logprobs)
            for place, token in enumerate(tokens):
                said += 1
                with_it = logprobs[place] if place < len(logprobs) and token not in stop_ids else None
                if not (on_token(token) if with_it is None else on_token(token, with_it)) or token in stop_ids:
                    return
            # An answer that is complete JSON ends without an id, and so may one that ends by an id it keeps to itself.
            if choice.get("finish_reason") == "stop" and stop_ids and said < sampling.max_tokens:
                on_token(min(stop_ids))
                return

    def embed(self, texts: Sequence[Sequence[int]]) -> list[list[float]]:  # noqa: ARG002
        """Refuse: vLLM computes either answers or vectors."""
        raise UnsupportedError(
            "The engine vllm computes no embeddings here; serve the model with the engine transformers for them."
        )

    def close(self) -> None:
        """Look after vLLM no more."""
        self._closed.set()
        self._watcher.join()
        self._client.close()

    def load(self, name: str, directory: Path) -> None:
        """Have vLLM load an adapter."""
        adapter = load_adapter(directory)
        if adapter.full:
            message = f"The adapter brings {', '.join(sorted(adapter.full))}, which vLLM does not take with an adapter."
            raise BadInput(message, file=str(directory), hint=MERGE_IT)
        self._say("/v1/load_lora_adapter", {"lora_name": name, "lora_path": str(directory)}, directory)

    def unload(self, name: str) -> None:
        """Have vLLM drop an adapter."""
        self._say("/v1/unload_lora_adapter", {"lora_name": name}, None)

    def _say(self, path: str, body: dict[str, Any], directory: Path | None) -> None:
        try:
            answer = self._client.post(path, json=body)
        except httpx.TransportError as error:
            raise Temporary(f"vLLM does not answer: {error}.") from None
        if answer.status_code >= httpx.codes.BAD_REQUEST:
            hint = "Its rank may be above vllm.maxLoraRank; the log of the container vllm has more."
            message = f"vLLM says {answer.status_code}: {_message(answer)}"
            raise BadInput(message, file=str(directory) if directory is not None else None, hint=hint)

    def _body(self, prompt: Sequence[int], sampling: Sampling, stop_ids: frozenset[int]) -> dict[str, Any]:
        body: dict[str, Any] = {
            "model": sampling.adapter or self._model,
            "prompt": list(prompt),
            "stream": True,
            "max_tokens": sampling.max_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "top_k": sampling.top_k,
            "repetition_penalty": sampling.repetition_penalty,
            "presence_penalty": sampling.presence_penalty,
            "frequency_penalty": sampling.frequency_penalty,
            # What ends an answer we know better than the files of the model.
            "stop_token_ids": sorted(stop_ids),
            "ignore_eos": True,
            "return_token_ids": True,
            "return_tokens_as_token_ids": True,
            "skip_special_tokens": False,
        }
        if sampling.seed is not None:
            body["seed"] = sampling.seed
        if sampling.logprobs is not None:
            body["logprobs"] = sampling.logprobs
        if sampling.grammar is not None:
            schema = {"name": "answer", "schema": dict(sampling.grammar.schema)}
            body["response_format"] = {"type": "json_schema", "json_schema": schema}
        return body

    def _stream(self, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
        with self._client.stream("POST", "/v1/completions", json=body) as answer:
            if answer.status_code != httpx.codes.OK:
                answer.read()
                raise RuntimeError(f"vLLM answered {answer.status_code}: {_message(answer)[:500]}")
            for line in answer.iter_lines():
                data = line.removeprefix("data:").strip()
                if not line.startswith("data:") or data == "[DONE]":
                    continue
                event = json.loads(data)
                if "error" in event:
                    raise RuntimeError(f"vLLM ended an answer: {str(event['error'])[:500]}")
                yield from event.get("choices") or ()

    def _wait(self, seconds: float, pause: Callable[[float], None]) -> None:
        began = told = time.monotonic()
        while not self._healthy():
            now = time.monotonic()
            if now - began > seconds:
                hint = "The log of the container vllm says what it does; it may need more memory or GPUs."
                raise Temporary(f"vLLM has not loaded the model within {seconds:.0f} s.", hint=hint)
            if now - told > 60:
                log.info("vLLM is still loading.")
                told = now
            pause(1.0)

    def _context_length(self) -> int:
        answer = self._client.get("/v1/models")
        answer.raise_for_status()
        lengths = [each.get("max_model_len") for each in answer.json()["data"] if each.get("max_model_len")]
        return int(lengths[0])

    def _healthy(self) -> bool:
        try:
            return self._client.get("/health", timeout=LOOK_SECONDS).status_code == httpx.codes.OK
        except httpx.HTTPError:
            return False

    def _watch(self) -> None:
        """Notice that vLLM is gone: a new one has none of the adapters, so this process has to start anew as well."""
        misses = 0
        while not self._closed.wait(LOOK_SECONDS):
            misses = 0 if self._healthy() else misses + 1
            if misses >= MISSES and not self._closed.is_set():
                self.broken = "vLLM, in the container beside this one, does not answer any more"


def _message(answer: httpx.Response) -> str:
    """Return what an error says, in whichever of its shapes."""
    try:
        body = answer.json()
    except ValueError:
        return answer.text
    found = body.get("error", body) if isinstance(body, dict) else body
    return str(found.get("message", found) if isinstance(found, dict) else found)


def _logprobs(said: dict[str, Any] | None, count: int | None) -> list[Logprobs]:
    if said is None or count is None:
        return []
    found = []
    for chosen, top in zip(said["token_logprobs"], said.get("top_logprobs") or [], strict=False):
        ranked = sorted(((_id(name), float(value)) for name, value in (top or {}).items()), key=lambda pair: -pair[1])
        found.append(Logprobs(float(chosen), tuple(ranked[:count])))
    return found


def _id(name: str) -> int:
    return int(name.removeprefix(NAME))
