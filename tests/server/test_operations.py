"""Health, readiness, metrics and keys."""

import openai
import pytest

BODY = {"model": "demo", "messages": [{"role": "user", "content": "x"}]}


def test_the_port_answers_before_the_model_is_loaded(serve):
    client = serve(ready=False)
    assert client.http.get("/healthz").status_code == 200
    assert client.http.get("/readyz").status_code == 503
    response = client.http.post("/v1/chat/completions", json=BODY)
    assert (response.status_code, response.headers["retry-after"]) == (503, "5")
    assert "still loading" in response.json()["error"]["message"]
    assert "herdsman_server_ready 0.0" in client.metrics


def test_a_loaded_server_is_ready(serve):
    client = serve()
    assert client.http.get("/readyz").status_code == 200
    assert "herdsman_server_ready 1.0" in client.metrics


def test_a_server_that_stops_is_not_ready_and_answers_whoever_asks_for_the_last_time(serve):
    client = serve("a b")
    assert client.http.post("/v1/chat/completions", json=BODY).headers.get("connection") != "close"
    client.state.drain()
    ready = client.http.get("/readyz")
    assert (ready.status_code, ready.text) == (503, "the server is stopping\n")
    assert client.http.get("/healthz").status_code == 200
    reply = client.http.post("/v1/chat/completions", json=BODY)
    assert (reply.status_code, reply.headers["connection"]) == (200, "close")
    assert reply.json()["choices"][0]["message"]["content"] == "a b"
    with client.http.stream("POST", "/v1/chat/completions", json={**BODY, "stream": True}) as stream:
        assert stream.headers["connection"] == "close"
        assert stream.read().decode().endswith("data: [DONE]\n\n")
    assert "herdsman_server_ready 0.0" in client.metrics


def value(client, name):
    lines = [line for line in client.metrics.splitlines() if line.startswith(name + " ")]
    return float(lines[0].rpartition(" ")[2]) if lines else 0.0


def test_requests_tokens_and_times_are_counted(serve, tokenizer):
    client = serve("a b")
    prompt = client.chat().usage.prompt_tokens
    list(client.chat(stream=True))
    client.complete("x")
    client.http.post("/v1/chat/completions", json={"model": "other", "messages": BODY["messages"]})
    client.http.get("/v1/nothing/here")
    chat = 'endpoint="/v1/chat/completions"'
    assert value(client, f'herdsman_server_requests_total{{{chat},status="200"}}') == 2
    assert value(client, f'herdsman_server_requests_total{{{chat},status="404"}}') == 1
    assert value(client, 'herdsman_server_requests_total{endpoint="other",status="404"}') == 1
    assert value(client, f"herdsman_server_request_seconds_count{{{chat}}}") == 2
    assert value(client, "herdsman_server_time_to_first_token_seconds_count") == 3
    answer = len(tokenizer.encode("a b")) + 1
    assert value(client, "herdsman_server_completion_tokens_total") == 3 * answer
    assert value(client, "herdsman_server_prompt_tokens_total") == 2 * prompt + len(tokenizer.encode("x")) + 1


def test_with_keys_only_the_right_ones_open_the_api(serve):
    client = serve(keys=["secret-1", "secret-2"])
    with pytest.raises(openai.AuthenticationError) as caught:
        client.chat()
    assert caught.value.code == "invalid_api_key"
    for header in (
        {},
        {"Authorization": "Bearer"},
        {"Authorization": "Bearer secret-1x"},
        {"Authorization": "secret"},
    ):
        assert client.http.post("/v1/chat/completions", json=BODY, headers=header).status_code == 401
        assert client.http.get("/v1/models", headers=header).status_code == 401
    for key in ("secret-1", "secret-2"):
        reply = client.openai.with_options(api_key=key).chat.completions.create(**BODY)
        assert reply.choices[0].message.content == "a b"
    assert client.engine.calls, "the engine is reached with a key"
    assert len(client.engine.calls) == 2, "and only with one"


def test_probes_need_no_key_and_metrics_are_not_on_this_port(serve):
    client = serve(keys=["secret"])
    assert [client.http.get(path).status_code for path in ("/healthz", "/readyz")] == [200] * 2
    assert [client.http.get(path).status_code for path in ("/metrics", "/docs")] == [404] * 2
    assert 'status="401"' not in client.metrics
    client.http.get("/v1/models")
    assert 'status="401"' in client.metrics
