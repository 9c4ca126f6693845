"""Limits of size, time and number; and web pages of other origins."""

import contextlib
import json
import socket
import threading

import httpx
import pytest

from waiting import wait_until

CHAT = "/v1/chat/completions"
BODY = {"model": "demo", "messages": [{"role": "user", "content": "x"}]}
JSON = {"Content-Type": "application/json"}
MIB = 2**20


def error(reply):
    return reply.json()["error"]


def test_a_body_that_says_it_is_too_long_is_refused_unread(serve):
    client = serve(body_bytes=2000)
    reply = client.http.post(CHAT, content=b" " * 2001)
    assert (reply.status_code, error(reply)["code"]) == (413, "request_too_large")
    assert "has 2001 bytes, and this server takes 2000 at most" in error(reply)["message"]
    body = json.dumps(BODY).encode()
    assert client.http.post(CHAT, content=body.ljust(2000), headers=JSON).status_code == 200


def test_a_body_of_unknown_length_is_refused_while_it_comes(serve):
    client = serve(body_bytes=2 * MIB)
    sent = []

    def endless():
        while True:
            sent.append(1)
            yield b" " * 65536

    with contextlib.suppress(httpx.WriteError, httpx.RemoteProtocolError):
        reply = client.http.post(CHAT, content=endless())
        assert reply.status_code == 413
    wait_until(lambda: 'status="413"' in client.metrics, "it is refused")
    assert client.engine.calls == []


@contextlib.contextmanager
def connection(client):
    """A bare connection to the server."""
    host, port = client.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=20) as raw:
        yield raw


def answer_of(raw):
    pieces = []
    while piece := raw.recv(65536):
        pieces.append(piece)
    head, _, body = b"".join(pieces).partition(b"\r\n\r\n")
    return head.decode().splitlines()[0], body


def post(length, *more):
    lines = [f"POST {CHAT} HTTP/1.1", "Host: x", "Content-Type: application/json", f"Content-Length: {length}", *more]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


def test_a_client_that_sends_a_gigantic_body_at_once_hears_of_the_refusal(serve):
    client = serve(body_bytes=4096)
    with connection(client) as raw:
        raw.sendall(post(10 * 2**30) + b"x" * MIB)
        status, body = answer_of(raw)
    assert status.startswith("HTTP/1.1 413 ")
    assert f"has {10 * 2**30} bytes" in json.loads(body)["error"]["message"]


def test_a_client_that_asks_first_is_told_before_it_sends(serve):
    client = serve(body_bytes=4096)
    with connection(client) as raw:
        raw.sendall(post(5000, "Expect: 100-continue"))
        status, _ = answer_of(raw)
    assert status.startswith("HTTP/1.1 413 ")


def test_a_slow_client_is_sent_away(serve):
    client = serve(body_seconds=1)
    with connection(client) as raw:
        raw.sendall(post(100) + b'{"model"')
        status, body = answer_of(raw)
    assert status.startswith("HTTP/1.1 408 ")
    assert "not complete after 1 s (8 bytes came)" in json.loads(body)["error"]["message"]


def test_a_client_that_leaves_while_it_sends_is_counted_and_forgotten(serve, caplog):
    client = serve()
    with connection(client) as raw:
        raw.sendall(post(100) + b'{"model"')
    wait_until(lambda: 'endpoint="other",status="499"' in client.metrics, "it is noticed")
    assert "Traceback" not in caplog.text


def test_without_a_key_no_body_is_read(serve):
    client = serve(keys=["secret"])
    with connection(client) as raw:
        raw.sendall(post(100))
        assert raw.recv(12) == b"HTTP/1.1 401"


def test_a_prompt_of_more_tokens_than_allowed_is_refused_with_the_numbers(serve):
    client = serve(prompt_tokens=20, context_length=200)
    reply = client.http.post(CHAT, json=BODY)
    assert (reply.status_code, error(reply)["code"]) == (400, "context_length_exceeded")
    assert "tokens and this server takes 20" in error(reply)["message"]
    assert client.complete("x").choices[0].text


def test_more_than_the_context_is_refused_with_the_numbers(serve):
    client = serve(context_length=30)
    reply = client.http.post("/v1/completions", json={"model": "demo", "prompt": "a b " * 50})
    assert (reply.status_code, error(reply)["code"]) == (400, "context_length_exceeded")
    assert "the model takes 30" in error(reply)["message"]


