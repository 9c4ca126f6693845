"""One answer at a time: the others wait, too many are sent away, and nobody computes for clients that left."""

import json
import socket
import threading

import httpx
import openai
import pytest

from waiting import wait_until

BODY = {"model": "demo", "messages": [{"role": "user", "content": "x"}]}


def in_background(call):
    """Run a call in a thread; returns a function that gives its result."""
    results = []
    thread = threading.Thread(target=lambda: results.append(call()), daemon=True)
    thread.start()

    def result():
        thread.join(timeout=20)
        assert results, "the call did not end"
        return results[0]

    return result


def waiting(client):
    return len(client.state.queue._waiting)


def test_requests_beyond_the_queue_are_told_when_to_come_back(serve):
    client = serve("a b c", queue_length=2)
    client.engine.hold_at = 0
    answers = [in_background(client.chat)]
    wait_until(lambda: client.engine.calls, "the first is computed")
    answers += [in_background(client.chat) for _ in range(2)]
    wait_until(lambda: waiting(client) == 2, "two wait")
    with pytest.raises(openai.RateLimitError, match="2 requests are waiting already") as caught:
        client.chat()
    assert int(caught.value.response.headers["retry-after"]) >= 1
    assert "herdsman_server_waiting_requests 2.0" in client.metrics
    client.engine.go_on.set()
    assert [answer().choices[0].message.content for answer in answers] == ["a b c"] * 3
    assert client.chat().choices[0].message.content == "a b c"


def test_answers_to_requests_at_once_are_not_mixed_up(serve, tokenizer):
    class Echo:
        context_length = 200
        parallel = 1
        broken = None

        def generate(self, prompt, sampling, stop_ids, on_token):
            for token in [*prompt[1:], tokenizer.eos_id]:
                if not on_token(token):
                    return

    client = serve(engine=Echo())
    texts = [f"number {number}" for number in range(12)]
    answers = [in_background(lambda text=text: client.complete(text)) for text in texts]
    assert [answer().choices[0].text for answer in answers] == texts


class LeavingClient:
    """A client that asks over a bare socket and hangs up when it is told to."""

    def __init__(self, client, **options):
        url = httpx.URL(client.url)
        body = json.dumps({**BODY, **options}).encode()
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n"
        head += "Content-Type: application/json\r\n\r\n"
        self.socket = socket.create_connection((url.host, url.port), timeout=20)
        self.socket.sendall(head.encode() + body)

    def leave(self):
        self.socket.close()


@pytest.mark.parametrize("stream", [True, False], ids=["a stream", "a whole answer"])
def test_a_client_that_leaves_ends_its_generation(serve, stream):
    client = serve("one two three four five six seven eight nine ten")
    client.engine.hold_at = 5
    leaving = LeavingClient(client, stream=stream)
    wait_until(lambda: client.engine.said == 5, "the answer is half said")
    leaving.leave()
    generation_over(client)
    assert client.engine.said == 6
    assert stream or 'status="499"' in client.metrics


def generation_over(client):
    """Let the engine go on once the server noticed, and wait until the worker is free."""
    count = 'herdsman_server_request_seconds_count{endpoint="/v1/chat/completions"} 1.0'
    wait_until(lambda: count in client.metrics, "the server noticed that the client left")
    client.engine.go_on.set()
    wait_until(lambda: not client.state.queue._busy, "the worker is free")


def test_a_client_that_leaves_the_queue_is_never_computed_for(serve):
    client = serve("a b", queue_length=1)
    client.engine.hold_at = 0
    first = in_background(client.chat)
    wait_until(lambda: client.engine.calls, "the first is computed")
    leaving = LeavingClient(client)
    wait_until(lambda: waiting(client) == 1, "the second waits")
    leaving.leave()
    wait_until(lambda: waiting(client) == 0, "the second has left the queue")
    client.engine.go_on.set()
    assert first().choices[0].message.content == "a b"
    assert client.chat().choices[0].message.content == "a b"
    assert len(client.engine.calls) == 2


def test_what_is_queued_when_the_server_closes_is_finished(serve):
    client = serve("a b c")
    client.engine.hold_at = 0
    answers = [in_background(client.chat) for _ in range(2)]
    wait_until(lambda: client.engine.calls and waiting(client) == 1, "one is computed and one waits")
    closing = in_background(lambda: client.state.close() or "closed")
    client.engine.go_on.set()
    assert [answer().choices[0].message.content for answer in answers] == ["a b c"] * 2
    assert closing() == "closed"
    with pytest.raises(openai.InternalServerError, match="shutting down"):
        client.chat()


def test_an_engine_with_several_slots_computes_as_many_answers_at_once(serve, tokenizer):
    engine = type(serve("").engine)(tokenizer, "a b")
    engine.parallel, engine.hold_at = 2, 0
    client = serve(engine=engine, queue_length=1)
    answers = [in_background(client.chat) for _ in range(2)]
    wait_until(lambda: len(engine.calls) == 2, "two are computed")
    answers.append(in_background(client.chat))
    wait_until(lambda: waiting(client) == 1, "the third waits")
    with pytest.raises(openai.RateLimitError):
        client.chat()
    engine.go_on.set()
    assert [answer().choices[0].message.content for answer in answers] == ["a b"] * 3
