"""llama.cpp itself, in this process: reads a GGUF file, tokenises, fills in chat templates and continues prompts."""

import ctypes
import json
import urllib.request
from pathlib import Path
from typing import Any

import pytest


class LlamaCpp:
    """The server of llama.cpp with one GGUF file; it ends with the process."""

    def __init__(self, path: Path, context: int = 512) -> None:
        xllamacpp = pytest.importorskip("xllamacpp", reason="needs llama.cpp: pip install xllamacpp")
        settings = xllamacpp.CommonParams()
        settings.model.path = str(path)
        settings.n_ctx = context
        settings.n_parallel = settings.cpuparams.n_threads = settings.cpuparams_batch.n_threads = 1
        settings.n_threads_http = 2
        settings.cache_type_k = settings.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32  # as transformers has them
        settings.warmup = False
        settings.port = 0
        settings.verbosity = -1
        settings.endpoint_props = True
        self._server = xllamacpp.Server(settings)
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._server))  # its destructor may wait for ever

    def ask(self, path: str, **body: Any) -> dict[str, Any]:
        """What an endpoint answers."""
        data = json.dumps(body).encode()
        request = urllib.request.Request(
            self._server.listening_address + path, data, {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=60) as response:
            return json.load(response)

    def tokenise(self, text: str, *, bos: bool = False, parse_special: bool = False) -> list[int]:
        return self.ask("/tokenize", content=text, add_special=bos, parse_special=parse_special)["tokens"]

    def text_of(self, ids: list[int]) -> str:
        return self.ask("/detokenize", tokens=ids)["content"]

    def prompt(self, *messages: tuple[str, str]) -> str:
        """The text that the file's chat template makes of a conversation."""
        turns = [{"role": role, "content": content} for role, content in messages]
        return self.ask("/apply-template", messages=turns)["prompt"]

    def greedy(self, ids: list[int], count: int) -> list[int]:
        """The likeliest continuation; it ends early where the model ends it."""
        answer = self.ask(
            "/completion", prompt=ids, n_predict=count, temperature=0, top_k=1, return_tokens=True, cache_prompt=False
        )
        return answer["tokens"]