def test_an_answer_that_takes_too_long_ends_with_504_and_leaves_the_engine(serve):
    client = serve("a b c d", request_seconds=1)
    client.engine.hold_at = 1
    reply = client.http.post(CHAT, json=BODY)
    assert (reply.status_code, error(reply)["code"]) == (504, "timeout")
    assert "not complete after 1 s" in error(reply)["message"]
    client.engine.go_on.set()
    client.engine.hold_at = None
    assert client.chat().choices[0].message.content == "a b c d"
    assert len(client.engine.calls) == 2


def test_a_stream_that_takes_too_long_ends_with_an_error(serve):
    client = serve("a b c d", request_seconds=1)
    client.engine.hold_at = 2
    with client.http.stream("POST", CHAT, json={**BODY, "stream": True}) as stream:
        text = stream.read().decode()
    assert stream.status_code == 200
    *_, last, done = [line.removeprefix("data: ") for line in text.splitlines() if line]
    assert json.loads(last)["error"]["code"] == "timeout"
    assert done == "[DONE]"
    client.engine.go_on.set()
    wait_until(lambda: client.state.streams == 0, "the stream is counted no longer")


def test_no_more_answers_are_streamed_at_once_than_allowed(serve):
    client = serve("a b c d", streams=1)
    client.engine.hold_at = 2
    with client.http.stream("POST", CHAT, json={**BODY, "stream": True}) as stream:
        lines = stream.iter_lines()
        next(lines)
        refused = httpx.post(client.url + CHAT, json={**BODY, "stream": True})
        assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
        assert "1 answers are being streamed" in error(refused)["message"]
        client.engine.go_on.set()
        assert list(lines)[-2:] == ["data: [DONE]", ""]
    client.engine.hold_at = None
    wait_until(lambda: client.state.streams == 0, "the stream has ended")
    assert list(client.chat(stream=True))[-1].choices[0].finish_reason == "stop"
    assert len(client.engine.calls) == 2


def test_a_client_that_leaves_frees_its_stream_and_the_engine(serve):
    client = serve("a b c d e f g h", streams=1)
    client.engine.hold_at = 2
    with client.http.stream("POST", CHAT, json={**BODY, "stream": True}) as stream:
        next(stream.iter_lines())
    wait_until(lambda: client.state.streams == 0, "the stream is counted no longer")
    client.engine.go_on.set()
    client.engine.hold_at = None
    assert client.chat().choices[0].message.content == "a b c d e f g h"
    assert client.engine.said < 2 * len(client.engine._ids)


PREFLIGHT = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization,content-type"}
ORIGIN = "https://app.example.com"


def test_a_web_page_of_an_allowed_origin_may_ask_first_without_a_key_and_then_with_one(serve):
    client = serve(keys=["secret"], origins=[ORIGIN])
    asked = client.http.options(CHAT, headers={"Origin": ORIGIN, **PREFLIGHT})
    assert (asked.status_code, asked.headers["access-control-allow-origin"]) == (200, ORIGIN)
    assert "authorization" in asked.headers["access-control-allow-headers"].lower()
    assert "access-control-allow-credentials" not in asked.headers
    reply = client.http.post(CHAT, json=BODY, headers={"Origin": ORIGIN, "Authorization": "Bearer secret"})
    assert (reply.status_code, reply.headers["access-control-allow-origin"]) == (200, ORIGIN)
    refused = client.http.post(CHAT, json=BODY, headers={"Origin": ORIGIN})
    assert (refused.status_code, refused.headers["access-control-allow-origin"]) == (401, ORIGIN)


@pytest.mark.parametrize("origins", [[], [ORIGIN]], ids=["none is allowed", "another is allowed"])
@pytest.mark.parametrize("origin", ["https://evil.example.com", ORIGIN + ".evil.com", "http://app.example.com", "null"])
def test_a_web_page_of_any_other_origin_may_not(serve, origins, origin):
    client = serve(keys=["secret"], origins=origins)
    asked = client.http.options(CHAT, headers={"Origin": origin, **PREFLIGHT})
    assert asked.status_code >= 400
    reply = client.http.get("/v1/models", headers={"Origin": origin, "Authorization": "Bearer secret"})
    assert "access-control-allow-origin" not in {**asked.headers, **reply.headers}


def test_many_gigantic_bodies_at_once_are_not_held(serve):
    client = serve(body_bytes=4096)
    statuses = []

    def send():
        with connection(client) as raw, contextlib.suppress(OSError):
            raw.sendall(post(2**30))
            statuses.append(answer_of(raw)[0])

    threads = [threading.Thread(target=send) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=20)
    assert [status.split()[1] for status in statuses] == ["413"] * 16
