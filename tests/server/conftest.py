"""A server on a free port of this process, and engines that say what a test wants."""

import asyncio
import contextlib
import threading

import httpx
import openai
import pytest
import torch
import uvicorn

from herdsman.api.v1alpha1.model_server import ServerLimits
from herdsman_server.app import create_app
from herdsman_server.engine import ServedModel
from herdsman_server.keys import ApiKeys
from herdsman_server.state import ServerState
from herdsman_trainer.prompts import TEMPLATES
from herdsman_trainer.tokenizers import load_tokenizer
from tiny import tiny_sentencepiece
from waiting import wait_until


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory):
    return load_tokenizer(tiny_sentencepiece(tmp_path_factory.mktemp("tokenizer")))


class ScriptedEngine:
    """Says a text token by token, as often as it is asked; before the token `hold_at` it waits for `go_on`."""

    parallel = 1
    broken = None

    def __init__(self, tokenizer, text="", *, ends=True, context_length=200):
        self.context_length = context_length
        self.calls = []
        self.said = 0
        self.hold_at = None
        self.go_on = threading.Event()
        self.fail_after = None
        self._ids = [*tokenizer.encode(text), *([tokenizer.eos_id] if ends else [])]

    def generate(self, prompt, sampling, stop_ids, on_token):
        self.calls.append((list(prompt), sampling, stop_ids))
        for number, token in enumerate(self._ids[: sampling.max_tokens]):
            if self.hold_at == number:
                self.go_on.wait(timeout=20)
            if self.fail_after == number:
                raise RuntimeError("the matrix is not amused")
            self.said += 1
            if not on_token(token):
                return


@contextlib.contextmanager
def running(state):
    """Serve an application from a thread; yields its URL."""
    settings = uvicorn.Config(create_app(state), port=0, log_config=None, access_log=False, lifespan="off")
    server = uvicorn.Server(settings)
    thread = threading.Thread(target=lambda: asyncio.run(server.serve()), daemon=True)
    thread.start()
    wait_until(lambda: server.started, "the server listens")
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(timeout=20)
        state.close()
        assert not thread.is_alive()


class Client:
    """A running server seen from outside."""

    def __init__(self, url, state, engine):
        self.url = url
        self.state = state
        self.engine = engine
        self.http = httpx.Client(base_url=url, timeout=20)
        self.openai = openai.OpenAI(base_url=f"{url}/v1", api_key="none", timeout=20, max_retries=0)

    @property
    def metrics(self):
        """What Prometheus would read; a request first, so that those before it have been counted."""
        self.http.get("/healthz")
        return self.state.metrics.exposition().decode()

    def chat(self, text="Hello", **options):
        messages = options.pop("messages", [{"role": "user", "content": text}])
        return self.openai.chat.completions.create(model="demo", messages=messages, **options)

    def complete(self, prompt="The river", **options):
        return self.openai.completions.create(model="demo", prompt=prompt, **options)


@pytest.fixture
def serve(tokenizer):
    """Start servers with scripted engines: serve("what it says", queue_length=...)."""
    with contextlib.ExitStack() as stack:

        def start(
            text="a b",
            *,
            ready=True,
            keys=(),
            origins=(),
            engine=None,
            template="alpaca",
            used=tokenizer,
            dialect="openai",
            **limits,
        ):
            options = {name: limits.pop(name) for name in ("ends", "context_length") if name in limits}
            engine = engine or ScriptedEngine(used, text, **options)
            keys = keys if isinstance(keys, ApiKeys) else ApiKeys([key.encode() for key in keys])
            state = ServerState("demo", ServerLimits(**limits), keys, cors_origins=origins, dialect=dialect)
            if ready:
                state.serve(ServedModel(engine, used, TEMPLATES[template], starts_with_bos=True))
            client = Client(stack.enter_context(running(state)), state, engine)
            stack.callback(client.http.close)
            stack.callback(client.openai.close)
            if isinstance(engine, ScriptedEngine):
                stack.callback(engine.go_on.set)
            return client

        yield start
