"""A server behind its activator: clients of OpenAI's notice nothing of it."""

import asyncio
import contextlib
import threading

import openai
import pytest
from aiohttp import web

from herdsman.activator.app import Activator, client_app
from herdsman.activator.settings import Settings
from waiting import wait_until


@contextlib.contextmanager
def before(backend):
    """An activator in a thread of its own; yields (its URL, itself)."""
    activator = Activator(Settings(backend=backend, model="demo", hold_seconds=5, hold_requests=4))
    ready, stop, place = threading.Event(), asyncio.Event(), []

    async def serve():
        runner = web.AppRunner(client_app(activator), access_log=None, handler_cancellation=True, shutdown_timeout=1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        place.extend((asyncio.get_running_loop(), site._server.sockets[0].getsockname()[1]))
        ready.set()
        await stop.wait()
        await runner.cleanup()
        await activator.close()

    thread = threading.Thread(target=lambda: asyncio.run(serve()), daemon=True)
    thread.start()
    assert ready.wait(10)
    try:
        yield f"http://127.0.0.1:{place[1]}", activator
    finally:
        place[0].call_soon_threadsafe(stop.set)
        thread.join(timeout=10)


@pytest.fixture
def through(serve):
    """Start a server and an activator before it; returns the server's client, and one that goes through."""
    with contextlib.ExitStack() as stack:

        def start(*args, **options):
            server = serve(*args, **options)
            url, activator = stack.enter_context(before(server.url))
            client = openai.OpenAI(base_url=f"{url}/v1", api_key="secret", timeout=20, max_retries=0)
            stack.callback(client.close)
            return server, client, activator

        yield start


def chat(client, **options):
    messages = [{"role": "user", "content": "Hello"}]
    return client.chat.completions.create(model="demo", messages=messages, **options)


def test_answers_whole_and_streamed_and_errors_come_through(through):
    _, client, _ = through("a b c", keys=["secret"])
    assert chat(client).choices[0].message.content == "a b c"
    chunks = list(chat(client, stream=True))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "a b c"
    assert [model.id for model in client.models.list()] == ["demo"]
    with pytest.raises(openai.BadRequestError, match="temperature"):
        chat(client, temperature=9)
    with pytest.raises(openai.AuthenticationError):
        chat(client.with_options(api_key="wrong"))


def test_a_client_that_leaves_stops_the_engine(through):
    server, client, activator = through("a b c d e f g h")
    server.engine.hold_at = 2
    with chat(client, stream=True) as stream:
        next(iter(stream))
        assert activator.demand.report()["requests"] == 1
    wait_until(lambda: server.state.streams == 0, "the server has noticed")
    server.engine.go_on.set()
    wait_until(lambda: activator.demand.report()["requests"] == 0, "it is counted no longer")
    server.engine.hold_at = None
    assert chat(client).choices[0].message.content == "a b c d e f g h"
    assert server.engine.said < 2 * len(server.engine._ids)
