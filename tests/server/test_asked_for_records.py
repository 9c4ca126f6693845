"""The server as an InstructionSet meets it: over a socket, with its key, with its refusals, and cut off."""

import json
import socket
import threading

import pytest

from herdsman_trainer.errors import BadInput
from herdsman_trainer.instruction_making.asking import Clock
from herdsman_trainer.instruction_making.endpoint import Endpoint
from herdsman_trainer.run_context import RunContext
from herdsman_trainer.steps import instruction_set
from instruction_api import config_of, generation, lines

SAYS = json.dumps([{"instruction": "写诗", "output": "春天来了"}], ensure_ascii=False)


def make(root, url, key=None, clock=None, **fields):
    generate = generation(url=f"{url}/v1", key=key is not None, answerFormat="Text", maxTokens=500, **fields)
    generate = generate.model_copy(update={"endpoint": generate.endpoint.model_copy(update={"model": "demo"})})
    config = config_of(root, generate=generate)
    environment = {"HERDSMAN_ENDPOINT_API_KEY": key or ""}
    context = RunContext(config, rank=0)
    instruction_set.run(
        config, context, endpoint=lambda: Endpoint(generate.endpoint, 20, environment=environment), clock=clock
    )
    context.close()
    return config


def test_what_the_server_says_becomes_records(serve, tmp_path):
    server = serve(SAYS, keys=["sk-right"], context_length=4000)
    config = make(tmp_path, server.url, key="sk-right", records=1)
    assert lines(config) == [{"instruction": "写诗", "input": "", "output": "春天来了"}]
    ((prompt, sampling, _),) = server.engine.calls
    assert len(prompt) > 300
    assert sampling.max_tokens == 500


def test_a_wrong_key_is_told_from_none(serve, tmp_path):
    server = serve(SAYS, keys=["sk-right"], context_length=4000)
    with pytest.raises(BadInput, match="does not accept the key"):
        make(tmp_path / "a", server.url, key="sk-wrong-1234567")
    with pytest.raises(BadInput, match="wants a key"):
        make(tmp_path / "b", server.url)


def test_a_model_that_is_not_served_is_told_by_its_name(serve, tmp_path):
    server = serve(SAYS, context_length=4000)
    config = config_of(tmp_path, generate=generation(url=f"{server.url}/v1", answerFormat="Text", maxTokens=500))
    context = RunContext(config, rank=0)
    with pytest.raises(BadInput, match="teacher") as refused:
        instruction_set.run(config, context, endpoint=lambda: Endpoint(config.generate.endpoint, 20))
    assert "usually ends in /v1" in refused.value.hint


def test_a_connection_that_is_cut_in_the_middle_of_a_reply_is_asked_again(tmp_path):
    body = json.dumps({"choices": [{"message": {"content": SAYS}, "finish_reason": "stop"}]}).encode()
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body)
    cuts = [len(head) + 20, 0, len(head) + len(body)]
    listener = socket.create_server(("127.0.0.1", 0))

    def answer():
        for cut in cuts:
            connection, _ = listener.accept()
            with connection:
                asked = b""
                while b"\r\n\r\n" not in asked:
                    asked += connection.recv(65536)
                length = int(asked.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
                while len(asked.split(b"\r\n\r\n", 1)[1]) < length:
                    asked += connection.recv(65536)
                connection.sendall((head + body)[:cut])

    thread = threading.Thread(target=answer, daemon=True)
    thread.start()
    clock = Clock(sleep=lambda _: None)
    config = make(tmp_path, f"http://127.0.0.1:{listener.getsockname()[1]}", records=1, clock=clock)
    thread.join(5)
    listener.close()
    assert lines(config)[0]["output"] == "春天来了"
