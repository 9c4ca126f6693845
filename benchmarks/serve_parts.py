"""What the benchmark of serving is made of: a random model, a stand-in for its tokenizer, a gateway, a client."""

import asyncio
import json
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from herdsman.api.v1alpha1.model_server import ServerLimits
from herdsman_server.app import create_app
from herdsman_server.engine import Sampling, ServedModel
from herdsman_server.state import ServerState
from herdsman_trainer.prompts import TEMPLATES

HERE = Path(__file__).resolve().parent
SHAPES: dict[str, dict[str, Any]] = {
    "7b": {"vocab_size": 49953, "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
           "num_attention_heads": 32, "num_key_value_heads": 32, "max_position_embeddings": 4096},
    "8b": {"vocab_size": 128256, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
           "num_attention_heads": 32, "num_key_value_heads": 8, "max_position_embeddings": 8192},
    "135m": {"vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
             "num_attention_heads": 9, "num_key_value_heads": 3, "max_position_embeddings": 2048,
             "tie_word_embeddings": True},
    "tiny": {"vocab_size": 4000, "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 4,
             "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 1024},
}  # fmt: skip
EOS = 2
WARM = 0.2
"""The share of the time at the beginning that does not count."""


def random_model(shape: str, device: str) -> Any:
    """Return a Llama of this shape with random weights, made on the device: bfloat16 on a GPU, float32 on a CPU."""
    from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16 if device == "cuda" else torch.float32)
    try:
        with torch.device(device):
            model = LlamaForCausalLM(LlamaConfig(**SHAPES[shape], bos_token_id=1, eos_token_id=EOS))
    finally:
        torch.set_default_dtype(before)
    model.generation_config = GenerationConfig()
    return model.eval().requires_grad_(False)


class Words:
    """A tokenizer for whom every id is a word; the model's own would know none of what it says."""

    bos_id, eos_id, pad_id, digest = 1, EOS, None, ""

    def __init__(self, vocab_size: int) -> None:
        self.vocab_size = vocab_size

    def encode(self, text: str) -> list[int]:
        return [3 + len(word) for word in text.split()]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        return [self.encode(text) for text in texts]

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(f" w{token}" for token in ids)

    def bytes_of(self, token: int) -> bytes:
        return f" w{token}".encode()

    def control_id(self, name: str) -> int | None:  # noqa: ARG002
        return None


def prompts(vocab_size: int, shortest: int, longest: int, count: int = 256) -> list[list[int]]:
    """Return random prompts of lengths in these bounds."""
    chance = torch.Generator().manual_seed(1)
    lengths = torch.randint(shortest, longest + 1, (count,), generator=chance).tolist()
    return [[1, *torch.randint(3, vocab_size, (length - 1,), generator=chance).tolist()] for length in lengths]


@contextmanager
def gateway(engine: Any, tokenizer: Any) -> Iterator[int]:
    """Serve an engine as the server does, in a thread of this process; yields the port."""
    import uvicorn

    limits = ServerLimits(max_tokens=4096, streams=10000, queue_length=10000)
    state = ServerState("bench", limits)
    state.serve(ServedModel(engine, tokenizer, TEMPLATES["alpaca"], starts_with_bos=True))
    server = uvicorn.Server(
        uvicorn.Config(create_app(state), port=0, log_config=None, access_log=False, lifespan="off")
    )
    thread = threading.Thread(target=lambda: asyncio.run(server.serve()), daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield server.servers[0].sockets[0].getsockname()[1]
    finally:
        server.should_exit = True
        thread.join(timeout=30)


class Client:
    """The process that asks."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, HERE / "serve_client.py"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def __call__(self, **command: Any) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(command) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def close(self) -> None:
        self._process.kill()
        self._process.wait()


def body(prompt: Sequence[int], sampling: Sampling) -> dict[str, Any]:
    """Return the request for an answer, in ids."""
    return {
        "model": "bench",
        "prompt": list(prompt),
        "stream": True,
        "max_tokens": sampling.max_tokens,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k,
        "repetition_penalty": sampling.repetition_penalty,
    }


def llama_cpp_body(prompt: Sequence[int], sampling: Sampling) -> dict[str, Any]:
    """Return the same for llama.cpp's own server."""
    return {
        "prompt": list(prompt),
        "stream": True,
        "return_tokens": True,
        "n_predict": sampling.max_tokens,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k,
        "min_p": 0.0,
        "repeat_penalty": sampling.repetition_penalty,
        "cache_prompt": True,
    }


def directly(
    engine: Any, clients: int, seconds: float, asked: Sequence[Sequence[int]], sampling: Any
) -> dict[str, Any]:
    """Ask an engine from as many threads as there are clients; `sampling` may differ by the number of the client."""
    began = time.monotonic()
    until = began + seconds
    found: list[dict[str, Any]] = []

    def client(number: int) -> None:
        turn = number
        own = sampling(number) if callable(sampling) else sampling
        while turn == number or time.monotonic() < until:
            pieces: list[tuple[float, int]] = []
            start = time.monotonic()

            def on_token(*_: object, pieces: Any = pieces) -> bool:
                pieces.append((time.monotonic(), 1))
                return True

            engine.generate(asked[turn % len(asked)], own, frozenset({EOS}), on_token)
            found.append({"asked": start, "pieces": pieces, "status": 200})
            turn += clients

    threads = [threading.Thread(target=client, args=(number,), daemon=True) for number in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return {"began": began, "ended": time.monotonic(), "requests": found}


def figures(measured: dict[str, Any], seconds: float) -> dict[str, float]:
    """Return what counts: requests that began after the warm-up, tokens in the time that is left."""
    since, until = measured["began"] + WARM * seconds, measured["began"] + seconds
    answered = [each for each in measured["requests"] if each["status"] == 200 and each["pieces"]]
    counted = [each for each in answered if each["asked"] >= since] or answered
    tokens = sum(n for each in answered for at, n in each["pieces"] if since <= at <= until)
    waits = [each["pieces"][0][0] - each["asked"] for each in counted]
    pieces = [each["pieces"] for each in counted]
    gaps = [later[0] - before[0] for each in pieces for before, later in pairwise(each)]
    ended = [each["pieces"][-1][0] for each in answered]
    return {
        "tokens a second": tokens / (until - since),
        "requests a second": sum(since <= at <= until for at in ended) / (until - since),
        "first token, ms p50": 1e3 * percentile(waits, 50),
        "first token, ms p99": 1e3 * percentile(waits, 99),
        "between, ms p50": 1e3 * percentile(gaps, 50),
        "between, ms p99": 1e3 * percentile(gaps, 99),
        "requests": len(counted),
        "refused": sum(each["status"] != 200 for each in measured["requests"]),
    }


def percentile(values: Sequence[float], percent: int) -> float:
    if len(values) < 2:
        return values[0] if values else float("nan")
    return statistics.quantiles(values, n=100, method="inclusive")[percent - 1]
